"""What training on packed rows and users' data relies on, on the tiny checkpoint."""

import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from vidtune.contracts import IGNORE, MediaInfo, MediaRef, Message, Sample, UserError
from vidtune.data.media_source import MediaSource
from vidtune.data.planner import RowPlan
from vidtune.data.rows import Encoder, RowBuilder
from vidtune.media.feature_cache import drawn
from vidtune.models.video_llama import tiny, weights
from vidtune.models.video_llama.processor import VideoLlamaProcessor
from vidtune.models.video_llama.sizes import Sizes

QUESTIONS = ("What is the person doing?", "Is it a walk?", "Which way?")


class InventedMedia(MediaSource):
    """Videos and audio features that depend on their name alone: ``<name>_<frames>``."""

    def info(self, ref: MediaRef) -> MediaInfo:
        frames = int(ref.path.rsplit("_")[-1])
        return MediaInfo(ref, frames, 10.0, frames / 10, 32, 32)

    def _frames(self, plan):
        rng = np.random.default_rng(sum(plan.info.ref.path.encode()))
        if plan.info.ref.kind == "audio":
            return iter(rng.normal(size=(len(plan.frame_indices), tiny.SIZES.audio_width)))
        return iter(rng.integers(0, 256, (len(plan.frame_indices), *plan.frame_size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny.write_tiny_checkpoint(path)
    return path


def network_of(folder, audio: bool = False):
    network = weights.build_network(str(folder), sizes=asdict(tiny.SIZES), audio_branch=audio)
    weights.load_weights(network, str(folder), ckpt=weights.CKPT, ckpt_2=weights.CKPT_2 if audio else None)
    return network.eval()


def processor_of(folder, **options):
    sizes = tiny.SIZES
    known = {"image_size": sizes.image_size, "num_video_tokens": sizes.num_video_queries, "audio_width": 32}
    return VideoLlamaProcessor(str(folder / weights.LLM), **{**known, **options})


def sample(name: str, question: str = QUESTIONS[0], answer: str = "Walking", kind: str = "video") -> Sample:
    media = (MediaRef(name, kind),) if name else ()
    return Sample(name or question, (Message("user", (*media, question)), Message("assistant", (answer,))))


def row(processor, samples, segments):
    source = InventedMedia(processor)
    builder = RowBuilder(samples, Encoder(processor, source, "train"), source, "token")
    targets = sum(Encoder(processor, source, "train")(samples[i]).num_targets for part in segments for i in part)
    return builder[RowPlan(tuple(segments), float(targets), 0, 0)]


def task_loss(network, batch) -> torch.Tensor:
    return (network(batch).nll * batch.target_weights).sum() / batch.normalizer


def gradients(network, batches) -> dict[str, torch.Tensor]:
    network.zero_grad()
    for batch in batches:
        task_loss(network, batch).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


SAMPLES = [
    sample("walk_20"),
    sample("stand_5", QUESTIONS[1], "No, the person stands."),
    sample("", QUESTIONS[2], "Up"),
    sample("walk_20", QUESTIONS[1], "Yes"),
]


def test_a_packed_row_trains_like_its_samples_one_by_one(folder):
    """Videos of different length, a text, and two questions that share one video."""
    network, processor = network_of(folder), processor_of(folder)
    segments = [(0, 3), (1,), (2,)]
    packed = row(processor, SAMPLES, segments)
    separate = [row(processor, SAMPLES, [(index,)]) for index in range(4)]
    for batch in separate:
        batch.normalizer = packed.normalizer
    losses = sum(task_loss(network, batch) for batch in separate)
    assert task_loss(network, packed).item() == pytest.approx(losses.item(), abs=1e-5)
    ours, theirs = gradients(network, [packed]), gradients(network, separate)
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, atol=2e-5), name


def test_a_row_without_media_gives_the_connector_zero_gradient(folder):
    network, processor = network_of(folder), processor_of(folder)
    found = gradients(network, [row(processor, SAMPLES, [(2,)])])
    connector = {name: gradient for name, gradient in found.items() if name.startswith("connector.")}
    assert len(connector) == len(list(network.connector.parameters()))
    assert all(gradient.abs().max() == 0 for gradient in connector.values())


def test_audio_and_video_share_a_row_in_the_order_of_the_conversation(folder):
    network, processor = network_of(folder, audio=True), processor_of(folder)
    samples = [sample("walk_20"), sample("steps_6", kind="audio"), sample("stand_5")]
    packed = row(processor, samples, [(0,), (1,), (2,)])
    separate = [row(processor, samples, [(index,)]) for index in range(3)]
    with torch.no_grad():
        together = network.encode_media(packed.media)
        alone = torch.cat([network.encode_media(batch.media) for batch in separate])
    assert torch.allclose(together, alone, atol=1e-5)
    assert [item.num_placeholders for item in packed.media] == [16, 8, 16]


def test_every_process_runs_both_branches_whatever_its_row_holds(folder):
    """Under ZeRO-3 a module that only one process calls would hang the others."""
    network, processor = network_of(folder, audio=True), processor_of(folder)
    parts = [network.vision, *network.connector.children()]
    for kind in ("video", "audio"):
        called: list = []
        handles = [
            part.register_forward_hook(lambda module, *_, called=called: called.append(module)) for part in parts
        ]
        batch = row(processor, [sample("a_6", kind=kind)], [(0,)])
        found = gradients(network, [batch])
        for handle in handles:
            handle.remove()
        assert {id(module) for module in called} == {id(part) for part in parts}
        other = "connector.video" if kind == "audio" else "connector.audio"
        assert all(gradient.abs().max() == 0 for name, gradient in found.items() if name.startswith(other))


def test_audio_without_an_audio_branch_names_the_setting(folder):
    batch = row(processor_of(folder), [sample("a_6", kind="audio")], [(0,)])
    with pytest.raises(ValueError, match="audio_branch"):
        network_of(folder)(batch)


def test_a_short_video_is_masked_not_padded_with_black(folder):
    """Five frames beside twenty: the tokens are those of the five frames alone."""
    network, processor = network_of(folder), processor_of(folder, num_frames=20)
    packed = row(processor, SAMPLES, [(0,), (1,)])
    assert [len(item.tensors["pixel_values"]) for item in packed.media] == [20, 5]
    with torch.no_grad():
        assert torch.allclose(
            network.encode_media(packed.media)[tiny.SIZES.num_video_queries :],
            network.encode_media(packed.media[1:]),
            atol=1e-5,
        )


def test_a_row_without_targets_gives_no_nan(folder):
    network, processor = network_of(folder), processor_of(folder)
    batch = row(processor, SAMPLES, [(0,)])
    batch.target_positions = batch.target_positions[:0]
    batch.target_ids, batch.target_weights = batch.target_ids[:0], batch.target_weights[:0]
    loss = task_loss(network, batch)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("template", ["llama_2", "vicuna"])
@pytest.mark.parametrize("trap", ["</s>", "[/INST] ", "###Assistant: "])
def test_labels_survive_the_templates_own_words_in_a_question(folder, template, trap):
    processor = processor_of(folder, train_template=template)
    supervised = []
    for question in ("What is it?", f"What is {trap} it?"):
        encoded = processor.encode(sample("", question, "Stand up").messages, [], preset="train")
        labels = [label for label in encoded.labels if label != IGNORE]
        supervised.append(processor.tokenizer.decode(labels))
    assert supervised[0] == supervised[1]
    assert "Stand up" in supervised[0]


def test_no_placeholder_is_ever_embedded_and_no_id_lies_beyond_the_table(folder):
    network, processor = network_of(folder), processor_of(folder)
    question = "Is <ImageHere> a word of the user?"
    batch = row(processor, [sample("walk_20", question)], [(0,)])
    assert batch.input_ids.max() < network.language.config.vocab_size
    before = task_loss(network, batch).item()
    batch.input_ids[0, batch.visual_positions] = 7
    assert task_loss(network, batch).item() == before


def test_a_wrong_number_of_placeholders_is_refused_before_the_forward(folder, case):
    refused = {entry["what"] for entry in case.json("expected/errors.json") if "error" in entry}
    assert {"one placeholder too few", "one placeholder too many"} <= refused
    network, processor = network_of(folder), processor_of(folder)
    batch = row(processor, SAMPLES, [(0,)])
    for visual in (batch.visual_positions[:-1], torch.cat([batch.visual_positions, torch.tensor([0])])):
        batch.visual_positions = visual
        with pytest.raises(ValueError, match="placeholders"):
            network(batch)


def test_more_frames_than_positions_are_refused_when_composed(folder):
    with pytest.raises(UserError, match=r"data\.num_frames=33.*32"):
        processor_of(folder, num_frames=33)


def test_more_audio_clips_than_positions_are_refused_with_their_number(folder):
    processor = processor_of(folder, train_audio="sound")
    with pytest.raises(UserError, match="9 clips"):
        InventedMedia(processor).plan(MediaRef("a_9", "audio"), 0, "train")


def test_short_videos_can_be_looped(folder):
    source = InventedMedia(processor_of(folder, short="loop"))
    assert source.plan(MediaRef("a_3"), 0, "train").frame_indices == (0, 1, 2, 0, 1, 2, 0, 1)


def test_questions_of_one_video_see_the_same_crop_and_epochs_another(folder):
    source = InventedMedia(processor_of(folder))
    boxes = [source.plan(MediaRef("a_9"), epoch, "train").extra["crop"] for epoch in (0, 0, 1)]
    assert boxes[0] == boxes[1] != boxes[2]


def test_the_crop_is_a_draw_that_the_feature_cache_sees_and_it_can_be_switched_off(folder):
    """What differs here is what a run with media.feature_cache refuses."""
    for options, differs in (({}, True), ({"random_crop": False}, False)):
        source = InventedMedia(processor_of(folder, **options))
        first, second = (drawn(source.plan(MediaRef("a_9"), epoch, "train")) for epoch in (0, 1))
        assert (first != second) == differs


def test_a_question_at_the_end_of_the_row_is_cut_but_never_the_frames(folder):
    processor = processor_of(folder, max_length=30)
    with pytest.raises(UserError, match=r"model\.max_length"):
        Encoder(processor, InventedMedia(processor), "train")(SAMPLES[0])


def test_a_frozen_qformer_stays_in_eval_mode_while_the_video_qformer_trains(folder):
    network = network_of(folder)
    network.requires_grad_(False)
    network.connector.requires_grad_(True)
    network.train()
    assert not network.vision.qformer.training
    assert network.connector.video_qformer.transformer.dropout.training


def test_workers_get_a_copy_of_the_processor_that_reads_the_same(folder):
    processor = processor_of(folder)
    copy = pickle.loads(pickle.dumps(processor))
    first, second = (Encoder(p, InventedMedia(p), "train")(SAMPLES[0]) for p in (processor, copy))
    assert first.input_ids == second.input_ids


def test_a_saved_tokenizer_reads_as_the_one_it_was_saved_from(folder, tmp_path):
    processor = processor_of(folder)
    processor.save_tokenizer(tmp_path)
    again = VideoLlamaProcessor(str(tmp_path))
    text = "</Video> The video </s><s>[INST] ok ###\n### Üé"
    assert again.tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]


def test_answers_end_where_the_next_turn_begins(folder):
    processor = processor_of(folder)
    ids = processor.tokenizer(" Stand up\n###Human: What", add_special_tokens=False)["input_ids"]
    assert processor.decode(ids) == "Stand up"
    assert processor.stop_ids == [2]


def test_the_tiny_configuration_names_the_sizes_of_the_tiny_checkpoint():
    conf = Path(__file__).parents[3] / "conf/model"
    published, own = (
        OmegaConf.load(conf / f"{name}.yaml").network.sizes for name in ("video_llama", "video_llama_tiny")
    )
    assert Sizes(**{**published, **own}) == tiny.SIZES
    assert Sizes(**published) == Sizes()
