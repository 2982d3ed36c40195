"""What is float32, bf16 or float16 while a run trains, and which modules are in training mode."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from tests.helpers import config, small_run
from tests.integration.test_train_and_evaluate import losses
from vidtune.checkpoint.locate import find_checkpoint
from vidtune.contracts import UserError
from vidtune.run import train
from vidtune.run.build import build_network
from vidtune.run.checks import check_config
from vidtune.run.train import RUN_DIR_VARIABLE
from vidtune.training.module import NonFiniteError


class Look(L.Callback):
    """Notes types and modes in the middle of training."""

    seen: ClassVar[dict[str, Any]] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        parameters = dict(pl_module.network.named_parameters())
        Look.seen = {
            "trained": {p.dtype for p in parameters.values() if p.requires_grad},
            "frozen": {name: p.dtype for name, p in parameters.items() if not p.requires_grad},
            "training": {name for name, module in pl_module.network.named_modules() if module.training},
        }


@pytest.fixture(autouse=True)
def own_run_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs of one test process choose their own folders."""
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    yield
    os.environ.pop(RUN_DIR_VARIABLE, None)


def run(*overrides: str) -> dict[str, float]:
    return train(config("train", overrides), overrides)


LOOK = "+callbacks.look={_target_: tests.integration.test_precision.Look}"


@pytest.mark.parametrize("tuning", ["lora", "qlora", "vision_layernorm_language_lora"])
def test_a_frozen_bf16_base_is_never_upcast_and_what_trains_is_float32(
    shapes: Path, cache_dir: Path, tmp_path: Path, tuning: str
) -> None:
    words = [f"tuning={tuning}", "model.dtype=bfloat16", "hardware.precision=bf16-mixed", "trainer.max_steps=2"]
    run(*small_run(shapes, cache_dir, tmp_path, "run_name=run", LOOK, *words))
    assert Look.seen["trained"] == {torch.float32}
    types = Look.seen["frozen"]
    four_bit = {name for name, dtype in types.items() if dtype == torch.uint8}
    assert len(four_bit) == (21 if tuning == "qlora" else 0)
    assert {dtype for name, dtype in types.items() if name not in four_bit} == {torch.bfloat16}
    assert {"language.lm_head.weight", "language.model.embed_tokens.weight"} <= types.keys() - four_bit
    checkpoint = torch.load(find_checkpoint(tmp_path / "run", "last"), weights_only=True)
    assert {tensor.dtype for tensor in checkpoint["state_dict"].values()} == {torch.float32}
    moments = [v for state in checkpoint["optimizer_states"][0]["state"].values() for v in state.values()]
    assert {moment.dtype for moment in moments} == {torch.float32}
    assert len(moments) == 3 * len(checkpoint["state_dict"])


def test_a_recipe_may_train_in_bf16_and_small_steps_are_then_lost(
    shapes: Path, cache_dir: Path, tmp_path: Path
) -> None:
    """AdamW moves every weight by about the learning rate at its first step; bf16 has eight bits for it."""
    changed = {}
    for dtype in ("float32", "bfloat16"):
        start = {"optim.lr": "1e-5", "optim.weight_decay": "0", "optim.schedule.warmup_steps": "0"}
        words = ["trainer.max_steps=1", "hardware.precision=bf16-mixed", *(f"{k}={v}" for k, v in start.items())]
        words += [f"tuning.{role}.dtype={dtype}" for role in ("vision", "connector", "language")]
        run(*small_run(shapes, cache_dir, tmp_path, f"run_name={dtype}", LOOK, *words))
        os.environ.pop(RUN_DIR_VARIABLE, None)
        assert Look.seen["trained"] == {getattr(torch, dtype)}
        checkpoint = torch.load(find_checkpoint(tmp_path / dtype, "last"), weights_only=True)
        states = checkpoint["optimizer_states"][0]["state"].values()
        assert {state[name].dtype for state in states for name in ("exp_avg", "exp_avg_sq")} == {getattr(torch, dtype)}
        trained, name = checkpoint["state_dict"], "language.model.layers.0.mlp.up_proj.weight"
        untrained = build_network(config("train", small_run(shapes, cache_dir, tmp_path)))
        before = untrained.get_parameter(name).to(getattr(torch, dtype))
        changed[dtype] = float((trained[f"network.{name}"] != before).float().mean())
    assert changed["float32"] > 0.95 and changed["bfloat16"] < 0.5


def test_trained_types_that_nothing_keeps_are_refused() -> None:
    words = ["tuning=lora", "hardware=cpu"]
    with pytest.raises(UserError, match=r"tuning\.language\.dtype='float16'; choose one of float32, bfloat16"):
        check_config(config("train", [*words, "tuning.language.dtype=float16"]))
    with pytest.raises(UserError, match="DeepSpeed keeps float32 weights and moments whatever it is given"):
        check_config(config("train", [*words, "tuning.language.dtype=bfloat16", "strategy=zero2"]))


def test_frozen_parts_of_a_run_are_in_eval_mode(shapes: Path, cache_dir: Path, tmp_path: Path) -> None:
    words = ["tuning=lora", "tuning.language.freeze_layers=0", "trainer.max_steps=1"]
    run(*small_run(shapes, cache_dir, tmp_path, "run_name=run", LOOK, *words))
    training = Look.seen["training"]
    assert not [name for name in training if name.startswith("vision")]
    assert not [name for name in training if name.startswith("language.model.layers.0.")]
    assert "connector" in training and "language.model.layers.1.self_attn.q_proj" in training


def test_a_frozen_language_model_still_saves_activation_memory(shapes: Path, cache_dir: Path, tmp_path: Path) -> None:
    words = ["tuning=connector", "hardware.activation_checkpointing=true", "trainer.max_steps=1"]
    run(*small_run(shapes, cache_dir, tmp_path, "run_name=run", LOOK, *words))
    # transformers computes activations again in layers that are in training mode only; nothing inside them is.
    language = {name for name in Look.seen["training"] if name.startswith("language")}
    assert {f"language.model.layers.{k}" for k in range(3)} <= language
    assert not [name for name in language if name.startswith("language.model.layers.0.")]


def test_loss_scaling_is_refused_on_a_cpu_and_composes_for_a_gpu() -> None:
    words = ["hardware.precision=16-mixed", "global_batch_size=8", "micro_batch_size=4"]
    with pytest.raises(UserError, match="scales the loss for GPUs without bf16"):
        check_config(config("train", [*words, "hardware=cpu"]))
    check_config(config("train", [*words, "hardware=rtx4090"]))


@pytest.mark.parametrize("scale", [2.0**24, 2.0**-30])
def test_a_step_that_overflows_float16_is_left_out_until_no_scale_is_left(
    shapes: Path, cache_dir: Path, tmp_path: Path, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    monkeypatch.setattr(sys.modules["vidtune.run.train"], "precision_plugins", lambda *_: [plugin])
    words = small_run(shapes, cache_dir, tmp_path, "run_name=run", "trainer.max_steps=20", "trainer.val_every=20")
    words += ["optim.lr=3e-3"]
    if scale < 1:
        with pytest.raises(NonFiniteError, match="every loss scale down to 1"):
            run(*words)
        return
    run(*words)
    assert 1 < scaler.get_scale() < scale
    values = [float(value) for _, value in sorted(losses(tmp_path / "run").items())]
    assert values[-1] < values[0]
