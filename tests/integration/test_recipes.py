"""The recipes: the originals' values, and two steps of each on its tiny variant and generated data."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from tests.helpers import ROOT, config
from vidtune.data.prepare import get_preparation
from vidtune.data.prepare.nextqa import COLUMNS
from vidtune.run import train
from vidtune.run.checks import check_config
from vidtune.run.departures import in_force
from vidtune.run.train import RUN_DIR_VARIABLE
from vidtune.training.schedules import build_schedule

RECIPES = sorted(path.stem for path in (ROOT / "conf/experiment").glob("*.yaml"))
QUIET = Console(quiet=True)

ADAMW = {"optim.optimizer.betas": [0.9, 0.999], "optim.optimizer.eps": 1e-8}
ARIA = {
    "micro_batch_size": 4,
    "optim.weight_decay": 0.1,
    "optim.optimizer.betas": [0.9, 0.95],
    "optim.schedule.name": "cosine",
    "optim.schedule.warmup_ratio": 0.01,
    "trainer.epochs": 1,
    "trainer.grad_clip": 1.0,
    "trainer.log_every": 1,
    "data.num_frames": 8,
    "data.sampling": "stride",
    "model.processor.max_image_size": 490,
    "model.max_length": 4096,
    "model.network.moe_z_loss_coeff": 1e-5,
    "model.network.moe_aux_loss_coeff": 1e-4,
    "tuning.vision.mode": "frozen",
    "batch.reduction": "token",
    "seed": 42,
}
QEVD = ADAMW | {
    "global_batch_size": 8,
    "micro_batch_size": 1,
    "optim.weight_decay": 0.01,
    "optim.schedule.name": "ramped_cosine",
    "optim.schedule.warmup_ratio": 0.03,
    "optim.schedule.warmup_rounding": "down",
    "trainer.epochs": 3,
    "trainer.grad_clip": 1.0,
    "trainer.log_every": 10,
    "trainer.checkpoint_every_epochs": 0.25,
    "hardware.selective_recompute": 1.0,
    "data.num_frames": 8,
    "data.sampling": "middle",
    "model.max_length": 8192,
    "batch.reduction": "sample",
    "tuning.vision.mode": "frozen",
    "tuning.connector.mode": "full",
    "seed": 42,
}
LORA_16 = {"tuning.language.rank": 16, "tuning.language.alpha": 32, "tuning.language.dropout": 0.05, "optim.lr": 4e-5}
PUBLISHED: dict[str, dict[str, Any]] = {
    "aria_nextqa_lora": ARIA
    | {
        "global_batch_size": 16,
        "optim.lr": 5e-5,
        "tuning.connector.mode": "frozen",
        "tuning.language.mode": "lora",
        "tuning.language.rank": 8,
        "tuning.language.alpha": 32,
        "tuning.language.dropout": 0.05,
    },
    "aria_nextqa_full": ARIA
    | {
        "global_batch_size": 128,
        "optim.lr": 5e-6,
        "tuning.connector.mode": "full",
        "tuning.language.mode": "full",
    },
    "nvila_mixture_full": ADAMW
    | {
        "global_batch_size": 64,
        "accumulation": 2,
        "optim.lr": 2e-5,
        "optim.weight_decay": 0.0,
        "optim.schedule.name": "cosine",
        "optim.schedule.warmup_ratio": 0.03,
        "trainer.epochs": 1,
        "trainer.grad_clip": None,
        "trainer.checkpoint_every": 100,
        "trainer.keep_checkpoints": 1,
        "trainer.log_every": 1,
        "data.mixing": "nvila",
        "data.num_frames": 8,
        "data.num_workers": 16,
        "model.max_length": 4096,
        "tuning.vision.mode": "full",
        "tuning.connector.mode": "full",
        "tuning.language.mode": "full",
        "batch.reduction": "token",
    },
    "nvila_mixture_qlora": ADAMW
    | {
        "global_batch_size": 64,
        "micro_batch_size": 1,
        "optim.lr": 3e-5,
        "optim.weight_decay": 0.0,
        "trainer.epochs": 1,
        "data.mixing": "nvila",
        "tuning.vision.mode": "layernorm",
        "tuning.connector.mode": "full",
        "tuning.language.mode": "qlora",
        "tuning.language.rank": 16,
        "tuning.language.alpha": 32,
        "tuning.language.dropout": 0.05,
    },
    "video_chatgpt_100k_connector": ADAMW
    | {
        "global_batch_size": 32,
        "micro_batch_size": 4,
        "optim.lr": 2e-5,
        "optim.weight_decay": 0.0,
        "optim.schedule.name": "cosine",
        "optim.schedule.warmup_ratio": 0.03,
        "trainer.epochs": 3,
        "trainer.grad_clip": 1.0,
        "trainer.checkpoint_every": 3000,
        "trainer.keep_checkpoints": 3,
        "trainer.log_every": 100,
        "data.num_frames": 100,
        "data.media_placement": "original",
        "model.max_length": 2048,
        "hardware.activation_checkpointing": True,
        "hardware.tf32": True,
        "tuning.vision.mode": "frozen",
        "tuning.connector.mode": "full",
        "tuning.language.mode": "frozen",
        "tuning.new_tokens.mode": "full",
        "seed": 42,
    },
    "video_llama_actions_connector": ADAMW
    | {
        "micro_batch_size": 4,
        "accumulation": 1,
        "optim.lr": 3e-5,
        "optim.weight_decay": 0.05,
        "trainer.max_steps": 3000,
        "trainer.grad_clip": None,
        "data.num_frames": 8,
        "data.num_workers": 4,
        "data.sampling": "segment_starts",
        "model.max_length": 320,
        "model.network.sizes.image_size": 224,
        "model.network.sizes.video_layers": 2,
        "model.network.sizes.max_frames": 32,
        "model.network.sizes.num_video_queries": 32,
        "model.network.audio_branch": False,
        "model.processor.random_crop": True,
        "tuning.vision.mode": "frozen",
        "tuning.connector.mode": "full",
        "tuning.language.mode": "frozen",
        "seed": 42,
    },
    "internvideo25_qevd_lora": QEVD | LORA_16 | {"tuning.language.mode": "lora"},
    "internvideo25_qevd_qlora": QEVD | LORA_16 | {"tuning.language.mode": "qlora"},
    "internvideo25_qevd_full": QEVD
    | {"optim.lr": 1e-5, "tuning.language.mode": "full", "tuning.connector.lr_ratio": 1},
}
"""Values of the originals' own files and of the guides; the recipes' headers name them."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_holds_the_values_of_its_original(recipe: str) -> None:
    cfg = config("train", [f"experiment={recipe}", "++model.path=weights", "++data.root=data"])
    found = {key: OmegaConf.select(cfg, key) for key in PUBLISHED[recipe]}
    assert {key: list(v) if OmegaConf.is_list(v) else v for key, v in found.items()} == PUBLISHED[recipe]
    assert cfg.batch.questions_per_video == 1  # sharing changes which questions meet in a step


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_how_to_run_it_what_it_needs_and_where_it_departs(recipe: str) -> None:
    text = (ROOT / f"conf/experiment/{recipe}.yaml").read_text()
    for word in ("Command:", "Hardware:", "Source:", "Expected:", "Departures", f"experiment={recipe}"):
        assert word in text, word


