"""Meters that count what a user thinks they count."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, SiglipVisionConfig

from vidtune.contracts import Batch, Encoded
from vidtune.data.datamodule import TimedLoader
from vidtune.data.planner import Planner, SampleSize
from vidtune.data.rows import PackedRow
from vidtune.models.attention import PACKED_SDPA, PackedLayout
from vidtune.models.last_layer import FEWEST
from vidtune.models.likelihood import target_likelihood
from vidtune.models.tiny.network import Tiny
from vidtune.training.callbacks.meters import Meters, count_answers
from vidtune.training.flops import StepFlops

PROCESSOR = SimpleNamespace(dummy_media=lambda: None)


def sample(prefix: int, *turns: tuple[int, int]) -> Encoded:
    """Ids of a conversation: per turn the tokens of question and answer."""
    labels = [-100] * prefix
    for question, answer in turns:
        labels += [-100] * question + [7] * answer
    return Encoded([7] * len(labels), labels, [], (), prefix)


def row(*segments: list[Encoded], factor: float = 1.0) -> Batch:
    packed = PackedRow()
    for number, segment in enumerate(segments):
        names = [f"{number}.{branch}" for branch in range(len(segment))]
        packed.add_segment(number, segment, [factor] * len(segment), names, "token")
    return packed.batch(1.0, PROCESSOR)


@pytest.fixture(scope="module")
def network() -> Tiny:
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4,
        vision_use_head=False,
    )  # fmt: skip
    language = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return Tiny(vision, language, 4)


def test_a_conversation_counts_as_one_sample_and_as_many_questions_as_it_answers() -> None:
    batch = row([sample(10, (5, 3), (4, 2), (3, 1))], [sample(20, (5, 2)), sample(20, (6, 4))])
    samples, questions, tokens = (float(value) for value in count_answers(batch))
    assert (samples, questions) == (3, 5)
    assert tokens == 28 + 20 + 7 + 10


def test_rows_without_weight_count_no_samples() -> None:
    assert [float(value) for value in count_answers(row([sample(4, (2, 2))], factor=0.0))[:2]] == [0, 0]


@pytest.mark.parametrize("frozen", ["", "language.model.layers", "language.lm_head"])
def test_linear_flops_are_those_that_torch_counts(network: Tiny, frozen: str) -> None:
    network.set_attention(PACKED_SDPA)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not frozen or not name.startswith(frozen))
    batch = row([sample(9, (5, 3)), sample(9, (4, 6))], [sample(0, (5, 5))])
    embeddings = torch.randn(1, batch.num_tokens, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layout = PackedLayout.build(batch.segment_ids, batch.branch_ids)
        hidden, _ = network.decode(
            embeddings, batch, attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool), packed_layout=layout
        )
        nll, _ = target_likelihood(hidden[0, batch.target_positions], network.language.lm_head, batch.target_ids)
        nll.sum().backward()
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    flops = StepFlops.of(network)
    assert flops.per_token * batch.num_tokens + flops.per_target * len(batch.target_ids) == counted
    network.requires_grad_(True)


def test_attention_flops_count_every_visible_pair_once(network: Tiny) -> None:
    batch = row([sample(9, (5, 3)), sample(9, (4, 6))], [sample(0, (5, 5))])
    assert len(batch.target_ids) * FEWEST > batch.num_tokens, "all layers run at all positions"
    seen = PackedLayout.build(batch.segment_ids, batch.branch_ids).dense_mask(batch.num_tokens).sum()
    flops = StepFlops.of(network)
    rest = flops.per_token * batch.num_tokens + flops.per_target * len(batch.target_ids)
    # Scores and values, 2 FLOPs each, forward and twice backward, 2 layers of width 32.
    assert float(flops(batch)) - rest == pytest.approx(3 * 4 * 2 * 32 * int(seen))


def test_what_a_narrowed_last_layer_spares_is_not_counted(network: Tiny) -> None:
    """Of the counter's FLOPs, the linear layers of the whole network; one target in a row of 42 tokens."""
    network.set_attention(PACKED_SDPA)
    network.requires_grad_(True)
    batch = row([sample(40, (1, 1))])
    batch.media, batch.dummy_media = [], False
    with FlopCounterMode(display=False) as counter:
        network(batch).nll.sum().backward()
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    flops, count = StepFlops.of(network), len(batch.target_ids)
    spared = flops.per_late_token * (batch.num_tokens - count)
    assert flops.per_token * batch.num_tokens + flops.per_target * count - spared == counted
    pairs = sum(range(1, batch.num_tokens + 1))
    kept = int((batch.position_ids.flatten()[batch.target_positions] + 1).sum())
    assert float(flops(batch)) - counted == pytest.approx(3 * 4 * 32 * (pairs + kept))


def run_window(meters: Meters, network: Tiny, waited_s: float) -> dict[str, float]:
    logged: dict[str, float] = {}
    trainer = SimpleNamespace(
        accumulate_grad_batches=1, global_step=1, world_size=1, train_dataloader=SimpleNamespace(waited_s=0.0)
    )
    module = SimpleNamespace(
        network=network, all_reduce=lambda value, how: value, log=lambda name, value, **_: logged.update({name: value})
    )
    meters.on_train_start(trainer, module)
    time.sleep(0.2)
    trainer.train_dataloader.waited_s = waited_s
    for step in (1, 2):
        trainer.global_step = step
        meters.on_train_batch_end(trainer, module, None, row([sample(4, (2, 2))]), step - 1)
    return logged


def test_waiting_for_data_is_reported_and_hinted_at_once(network: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    meters = Meters(log_every=2)
    with caplog.at_level(logging.WARNING):
        logged = run_window(meters, network, 0.1)
        run_window(meters, network, 0.1)
    assert 10 < logged["speed/data_wait_percent"] < 60
    assert logged["speed/questions_per_s"] < 2 / 0.2
    assert "speed/mfu_percent" not in logged
    assert [record.message.count("data.num_workers") for record in caplog.records] == [1]


def test_utilisation_is_model_flops_over_time_and_peak(network: Tiny) -> None:
    logged = run_window(Meters(log_every=2, peak_tflops=1e-6), network, 0.0)
    flops = float(StepFlops.of(network)(row([sample(4, (2, 2))])))
    assert logged["speed/mfu_percent"] / logged["speed/samples_per_s"] == pytest.approx(100 * flops / 1e6, rel=1e-4)


def test_a_loader_knows_how_long_it_kept_its_user_waiting() -> None:
    class Slow(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> int:
            time.sleep(0.05)
            return index

    loader = TimedLoader(Slow(), batch_size=None)
    for _ in loader:
        time.sleep(0.2)
    assert 0.15 <= loader.waited_s < 0.6


def test_the_plan_says_what_sharing_saves() -> None:
    sizes = [SampleSize(110, 4, 100, "video"), SampleSize(120, 4, 100, "video"), SampleSize(30, 4)]
    planner = Planner(sizes, global_batch_size=3, rows_per_step=1, max_tokens=500, questions_per_video=8)
    # 100 + 10 + 20 + 30 against 110 + 120 + 30; padded to the longest, 3 x 120.
    assert planner.savings().startswith("160 tokens per epoch, 260 without sharing (1.62 x)")
    assert planner.savings().endswith("padded batches would hold 28 %")
