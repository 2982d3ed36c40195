"""HiCo token merging: the golden units, and properties that hold for any input."""

from __future__ import annotations

import pytest
import torch
from transformers import InternVLConfig, InternVLModel, InternVLVisionConfig, LlamaConfig

from tests.families.internvideo25.support import assert_near, each_case, golden
from vidtune.models.internvideo25.hico import merge_round, merge_schedule, merge_tokens, space_to_depth


def rounds(tokens: torch.Tensor, target: int, num_heads: int):
    """(tokens, sizes, partner) after every round."""
    sizes = torch.ones_like(tokens[..., :1])
    for num_merged in merge_schedule(tokens.shape[1], target):
        tokens, sizes, partner = merge_round(tokens, sizes, num_merged, num_heads)
        yield tokens, sizes, partner


@each_case
def test_units_merge_as_the_original_does(case):
    files = golden(case)
    inputs, units = files.tensors("tome_inputs.safetensors"), files.json("tome_units.json")
    for name, facts in files.json("expected_tome_units.json").items():
        assert {key: facts[key] for key in units[name]} == units[name]
        tokens, target, heads = inputs[name], facts["target_tokens"], facts["num_heads"]
        assert merge_schedule(tokens.shape[1], target) == facts["rounds_r"]
        for number, (_, sizes, partner) in enumerate(rounds(tokens, target, heads)):
            assert torch.equal(partner.int(), files.expected[f"tome_unit.{name}.round{number}.argmax"])
            assert torch.equal(sizes, files.expected[f"tome_unit.{name}.round{number}.size"])
        assert_near(merge_tokens(tokens, target, heads), files.expected[f"tome_unit.{name}.out"], 1e-5, name)


@pytest.mark.parametrize(("num_tokens", "target"), [(1024, 64), (256, 64), (100, 24), (64, 64)])
def test_no_patch_is_lost_or_counted_twice(num_tokens, target):
    tokens = torch.randn(2, num_tokens, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = (tokens, torch.ones(2, num_tokens, 1, dtype=torch.float64), None)
    merged, sizes, _ = [start, *rounds(tokens, target, 4)][-1]
    assert torch.equal(sizes.sum(dim=1), torch.full((2, 1), float(num_tokens), dtype=torch.float64))
    torch.testing.assert_close((merged * sizes).sum(dim=1), tokens.sum(dim=1))


def test_every_frame_keeps_sixteen_tokens_in_order():
    """The survivors of 1024 tokens are those at positions 15, 31, ...: checked by marking each with its position."""
    position = torch.arange(1024.0)
    # Odd tokens are all alike to the even one before them alone: one channel pair per survivor's block of 16.
    tokens = torch.zeros(1, 1024, 66)
    tokens[0, torch.arange(1024), torch.arange(1024) // 16] = 1.0
    tokens = torch.cat([tokens[..., :64], position[None, :, None] * 1e-6, torch.zeros(1, 1024, 63)], dim=-1)
    merged = merge_tokens(tokens, 64, 1)
    assert merged[0, :, :64].argmax(dim=-1).tolist() == list(range(64))
    blocks = position.view(64, 16).mean(dim=1) * 1e-6
    assert_near(merged[0, :, 64], blocks, 1e-9)


def test_clips_do_not_touch_one_another():
    tokens = torch.randn(3, 256, 32, generator=torch.Generator().manual_seed(1))
    together = merge_tokens(tokens, 64, 4)
    for clip in range(3):
        assert torch.equal(merge_tokens(tokens[clip : clip + 1], 64, 4)[0], together[clip])


def test_gradients_pass_through_the_merge():
    tokens = torch.randn(1, 256, 16, generator=torch.Generator().manual_seed(2), requires_grad=True)
    merge_tokens(tokens, 64, 2).sum().backward()
    assert tokens.grad is not None and (tokens.grad != 0).any(dim=-1).all()


def test_a_static_video_stays_finite():
    frame = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(3))
    assert merge_tokens(frame.repeat(1, 4, 1), 64, 2).isfinite().all()
    assert merge_tokens(torch.zeros(1, 256, 16), 64, 2).isfinite().all()


def test_more_tokens_than_there_are_cannot_be_asked_for():
    with pytest.raises(ValueError, match="36 tokens cannot be merged into 64"):
        merge_schedule(36, 64)


def test_neighbouring_patches_are_gathered_as_in_the_native_model():
    native = InternVLModel(
        InternVLConfig(
            vision_config=InternVLVisionConfig(
                hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28
            ),
            text_config=LlamaConfig(
                vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
            ),
        )
    )
    grid = torch.randn(2, 6, 4, 8)
    assert torch.equal(space_to_depth(grid), native.pixel_shuffle(grid, scale_factor=0.5))
