"""What training relies on: rows that do not leak, gradients where they belong, one pass through the tower."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from tests.families.nvila.cases import CASES, Case
from vidtune.contracts import MediaInfo, MediaRef, Message, Sample, UserError
from vidtune.data.planner import RowPlan
from vidtune.data.rows import Encoder, RowBuilder
from vidtune.models.nvila.network import NVILA
from vidtune.models.nvila.processor import NVILAProcessor
from vidtune.models.nvila.tiny import write_tiny_checkpoint


def _gradients(network: NVILA, case: Case, groups: list[list[int]]) -> dict[str, torch.Tensor]:
    """Gradients of the mean over all targets, one row of the data per group."""
    network.zero_grad()
    total = sum(encoded.num_targets for encoded in case.encoded)
    for rows in groups:
        (network(case.pack(rows)).nll.sum() / total).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@CASES
def test_samples_packed_into_one_row_train_as_if_alone(case):
    network = copy.deepcopy(case.network)
    together = _gradients(network, case, [case.kept])
    apart = _gradients(network, case, [[row] for row in case.kept])
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, apart[name], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@CASES
def test_a_row_without_media_leaves_tower_and_projector_untouched_but_in_the_graph(case):
    sample = Sample("text", (Message("user", ("Name a leg exercise.",)), Message("assistant", ("Lunges.",))))
    builder = RowBuilder([sample], Encoder(case.processor, case.source, "train"), case.source, "token")
    network = copy.deepcopy(case.network)
    network(builder[RowPlan(((0,),), 1.0, epoch=0, step=0)]).nll.sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    for name, gradient in gradients.items():
        assert gradient is not None
        if not name.startswith("language"):
            assert not gradient.any(), name


@CASES
def test_all_media_of_a_row_take_one_pass_through_tower_and_projector(case, monkeypatch):
    calls: list[str] = []
    for role in ("vision", "connector"):
        getattr(case.network, role).register_forward_hook(lambda *_, role=role: calls.append(role))
    try:
        with torch.no_grad():
            case.network.encode_media(case.batch.media)
    finally:
        for role in ("vision", "connector"):
            getattr(case.network, role)._forward_hooks.clear()
    assert calls == ["vision", "connector"]


@CASES
def test_activation_checkpointing_keeps_the_gradients_of_a_tower_whose_patches_are_frozen(case):
    """The original's reentrant kind loses them all, with a warning only."""
    network = copy.deepcopy(case.network)
    network.vision.embeddings.requires_grad_(False)
    trained = {name: p for name, p in network.named_parameters() if name.startswith("vision") and p.requires_grad}

    def backward() -> dict[str, torch.Tensor]:
        network.zero_grad()
        output = network(case.batch)
        (output.nll.sum() / case.batch.normalizer).backward()
        return {name: parameter.grad.clone() for name, parameter in trained.items()}

    plain = backward()
    for model in (network.vision, network.language):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    network.train()
    for name, gradient in backward().items():
        assert gradient.any() or "k_proj.bias" in name
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6)


@CASES
def test_a_frozen_tower_leaves_no_graph_behind(case):
    network = copy.deepcopy(case.network)
    network.vision.requires_grad_(False)
    network(case.batch).nll.sum().backward()
    assert all(parameter.grad is None for parameter in network.vision.parameters())
    assert all(parameter.grad is not None for parameter in network.connector.parameters())


@CASES
def test_cached_features_give_the_same_tokens_as_pixels(case):
    items = case.batch.media
    with torch.no_grad():
        direct = case.network.encode_media(items)
        tensors = case.network.features(items)
        stored = [type(i)(i.kind, t, i.num_placeholders, i.name, "features") for i, t in zip(items, tensors)]
        assert torch.equal(case.network.encode_media(stored), direct)


@CASES
def test_frozen_bfloat16_weights_and_a_float32_projector_train_together(case):
    network = copy.deepcopy(case.network).bfloat16()
    network.requires_grad_(False)
    network.connector.float().requires_grad_(True)
    loss = network(case.batch).nll.sum() / case.batch.normalizer
    loss.backward()
    assert loss.item() == pytest.approx(case.expected["loss"], abs=0.1)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.connector.parameters())


# ------------------------------------------------------------------------------------------------- processor


@CASES
def test_a_worker_gets_an_equal_processor(case):
    copied = pickle.loads(pickle.dumps(case.processor))
    sample = case.samples[0]
    plans = case.source.plan_all(sample.media, 0, "train")
    assert copied.encode(sample.messages, plans, preset="train").input_ids == case.whole[0].input_ids


@CASES
def test_the_newline_of_a_tile_and_the_newline_of_the_text_stay_two_tokens(case):
    processor = case.build_processor(image_mode="dynamic", max_tiles=2)
    info = MediaInfo(MediaRef("wide.png", "image"), 1, 1.0, 1.0, height=100, width=200)
    plan = processor.plan_media(info, np.random.default_rng(0), "train")
    newline = processor.newline_ids
    assert [getattr(part, "after_ids", part) for part in plan.content] == [newline, "\n"] * 3


@CASES
def test_a_dummy_is_one_tile(case):
    item = case.processor.dummy_media()
    with torch.no_grad():
        assert len(case.network.encode_media([item])) == item.num_placeholders == case.processor.tokens_per_tile


def test_mistakes_in_the_settings_of_tiles_are_named(tmp_path):
    write_tiny_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"image_mode='dynamc'.*Did you mean 'dynamic'"):
        NVILAProcessor(str(tmp_path), image_mode="dynamc")
    with pytest.raises(UserError, match="max_tiles is 8, but mode 'dynamic_s2' cuts a picture into at least 9"):
        NVILAProcessor(str(tmp_path), image_mode="dynamic_s2", max_tiles=8)
    sound = MediaInfo(MediaRef("sound.wav", "audio"), 1, 1.0, 1.0, 1, 1)
    with pytest.raises(UserError, match=r"sound\.wav: NVILA takes videos and images, not audio"):
        NVILAProcessor(str(tmp_path)).plan_media(sound, np.random.default_rng(0), "train")
