"""What every family must do, whatever it is made of. Runs on each tiny variant in conf/model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from tests.helpers import ROOT, config
from vidtune.contracts import Batch, Message, Sample
from vidtune.data.media_source import MediaSource
from vidtune.data.planner import RowPlan
from vidtune.data.prompts import build_prompts
from vidtune.data.questions import QuestionsReader
from vidtune.data.rows import Encoder, RowBuilder, pad_prompts
from vidtune.models import last_layer
from vidtune.models.base import VideoLLM
from vidtune.models.loading import load_tensors
from vidtune.run.build import build_network, build_processor, prepare

TINY = sorted(path.stem for path in (ROOT / "conf/model").glob("*tiny.yaml"))


@dataclass
class Family:
    cfg: object
    network: VideoLLM
    samples: list[Sample]
    encoder: Encoder
    source: MediaSource

    def row(self, *segments: tuple[int, ...], normalizer: float = 1.0) -> Batch:
        builder = RowBuilder(self.samples, self.encoder, self.source, "token")
        return builder[RowPlan(segments, normalizer, 0, 0)]

    def gradients(self, *rows: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sum of the task loss over rows, and its gradient."""
        self.network.zero_grad()
        total = torch.zeros(())
        for batch in rows:
            output = self.network(batch)
            loss = (output.nll * batch.target_weights).sum()
            loss.backward()
            total = total + loss.detach()
        gradients = {n: p.grad.clone() for n, p in self.network.named_parameters() if p.grad is not None}
        return total, gradients


@pytest.fixture(scope="module", params=TINY)
def family(request: pytest.FixtureRequest, shapes: Path, cache_dir: Path) -> Family:
    overrides = [f"model={request.param}", "model.dtype=float32", "data.prepare=null", f"paths.cache_dir={cache_dir}"]
    cfg = config("train", overrides)
    prepare(cfg)
    torch.manual_seed(0)
    network = build_network(cfg).eval()
    processor = build_processor(cfg)
    source = MediaSource(processor)
    text = Sample("text", (Message("user", ("what ?",)), Message("assistant", ("nothing at all",))))
    samples = [*QuestionsReader(str(shapes), "{split}.jsonl")("train")[:8], text]
    return Family(cfg, network, samples, Encoder(processor, source, "train"), source)


def assert_same(one: tuple, other: tuple, relative: float = 1e-5) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-5)
    assert one[1].keys() == other[1].keys()
    largest = max(float(gradient.norm()) for gradient in one[1].values())
    for name, gradient in one[1].items():
        difference = float((gradient - other[1][name]).norm())
        assert difference <= relative * max(float(gradient.norm()), 1e-2 * largest), name


def test_packing_samples_into_one_row_changes_neither_loss_nor_gradients(family: Family) -> None:
    separate = family.gradients(*(family.row((index,)) for index in (0, 5, 8)))
    packed = family.gradients(family.row((0,), (5,), (8,)))
    assert_same(separate, packed)


def test_sharing_a_video_between_its_questions_changes_neither_loss_nor_gradients(family: Family) -> None:
    separate = family.gradients(*(family.row((index,)) for index in range(6)))
    shared_row = family.row((0, 1, 2, 3), (4, 5))
    assert shared_row.num_tokens < shared_row.tokens_separate
    assert_same(separate, family.gradients(shared_row))


def test_losses_over_all_tokens_count_a_shared_video_once_per_question(family: Family) -> None:
    """A batch statistic, such as a router's load, is that of the row in which every question has its own video."""
    if not (auxiliary := _auxiliary(family, (0,), (1,), (2,), (3,))):
        pytest.skip(f"{family.cfg.model.name} has no loss beside that of its task")
    shared = _auxiliary(family, (0, 1, 2, 3))
    assert shared.keys() == auxiliary.keys()
    for name, (loss, gradient) in auxiliary.items():
        torch.testing.assert_close(shared[name][0], loss, rtol=1e-5, atol=1e-8)
        assert float((shared[name][1] - gradient).norm()) <= 1e-4 * float(gradient.norm())


