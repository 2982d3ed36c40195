"""The guide's sample sets are read as they stand; its scripts and launch lines have commands that vidtune takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.families.nvila.guide import write_samples
from tests.guide_tables import code_commands, read_tables, together, words
from tests.helpers import ROOT, config
from vidtune.data.datamodule import BatchArithmetic
from vidtune.run.checks import check_config
from vidtune.run.sweep import expand
from vidtune.training.strategies import num_processes

TABLE = read_tables("nvila", "From the guide to our commands")
LAUNCH = ["experiment=nvila_mixture_full", "model.path=somewhere", "data.registry=somewhere", "data.sets=SampleQA"]
SCRIPTS = {
    "srun_fft_grouped": ("full", "full"),
    "srun_lora_vt_llm_grouped": ("lora", "lora"),
    "srun_lora_vt_llm_grouped_nf4": ("lora", "qlora"),
    "srun_ln_vt_lora_llm_grouped": ("layernorm", "lora"),
    "srun_ln_vt_lora_llm_grouped_nf4": ("layernorm", "qlora"),
    "srun_fft_vt_lora_llm_grouped": ("full", "lora"),
    "srun_lora_llm": ("frozen", "lora"),
    "srun_lora_llm_nf4": ("frozen", "qlora"),
    "srun_fft_vt": ("full", "frozen"),
    "srun_ln_vt": ("layernorm", "frozen"),
}
"""The guide's scripts: what they do to tower and language model; the projector is fully tuned in all of them."""


def test_the_guides_samples_are_read_as_they_stand(shapes: Path, tmp_path: Path) -> None:
    sets = write_samples(tmp_path / "sets", next(shapes.rglob("*.mp4")))
    cfg = config("train", ["experiment=nvila_mixture_full", "model=nvila_tiny", *sets, "global_batch_size=4"])
    samples = instantiate(cfg.data.reader)("train")
    first = {sample.sample_id: sample for sample in samples if "#" not in sample.sample_id}
    assert set(first) == {"SampleQA/1", "SampleQA/2", "SampleVideo/1", "SampleText/1"}
    image, video = first["SampleQA/1"], first["SampleVideo/1"]
    # The tag that the rows lack is put first; the question follows as it is.
    assert image.messages[0].content == (image.media[0], "What can you see in the image")
    assert (image.media[0].kind, image.media[0].tiled) == ("image", True)
    assert video.media[0].path == str(tmp_path / "sets/sample-video/videos/1.mp4")
    assert first["SampleText/1"].answer == "Squats, on a chair." and len(first["SampleText/1"].messages) == 4
    # Each set is filled up to the global batch, as there.
    assert [sum(s.source == name for s in samples) for name in ("SampleQA", "SampleText", "SampleVideo")] == [4] * 3


def test_global_batch_and_accumulation_of_the_guides_launch_take_effect() -> None:
    """Its own script overwrites both: 2048 samples a step, 128 a device."""
    cfg = config("train", [*LAUNCH, "hardware=h100x8", "strategy=zero3", "run_name=NVILA-Lite-8B-finetune-trial"])
    batch = BatchArithmetic.derive(
        cfg.global_batch_size, cfg.micro_batch_size, cfg.accumulation, num_processes(cfg.hardware)
    )
    assert (batch.accumulation, batch.processes, batch.micro_batch_size) == (2, 8, 4)
    assert cfg.run_name == "NVILA-Lite-8B-finetune-trial" and cfg.strategy.name == "zero3"


def test_each_of_the_guides_scripts_has_its_setting() -> None:
    rows = (ROOT / "docs/nvila.md").read_text().splitlines()
    for script, modes in SCRIPTS.items():
        (row,) = [line for line in rows if f"`{script}` |" in line]
        (name,) = re.findall(r"`tuning=(\w+)`", row)
        tuning = OmegaConf.load(ROOT / f"conf/tuning/{name}.yaml")
        assert (tuning.vision.mode, tuning.language.mode, tuning.connector.mode) == (*modes, "full"), script
        assert tuning.language.get("rank") == (16 if "lora" in modes[1] else None)


def test_one_command_runs_all_ten_rows() -> None:
    (command,) = [line for line in code_commands("nvila") if line.startswith("python train.py -m ")]
    overrides = [word for word in words(command)[3:] if not word.startswith("run_name=")]
    jobs = expand(overrides, Path("sweep"))
    modes = []
    for job in jobs:
        cfg = config("train", list(job.overrides))
        check_config(cfg)
        modes.append((cfg.tuning.vision.mode, cfg.tuning.language.mode))
    assert sorted(modes) == sorted(SCRIPTS.values()) and len({job.folder for job in jobs}) == 10


def test_the_table_has_every_line_of_the_guide() -> None:
    for line in (
        *("sft.sh", "DEFAULT_RUN_NAME", "DEFAULT_GLOBAL_TRAIN_BATCH_SIZE", "DEFAULT_GRADIENT_ACCUMULATION_STEPS"),
        *("SampleQA+SampleVideo+SampleOCR", "llava.data.LLaVADataset", "is_video", "runs/train", "5-50x", "24 GB"),
        *("zero3.json", "--max_tiles", "--num_video_frames"),
    ):
        assert line in TABLE.lines, line
    assert len(TABLE.commands) >= 3 and len(TABLE.settings) >= 15


@pytest.mark.parametrize("command", TABLE.commands)
def test_a_command_of_the_table_passes_all_checks(command: str) -> None:
    _, script, *overrides = words(command)
    cfg = config("evaluate" if script == "evaluate.py" else "train", overrides)
    if script == "train.py":
        check_config(cfg)


@pytest.mark.parametrize("settings", together(TABLE.settings), ids=" ".join)
def test_settings_of_the_table_are_accepted_beside_the_recipe(settings: list[str]) -> None:
    # A DeepSpeed file is read when the strategy is built: any JSON will do.
    given = [word.replace("config=somewhere", f"config={ROOT}/conf/model_memory.json") for word in settings]
    own = [
        word for word in [*LAUNCH, "strategy=zero3"] if not any(w.startswith(word.split("=")[0] + "=") for w in given)
    ]
    check_config(config("train", [*own, "hardware=h100x8", *given]))
