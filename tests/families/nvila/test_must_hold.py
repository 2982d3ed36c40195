"""What fine-tuning NVILA has lost silently elsewhere: precision behind QLoRA, tuned weights on reload, a way out of a
set of broken clips."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.families.nvila.guide import write_samples
from tests.helpers import config
from vidtune.checkpoint.locate import find_checkpoint
from vidtune.checkpoint.trained import load_trained
from vidtune.contracts import UserError
from vidtune.run import train
from vidtune.run.build import build_tuned_network, prepare
from vidtune.run.train import RUN_DIR_VARIABLE


def settings(cache_dir: Path, runs: Path, *overrides: str) -> list[str]:
    return [
        *("experiment=nvila_mixture_full", "model=nvila_tiny", "hardware=cpu", "strategy=single"),
        *("data.num_workers=0", "global_batch_size=4", "accumulation=2", "trainer.max_steps=1"),
        *(f"paths.runs_dir={runs}", f"paths.cache_dir={cache_dir}", *overrides),
    ]


def run(words: list[str]) -> None:
    os.environ.pop(RUN_DIR_VARIABLE, None)
    try:
        train(config("train", words), words)
    finally:
        os.environ.pop(RUN_DIR_VARIABLE, None)


def test_qlora_leaves_embedding_head_and_tower_in_bfloat16(cache_dir: Path, tmp_path: Path) -> None:
    words = ["tuning=vision_layernorm_language_qlora", "model.dtype=bfloat16", "data.registry=x", "data.sets=x"]
    cfg = config("train", settings(cache_dir, tmp_path, *words))
    prepare(cfg)
    network, _ = build_tuned_network(cfg)
    dtypes = {name: parameter.dtype for name, parameter in network.named_parameters() if not parameter.requires_grad}
    for name in ("language.model.embed_tokens.weight", "language.lm_head.weight", "language.model.norm.weight"):
        assert dtypes[name] == torch.bfloat16, name
    four_bit = {name for name, dtype in dtypes.items() if dtype == torch.uint8}
    assert len(four_bit) == 3 * 7 and all(".self_attn." in name or ".mlp." in name for name in four_bit)
    assert set(dtypes.values()) == {torch.bfloat16, torch.uint8}
    assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}


def test_a_reload_brings_back_projector_and_layernorm_weights(shapes: Path, cache_dir: Path, tmp_path: Path) -> None:
    sets = write_samples(tmp_path / "sets", next(shapes.rglob("*.mp4")))
    words = settings(cache_dir, tmp_path, *sets, "run_name=run", "tuning=vision_layernorm_language_qlora")
    run([*words, "optim.lr=1e-2", "optim.schedule.warmup_ratio=0", "trainer.checkpoint_every=1"])
    checkpoint = find_checkpoint(tmp_path / "run", "last")
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    network, _ = build_tuned_network(config("train", words))
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    assert load_trained(network, checkpoint) == 1
    after = dict(network.named_parameters())
    for part in ("connector.", "layer_norm1.weight", "lora_B"):
        names = [name for name in after if part in name and f"network.{name}" in saved]
        assert names and any(not torch.equal(after[name], before[name]) for name in names), part
        assert all(torch.equal(after[name], saved[f"network.{name}"]) for name in names), part
    assert len(saved) == sum(parameter.requires_grad for parameter in after.values())


@pytest.mark.parametrize("bound", ["0.01", "1.0"])
def test_a_set_whose_clips_are_all_broken_ends_with_an_error(
    bound: str, shapes: Path, cache_dir: Path, tmp_path: Path
) -> None:
    """There, another row is drawn until one can be read."""
    sets = write_samples(tmp_path / "sets", next(shapes.rglob("*.mp4")))
    (tmp_path / "sets/sample-video/videos/1.mp4").write_bytes(b"no video")
    words = settings(cache_dir, tmp_path, *sets, "data.sets=SampleVideo", f"media.max_bad_fraction={bound}")
    with pytest.raises(UserError, match=r"1 of 1 media cannot be opened|nothing is left to train on"):
        run(words)
