"""Packed, shared, text-only and generated rows of the tiny variant; limits of the input."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vidtune.contracts import MediaInfo, MediaRef, Message, Sample, UserError
from vidtune.data.datamodule import BatchArithmetic, VideoDataModule
from vidtune.data.media_source import MediaSource
from vidtune.data.rows import PackedRow, pad_prompts
from vidtune.media.legacy_pickle import convert_pickled_features
from vidtune.models.video_chatgpt.processor import VideoChatGPTProcessor
from vidtune.models.video_chatgpt.tiny import write_tiny_checkpoint
from vidtune.models.video_chatgpt.weights import build_network, load_weights

VIDEO = MediaRef("/videos/v_a.mp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def processor(folder):
    return VideoChatGPTProcessor(
        str(folder), num_frames=8, image_size=112, num_temporal=8, feature_width=32, max_length=512
    )


@pytest.fixture
def network(folder):
    network = build_network(str(folder), str(folder / "clip"))
    load_weights(network, str(folder), str(folder / "clip"))
    network.vision.requires_grad_(False)
    network.language.requires_grad_(False)
    return network.train()


def plan(processor, ref=VIDEO, count=5):
    return processor.plan_media(MediaInfo(ref, count, 8.0, count / 8, 60, 80), np.random.default_rng(0), "train")


def frames(media_plan, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in media_plan.frame_indices)


def encode(processor, question, answer, video_at=None, **options):
    content = {None: (question,), "head": (VIDEO, "\n" + question), "tail": (question + "\n", VIDEO)}[video_at]
    plans = [plan(processor)] if video_at else []
    turns = [Message("user", content), Message("assistant", (answer,))]
    return processor.encode(turns, plans, preset="train", **options)


def batch_of(processor, segments):
    """A packed row; each segment is one sample, or several that share their prefix."""
    row = PackedRow()
    for number, encoded in enumerate(segments):
        row.media += [
            processor.load_media(media_plan, frames(media_plan, seed=number)) for media_plan in encoded[0].plans
        ]
        names = [f"{number}.{index}" for index in range(len(encoded))]
        row.add_segment(number, encoded, [1.0] * len(encoded), names, "token")
    return row.batch(1.0, processor)


def gradients(network, batches):
    network.zero_grad()
    loss = sum((network(batch).nll * batch.target_weights).sum() for batch in batches)
    loss.backward()
    trained = {name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad}
    return loss.detach(), trained


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], atol=0, rtol=1e-6)
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_packed_row_gives_loss_and_gradients_of_separate_samples(processor, network):
    """A text stands first and between: the original then drops the features of the whole batch."""
    samples = [
        [encode(processor, "Hello?", "Hello.")],
        [encode(processor, "What is shown?", "A circle.", "head")],
        [encode(processor, "How are you?", "Fine.")],
        [encode(processor, "Where does it move?", "To the left.", "tail")],
    ]
    packed = batch_of(processor, samples)
    separate = [batch_of(processor, [sample]) for sample in samples]
    separate[1].media, separate[3].media = [packed.media[0]], [packed.media[1]]
    assert_same(gradients(network, [packed]), gradients(network, separate))


def test_rows_that_the_original_masks_are_left_out_of_the_training_and_counted(processor):
    texts = [("Hello?", "Hello."), ("Empty?", ""), ("Trap ASSISTANT: in it?", "Yes."), ("Bye?", "Bye.")]
    samples = [
        Sample(question, (Message("user", (question,)), Message("assistant", (answer,)))) for question, answer in texts
    ]
    data = VideoDataModule(
        lambda split: samples,
        processor,
        MediaSource(processor),
        train_split="train",
        val_split="",
        batch=BatchArithmetic.derive(2, 2, None, 1),
        epochs=1,
        max_tokens=512,
        questions_per_video=1,
    )
    data.setup()
    assert [sample.sample_id for sample in data.train_samples] == ["Hello?", "Bye?"]
    assert data.without_target == 2


def test_questions_that_share_a_video_give_loss_and_gradients_of_separate_samples(processor, network):
    questions = [encode(processor, f"Question {index}?", f"Answer {index}.", "head") for index in range(3)]
    shared = batch_of(processor, [questions])
    assert_same(
        gradients(network, [shared]), gradients(network, [batch_of(processor, [[question]]) for question in questions])
    )


def test_a_row_without_video_gives_projector_and_markers_zero_gradients(processor, network):
    _, trained = gradients(network, [batch_of(processor, [[encode(processor, "How are you?", "Fine.")]])])
    assert set(trained) == {"connector.projection.weight", "connector.projection.bias", "new_tokens.weight"}
    assert all((gradient == 0).all() for gradient in trained.values())


def test_features_may_enter_in_place_of_pixels(processor, network):
    samples = [[encode(processor, "What is shown?", "A circle.", "head")]]
    computed, cached = batch_of(processor, samples), batch_of(processor, samples)
    made = network.features(cached.media)[0]
    assert made["values"].dtype == torch.float16
    cached.media[0].tensors, cached.media[0].stage = made, "features"
    assert torch.equal(network(computed).nll, network(cached).nll)
    cached.media[0].tensors = {"values": made["values"][:, :-1]}
    with pytest.raises(ValueError, match="another model"):
        network(cached)


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_feature_files_of_the_original_train_like_their_videos(processor, network, tmp_path, suffix):
    samples = [[encode(processor, "What is shown?", "A circle.", "head")]]
    from_video, from_file = batch_of(processor, samples), batch_of(processor, samples)
    values = network.features(from_video.media)[0]["values"].numpy()
    (tmp_path / "v_a.pkl").write_bytes(pickle.dumps(values))
    convert_pickled_features(tmp_path, tmp_path)
    source = MediaSource(processor)
    media_plan = source.plan(MediaRef(str(tmp_path / f"v_a{suffix}")), 0, "train")
    assert media_plan.spans == samples[0][0].plans[0].spans
    from_file.media = [source.load(media_plan)]
    assert torch.equal(network(from_video).nll, network(from_file).nll)


def test_features_of_another_model_are_refused_and_bad_files_are_noted(processor, network, tmp_path):
    source = MediaSource(processor)
    save_file({"features": torch.ones(72, 31)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="72 x 31 instead of 72 x 32"):
        source.plan(MediaRef(str(tmp_path / "foreign.safetensors")), 0, "train")
    (tmp_path / "bad.pkl").write_bytes(b"no pickle")
    bad = MediaRef(str(tmp_path / "bad.pkl"))
    item = source.load(source.plan(bad, 0, "train"))
    assert source.why_bad([bad])
    assert item.stage == "features" and item.tensors["values"].shape == (72, 32)


def test_a_trained_tower_gets_gradients_in_full_precision(processor, network):
    network.vision.requires_grad_(True)
    batch = batch_of(processor, [[encode(processor, "What is shown?", "A circle.", "head")]])
    assert network.features(batch.media)[0]["values"].dtype == torch.float32
    network(batch).nll.sum().backward()
    assert all(parameter.grad is not None for parameter in network.vision.parameters())


def test_left_padded_answers_equal_single_ones_and_hold_no_added_token(processor, network):
    network.eval()
    texts = ("What is shown?", "In which direction does the large blue circle move at the end of the video?")
    prompts = [encode(processor, text, "", "tail", generation=True) for text in texts]
    items = [processor.load_media(prompt.plans[0], frames(prompt.plans[0])) for prompt in prompts]
    together = network.generate(pad_prompts(prompts, items, processor.pad_id), max_new_tokens=8, do_sample=False)
    for prompt, item, answer in zip(prompts, items, together):
        alone = network.generate(pad_prompts([prompt], [item], 0), max_new_tokens=8, do_sample=False)[0]
        assert answer[: len(alone)].tolist() == alone.tolist()
        assert max(alone) < network.new_tokens.first_id - 4


@pytest.mark.parametrize(("count", "temporal"), [(1, 8), (5, 8), (8, 8), (30, 8)])
def test_any_length_of_video_fills_its_positions(processor, network, count, temporal):
    media_plan = plan(processor, count=count)
    item = processor.load_media(media_plan, frames(media_plan))
    assert item.num_placeholders == temporal + 64 == media_plan.num_placeholders
    values = network.features([item])[0]["values"]
    taken = min(count, 8)
    assert values.shape == (72, 32) and (values[taken:8] == 0).all() and (values[:taken] != 0).any()


def test_more_frames_than_temporal_positions_take_one_each(folder, network):
    processor = VideoChatGPTProcessor(str(folder), num_frames=12, image_size=112, num_temporal=8)
    media_plan = plan(processor, count=40)
    item = processor.load_media(media_plan, frames(media_plan))
    assert network.features([item])[0]["values"].shape == (12 + 64, 32) == (item.num_placeholders, 32)


def test_a_cut_inside_the_video_block_is_refused_with_both_lengths(folder):
    processor = VideoChatGPTProcessor(str(folder), num_frames=8, image_size=112, num_temporal=8, max_length=100)
    with pytest.raises(UserError, match=r"max_length is 100"):
        encode(processor, "What is shown?", "A circle.", "head")


def test_text_that_names_a_video_marker_is_refused(processor):
    with pytest.raises(UserError, match="<vid_start>"):
        encode(processor, "What does <vid_start> mean?", "Nothing.", "head")


def test_audio_is_refused(processor):
    with pytest.raises(UserError, match="not audio"):
        plan(processor, MediaRef("/sound.wav", kind="audio"))


def test_a_processor_survives_its_way_to_a_worker(processor):
    copy = pickle.loads(pickle.dumps(processor))
    texts = "What is it?", "Two  dogs, 海边."
    assert encode(copy, *texts, "head").input_ids == encode(processor, *texts, "head").input_ids


def test_a_saved_tokenizer_gives_the_same_ids(processor, tmp_path):
    processor.save_tokenizer(tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    again = VideoChatGPTProcessor(str(tmp_path), num_frames=8, image_size=112, num_temporal=8)
    texts = "Any  text?\n", " Answers   with runs of spaces, 海边 🐕"
    assert encode(again, *texts, "tail").input_ids == encode(processor, *texts, "tail").input_ids


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="tokenizer_path"):
        VideoChatGPTProcessor(str(tmp_path))
