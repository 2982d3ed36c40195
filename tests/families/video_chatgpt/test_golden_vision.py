"""From frames to pooled features as the original computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vidtune.models.video_chatgpt.network import pool_patches
from vidtune.models.video_chatgpt.processor import normalize, resize_nearest


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def network(case, request):
    return case.network(request.param).eval()


def stored_frames(case):
    vision = case.tensors("expected/vision.safetensors")
    for name, positions in case.config["stored_frames"].items():
        indices = vision[f"{name}.frame_indices"]
        yield name, vision, case.frames[name][indices[positions].numpy()]


def test_sampled_and_resized_frames_are_the_originals(case):
    vision = case.tensors("expected/vision.safetensors")
    for name, clip in case.frames.items():
        plan = case.processor.plan_media(case.info(name), np.random.default_rng(0), "train")
        assert list(plan.frame_indices) == vision[f"{name}.frame_indices"].tolist()
        resized = torch.stack([resize_nearest(clip[index], 224) for index in plan.frame_indices])
        assert torch.equal(resized.long().sum((2, 3)), vision[f"{name}.resized_uint8_sum"])
        stored = resized[case.config["stored_frames"][name]].permute(0, 2, 3, 1)
        assert torch.equal(stored[:, ::13, ::11], vision[f"{name}.resized_uint8_every13_11"])


def test_pixels_are_the_originals(case):
    for name, vision, frames in stored_frames(case):
        pixels = torch.stack([normalize(resize_nearest(frame, 224)) for frame in frames])
        torch.testing.assert_close(pixels[:, :, ::16, ::16], vision[f"{name}.pixel_values_every16"], atol=1e-6, rtol=0)


@torch.no_grad()
def test_patches_come_from_the_layer_before_the_last(case, network):
    for name, vision, frames in stored_frames(case):
        pixels = torch.stack([normalize(resize_nearest(frame, 224)) for frame in frames])
        torch.testing.assert_close(network.vision(pixels), vision[f"{name}.hidden_penultimate"], atol=6e-5, rtol=0)


@torch.no_grad()
def test_pooled_features_are_the_originals(case, network):
    """The whole path from frames, in full precision, as it goes into feature files, and as it goes into inference."""
    vision = case.tensors("expected/vision.safetensors")
    for name, clip in case.frames.items():
        plan = case.processor.plan_media(case.info(name), np.random.default_rng(0), "train")
        frames = [clip[index] for index in plan.frame_indices]
        pixels = torch.stack([normalize(resize_nearest(frame, 224)) for frame in frames])
        pooled = pool_patches(network.vision(pixels), 100)
        torch.testing.assert_close(pooled, vision[f"{name}.pooled_fp32"], atol=6e-5, rtol=0)

        item = case.processor.load_media(plan, iter(frames))
        one_half_step_apart(network.features([item])[0]["values"], vision[f"{name}.features"])
        pooled = pool_patches(network.vision(item.tensors["pixel_values"].float()), 100)
        one_half_step_apart(pooled.half(), vision[f"{name}.features_inference"])


def one_half_step_apart(found, expected):
    """One step of float16 at the largest value: what is rounded are the patches, whose mean may be near zero."""
    assert found.dtype == expected.dtype == torch.float16
    step = 2.0 ** (expected.float().abs().max().log2().floor().item() - 10)
    torch.testing.assert_close(found.float(), expected.float(), atol=step, rtol=0)


def test_pooling_alone_matches_for_fewer_exactly_and_more_than_100_frames(case):
    pooling = case.tensors("expected/pooling.safetensors")
    for name in sorted({key.split(".")[0] for key in pooling}):
        pooled = pool_patches(pooling[f"{name}.in"], 100)
        expected = pooling[f"{name}.out"]
        assert pooled.shape == expected.shape and pooled.dtype == expected.dtype
        for stage in (expected, pooling[f"{name}.out_inference"]):
            # Half precision: one step; the values are below 4.
            tolerance = 1e-6 if stage.dtype == pooled.dtype == torch.float32 else 2**-9
            torch.testing.assert_close(pooled.float(), stage.float(), atol=tolerance, rtol=0)