def _auxiliary(family: Family, *segments: tuple[int, ...]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Auxiliary losses of a row in training mode, each with its gradient for the connector."""
    weights = list(family.network.connector.parameters())
    family.network.train()
    losses = family.network(family.row(*segments)).auxiliary
    family.network.eval()
    graded = {n: torch.autograd.grad(v, weights, retain_graph=True, allow_unused=True) for n, v in losses.items()}
    return {n: (losses[n].detach(), torch.cat([g.flatten() for g in graded[n] if g is not None])) for n in losses}


def test_a_last_layer_at_supervised_positions_alone_changes_neither_loss_nor_gradients(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a row with a sample, a shared video and text alone, against the states of all positions."""
    row = family.row((0,), (1, 2, 3), (4, 5), (8,))
    lengths, results, calls = [], [], []
    hooks = [
        module.register_forward_hook(lambda *call, name=name: calls[-1].append(name))
        for name, module in family.network.language.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    hooks += [family.network.language.model.norm.register_forward_hook(lambda *call: lengths.append(call[2].shape[1]))]
    for fewest in (1, 10**9):
        monkeypatch.setattr(last_layer, "FEWEST", fewest)
        calls.append([])
        results.append(family.gradients(row))
    for hook in hooks:
        hook.remove()
    assert calls[0] == calls[1], "processes with sharded weights would wait for each other"
    assert lengths == [row.target_ids.numel() if family.network.narrows else row.num_tokens, row.num_tokens]
    assert_same(*results)


def test_a_row_without_media_leaves_the_connector_untouched_but_in_the_graph(family: Family) -> None:
    batch = family.row((8,))
    assert batch.dummy_media
    _, gradients = family.gradients(batch)
    connector = [name for name, _ in family.network.connector.named_parameters(prefix="connector")]
    reached = [name for name in connector if name in gradients]
    assert reached, "the dummy must keep the connector in the graph of every process"
    assert all(float(gradients[name].abs().max()) == 0.0 for name in reached)


def test_generating_in_a_padded_batch_gives_the_answers_of_single_prompts(family: Family) -> None:
    processor = family.source.processor
    prompts = [family.encoder(family.samples[index], generation=True) for index in (0, 3, 8)]
    media = [[family.source.load(plan) for plan in prompt.plans] for prompt in prompts]
    batch = pad_prompts(prompts, [item for items in media for item in items], processor.pad_id)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": processor.pad_id, "eos_token_id": None}
    together = family.network.generate(batch, **options)
    for row, (prompt, items) in enumerate(zip(prompts, media)):
        alone = family.network.generate(pad_prompts([prompt], items, processor.pad_id), **options)
        assert together[row].tolist() == alone[0].tolist()


def test_questions_of_one_video_get_their_single_answers_from_one_prefill(family: Family) -> None:
    """Two videos, three questions and one about each, and a question without any; every id as from its own prompt."""
    processor, network = family.source.processor, family.network
    chosen = (0, 1, 2, 5, 8)
    prompts = [family.encoder(family.samples[index], generation=True) for index in chosen]
    batch = build_prompts(prompts, family.source, ["question"] * len(prompts))
    assert batch.prefixes is not None and len(batch.prefixes.media) == 2
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": processor.pad_id, "eos_token_id": None}
    shown, lengths = [], []
    hooks = [
        network.connector.register_forward_pre_hook(lambda *call: shown.append(1)),
        network.language.model.register_forward_pre_hook(
            lambda module, arguments, kwargs: lengths.append(_shape(kwargs)), with_kwargs=True
        ),
    ]
    together = network.generate(batch.prompts, batch.prefixes, batch.prefix_of, **options)
    for hook in hooks:
        hook.remove()
    assert len(shown) == 1, "the media of the batch are encoded once"
    longest = max(prompt.prefix_length for prompt in prompts)
    assert lengths[0] == (3, longest), "each video is run once, and one token for the question without any"
    assert lengths[1] == (5, max(prompt.num_tokens - (prompt.prefix_length or 1) for prompt in prompts))
    assert lengths[2:] == [(5, 1)] * 5
    for row, prompt in enumerate(prompts):
        alone = pad_prompts([prompt], [family.source.load(plan) for plan in prompt.plans], processor.pad_id)
        assert together[row].tolist() == network.generate(alone, **options)[0].tolist()


def _shape(kwargs: dict) -> tuple[int, ...]:
    inputs = kwargs.get("input_ids")
    return tuple(kwargs["inputs_embeds"].shape[:2] if inputs is None else inputs.shape)


def test_exported_weights_load_again_bit_for_bit(family: Family, tmp_path: Path) -> None:
    instantiate(family.cfg.model.export, family.network, tmp_path)
    again = config("train", [f"model={family.cfg.model.name}", "model.dtype=float32", f"model.path={tmp_path}"])
    family.source.processor.save_tokenizer(tmp_path)
    loaded = build_network(again)
    theirs = dict(loaded.state_dict())
    for name, tensor in family.network.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_frozen_tower_stays_in_eval_mode_when_the_network_trains(family: Family) -> None:
    family.network.vision.requires_grad_(False)
    try:
        family.network.train()
        assert not any(module.training for module in family.network.vision.modules())
    finally:
        family.network.requires_grad_(True).eval()


def test_loading_reports_missing_and_unexpected_tensors_together(family: Family) -> None:
    tensors = dict(family.network.state_dict())
    name = next(iter(tensors))
    tensors["stranger"] = tensors.pop(name)
    with pytest.raises(ValueError, match=r"1 missing.*1 unexpected: stranger"):
        load_tensors(family.network, tensors.items(), "a checkpoint")
