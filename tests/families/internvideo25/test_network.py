"""What training relies on: packing, roles, caching, the stand-in visual."""

from __future__ import annotations

import pytest
import torch

from tests.families.internvideo25.support import assert_near, each_case, golden, network_of, pack
from vidtune.contracts import MediaItem
from vidtune.models.internvideo25.weights import build_network, load_weights


def _fresh(case):
    network = build_network(str(case))
    load_weights(network, str(case))
    return network.train()


def _samples(case, rows=None):
    """(encoded, media) of the video rows, and the text-only ones."""
    files = golden(case)
    video = [(files.encode(row), [files.media(row)]) for row in rows or files.video_rows]
    text = [(files.encode(row), []) for row, entry in enumerate(files.text) if entry["kind"] == "text_only"]
    if len(video) == 1:  # A second, longer conversation about the same video.
        video.append((files.encode(files.video_rows[0], "internvl2_5_duration"), video[0][1]))
    return video, text


@each_case
def test_a_packed_row_trains_like_its_samples_one_by_one(case):
    video, text = _samples(case)
    samples = [video[0], *text, *video[1:]]
    packed, separate = _fresh(case), _fresh(case)
    row = packed(pack([s[0] for s in samples], [item for s in samples for item in s[1]]))
    row.nll.sum().backward()
    nll = []
    for encoded, media in samples:
        item = media or [golden(case).processor().dummy_media()]
        output = separate(pack([encoded], item, dummy=not media))
        output.nll.sum().backward()
        nll.append(output.nll.detach())
    assert_near(row.nll, torch.cat(nll), 1e-4)
    other = dict(separate.named_parameters())
    for name, parameter in packed.named_parameters():
        scale = other[name].grad.norm().clamp(min=1e-3)
        assert (parameter.grad - other[name].grad).norm() / scale < 1e-3, name


@each_case
def test_a_text_only_row_gives_vision_and_connector_zero_gradient(case):
    """Zero, not None: every process of a distributed run must reduce the same tensors."""
    files, network = golden(case), _fresh(case)
    processor = files.processor(template="internvl2_5")
    encoded = files.encode(files.video_rows[0])
    encoded.visual_positions.clear()
    network(pack([encoded], [processor.dummy_media()], dummy=True)).nll.mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if not name.startswith("language."):
            assert not parameter.grad.any(), name


@each_case
def test_a_frozen_tower_stays_in_eval_mode_and_out_of_the_graph(case):
    files, network = golden(case), _fresh(case)
    network.vision.requires_grad_(False)
    network.train()
    assert not any(module.training for module in network.vision.modules())
    assert network.connector.training and network.language.training
    batch = pack([files.encode(files.video_rows[0])], [files.media(files.video_rows[0])])
    network(batch).nll.mean().backward()
    assert all(parameter.grad is None for parameter in network.vision.parameters())
    assert all(parameter.grad is not None for parameter in network.connector.parameters())


@each_case
@torch.no_grad()
def test_cached_features_are_the_features(case):
    """Videos encoded alone and stored give the row that encodes them together gives."""
    files, network = golden(case), network_of(case)
    items = [files.media(row) for row in files.video_rows] + [files.processor().dummy_media()]
    together = network.encode_media(items)
    stored = []
    for item in items:
        [values] = network.features([item])
        stored.append(MediaItem(item.kind, values, item.num_placeholders, item.name, "features"))
    white = golden(case).config["golden"]["num_tome_tokens"]
    # The stand-in is static: its likenesses tie exactly, and any choice is right.
    assert_near(network.encode_media(stored)[:-white], together[:-white], 1e-5)
    assert together.isfinite().all()
    assert sum(item.num_placeholders for item in items) == len(together)


@each_case
def test_gradient_reaches_every_weight_through_the_merging(case):
    files, network = golden(case), _fresh(case)
    row = files.video_rows[0]
    network(pack([files.encode(row)], [files.media(row)])).nll.mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@each_case
def test_frames_of_two_videos_are_never_merged(case):
    files = golden(case)
    item = files.media(files.video_rows[0])
    item.tensors = {"pixel_values": item.tensors["pixel_values"][:-1]}
    with pytest.raises(ValueError, match="clips of 4 are merged"):
        network_of(case).features([item])