def test_the_learning_rate_of_the_actions_recipe_follows_the_originals_table() -> None:
    schedule = config("train", ["experiment=video_llama_actions_connector"]).optim.schedule
    options = {key: value for key, value in schedule.items() if not key.startswith("_")}
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=3e-5)
    factor = build_schedule(optimizer, 3000, **options).lr_lambdas[0]
    table = {0: 1e-6, 1: 1.029e-6, 500: 1.55e-5, 999: 2.9971e-5, 1000: 2.5e-5, 2000: 1.5e-5, 2999: 1.00000055e-5}
    for step, rate in table.items():
        assert 3e-5 * factor(step) == pytest.approx(rate, rel=1e-6), step


# ------------------------------------------------------------------------------------------ two steps of each


def nextqa(root: Path, clips: list[Path]) -> list[str]:
    (root / "NExTVideo/0001").mkdir(parents=True)
    names = {str(number): f"0001/{number}" for number in range(4)}
    (root / "map_vid_vidorID.json").write_text(json.dumps(names))
    for number, clip in zip(range(4), clips):
        shutil.copy(clip, root / f"NExTVideo/0001/{number}.mp4")
    lines = [f"{n % 4},300,640,480,what is {n},{n % 5},{n},CW,a,b,c,d,e" for n in range(8)]
    for split in ("train", "val"):
        (root / f"{split}.csv").write_text(
            "\n".join([",".join(COLUMNS).replace(",question", ",frame_count,width,height,question"), *lines]) + "\n"
        )
    get_preparation("nextqa").prepare(root, {}, QUIET)
    return [f"data.root={root}"]


def actions(root: Path, clips: list[Path]) -> list[str]:
    for number, clip in enumerate(clips):
        for split in ("train", "val", "test"):
            folder = root / split / ("Fall_Down" if number % 2 else "Walking")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(clip, folder)
    get_preparation("actions").prepare(root, {"min_frames": "0"}, QUIET)
    return [f"data.root={root}"]


def qevd(root: Path, clips: list[Path]) -> list[str]:
    (root / "squats").mkdir(parents=True)
    manifest, truth = {}, []
    for number in range(10):
        shutil.copy(clips[number % len(clips)], root / f"squats/{number:08d}.mp4")
        manifest[f"squats/{number:08d}.mp4"] = "squats"
        truth.append({"video_path": f"./{number:08d}.mp4", "labels": ["squats - average"], "labels_descriptive": []})
    (root / "manifest.json").write_text(json.dumps(manifest))
    (root / "ground_truth.json").write_text(json.dumps(truth))
    get_preparation("qevd").prepare(root, {"split": "guide"}, QUIET)
    return [f"data.root={root}"]


def video_instruct(root: Path, clips: list[Path]) -> list[str]:
    (root / "videos").mkdir(parents=True)
    for number, clip in enumerate(clips):
        shutil.copy(clip, root / f"videos/v_{number:011d}.mp4")
    rows = [{"q": f"what {n}?", "a": "It moves.", "video_id": f"v_{n % len(clips):011d}"} for n in range(8)]
    (root / "VideoInstruct100K.json").write_text(json.dumps(rows))
    get_preparation("video_instruct_100k").prepare(root, {}, QUIET)
    return [f"data.root={root}"]


def mixture(root: Path, clips: list[Path]) -> list[str]:
    root.mkdir()
    turns = [{"from": "human", "value": "What moves?"}, {"from": "gpt", "value": "A shape."}]
    shutil.copy(clips[0], root / "clip.mp4")
    (root / "video.json").write_text(json.dumps([{"video": "clip.mp4", "conversations": turns}]))
    (root / "text.json").write_text(json.dumps([{"conversations": turns}]))
    (root / "sets.yaml").write_text(
        "".join(
            f"{name}: {{_target_: llava.data.LLaVADataset, data_path: {root}/{name}.json, media_dir: {root}}}\n"
            for name in ("video", "text")
        )
    )
    return [f"data.registry={root}/sets.yaml", "data.sets=video+text"]


DATA = {"nextqa": nextqa, "actions": actions, "qevd": qevd, "video_instruct_100k": video_instruct, "mixture": mixture}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_on_the_tiny_variant(
    recipe: str, shapes: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Read and put back: ``train`` sets it for the processes that it starts.
    monkeypatch.setenv(RUN_DIR_VARIABLE, "")
    chosen = config("train", [f"experiment={recipe}", "++data.root=data"])
    family, data = chosen.model.name, chosen.data.name
    clips = sorted(shapes.rglob("*.mp4"))[:4]
    overrides = [
        f"experiment={recipe}",
        f"model={family}_tiny",
        *DATA[data](tmp_path / "data", clips),
        "hardware=cpu",
        "debug=one_batch",
        "global_batch_size=4",
        "micro_batch_size=2",
        "accumulation=2",
        f"paths.runs_dir={tmp_path}",
        f"paths.cache_dir={cache_dir}",
        "run_name=run",
    ]
    metrics = train(config("train", overrides), overrides)
    assert metrics["train/loss"] > 0
    log = (tmp_path / "run/log.txt").read_text()
    # The tiny variant's type, or the batch of the test, may be the original's.
    assert all(departure.here in log for departure in in_force(config("train", overrides)).values())
    trained = torch.load(next((tmp_path / "run/checkpoints").glob("step_000002.ckpt")), weights_only=True)["state_dict"]
    roles = {name.split(".")[1] for name in trained}
    tuning = chosen.tuning
    expected = {role for role in ("vision", "connector", "language") if tuning[role].mode != "frozen"}
    assert roles - {"new_tokens"} == expected


def commands(recipe: str) -> list[list[str]]:
    """The words behind ``python train.py`` in a recipe's header, placeholders filled in."""
    lines = (ROOT / f"conf/experiment/{recipe}.yaml").read_text().split("# Command:")[1].split("# Hardware:")[0]
    text = re.sub(r"<[^>]*>", "somewhere", lines.replace("\n#", " "))
    return [shlex.split(part.split("   one card:")[0].split("   two cards:")[0]) for part in text.split("train.py")[1:]]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_in_a_recipes_header_is_accepted(recipe: str) -> None:
    """Composition, targets, batch arithmetic, strategy and memory of the named hardware."""
    assert commands(recipe)
    for overrides in commands(recipe):
        check_config(config("train", overrides))
