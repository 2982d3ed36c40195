"""What the docs promise to users of the guide: its commands, and every argument of its training command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from tests.guide_tables import check_departures, differences, overrides, settings, spans, table
from tests.helpers import config
from vidtune.commands.main import main as vidtune
from vidtune.data.datamodule import BatchArithmetic
from vidtune.run.checks import check_config
from vidtune.run.departures import describe_departures
from vidtune.run.hardware import apply_hardware
from vidtune.training.strategies import num_processes

COMMANDS = [span for row in table("video_chatgpt", "From the guide to our commands") for span in spans(row[1])]
ARGUMENTS = table("video_chatgpt", "The guide's arguments, one by one")
RECIPE = ["experiment=video_chatgpt_100k_connector"]
TYPED = ["model.path=LLaVA-7B-Lightening-v1-1", "data.root=video_chatgpt"]

# The guide's torchrun command.
GUIDE = {
    "--nproc_per_node": "8",
    "--master_port": "29001",
    "--model_name_or_path": "",
    "--version": "v1",
    "--data_path": "video_chatgpt_training.json",
    "--video_folder": "",
    "--tune_mm_mlp_adapter": "True",
    "--mm_use_vid_start_end": "",
    "--bf16": "True",
    "--output_dir": "./Video-ChatGPT_7B-1.1_Checkpoints",
    "--num_train_epochs": "3",
    "--per_device_train_batch_size": "4",
    "--per_device_eval_batch_size": "4",
    "--gradient_accumulation_steps": "1",
    "--evaluation_strategy": "no",
    "--save_strategy": "steps",
    "--save_steps": "3000",
    "--save_total_limit": "3",
    "--learning_rate": "2e-5",
    "--weight_decay": "0.",
    "--warmup_ratio": "0.03",
    "--lr_scheduler_type": "cosine",
    "--logging_steps": "100",
    "--tf32": "True",
    "--model_max_length": "2048",
    "--gradient_checkpointing": "True",
    "--lazy_preprocess": "True",
}
WITHOUT_KEY = {"--master_port", "--lazy_preprocess"}


def test_the_table_holds_every_argument_of_the_guides_command() -> None:
    found: dict[str, str] = {}
    for row in ARGUMENTS:
        names, values = spans(row[0]), spans(row[1])
        found |= dict(zip(names, values or [""] * len(names), strict=True))
    assert found == GUIDE
    assert {spans(row[0])[0] for row in ARGUMENTS if not settings(row[2])} == WITHOUT_KEY


def test_the_recipe_has_every_value_that_the_table_states() -> None:
    words = [*RECIPE, *TYPED, "hardware=h100x8", "paths.runs_dir=Video-ChatGPT_7B-1.1_Checkpoints"]
    assert differences(words, [row[2] for row in ARGUMENTS]) == {}


def test_the_start_log_says_where_the_recipe_departs_and_keys_restore_the_original() -> None:
    assert check_departures([*RECIPE, *TYPED, "hardware=a100_80gb"]) == {"frozen_dtype", "batch"}


@pytest.mark.parametrize("note", [row[3] for row in ARGUMENTS if settings(row[3])], ids=lambda note: settings(note)[0])
def test_what_the_table_offers_beside_it_is_accepted(note: str) -> None:
    for setting in settings(note):
        check_config(config("train", [*RECIPE, *TYPED, "hardware=h100x8", setting]))


@pytest.mark.parametrize("command", [command for command in COMMANDS if "train.py" in command])
def test_training_commands_compose_with_the_original_batch_on_any_number_of_devices(command: str) -> None:
    cfg = config("train", overrides(command))
    check_config(cfg)
    batch = BatchArithmetic.derive(
        cfg.global_batch_size, cfg.micro_batch_size, cfg.accumulation, num_processes(cfg.hardware)
    )
    assert (batch.global_batch_size, batch.micro_batch_size) == (32, 4)
    assert batch.accumulation == 32 // (4 * cfg.hardware.devices)
    for count in re.findall(r"--nproc_per_node=(\d+)", command):
        assert cfg.hardware.devices == int(count) and cfg.run_name


def test_a_card_of_24_gb_holds_the_recipe_with_what_trains_in_float32() -> None:
    """Bytes of the static parts as written down for four rows of 600 tokens: weights in bf16, gradients and moments of
    4.2 M trained values, inputs of checkpointed layers, one layer computed again, and full logits."""
    cfg = config("train", [*RECIPE, *TYPED, "hardware=rtx4090"])
    assert cfg.model.dtype == "bfloat16" and cfg.hardware.precision == "bf16-mixed"
    assert cfg.hardware.activation_checkpointing
    tokens = 4 * 600
    needed = 2 * cfg.model.num_parameters * 1e9 + 16 * 4_206_592 + tokens * (32 * 8192 + 200_000 + 14 * 32_006)
    assert needed < 0.8 * cfg.hardware.memory_gb * 1e9


@pytest.mark.parametrize("command", [command for command in COMMANDS if "evaluate.py" in command])
def test_evaluation_commands_compose(command: str) -> None:
    cfg = config("evaluate", overrides(command))
    assert cfg.run and cfg.data.task.name == "judged_answer"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("vidtune ")])
def test_a_verb_reads_its_command_line_and_says_what_is_missing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert vidtune(shlex.split(command)[1:]) == 1
    assert capsys.readouterr().err.startswith("vidtune: ")


def test_settings_of_the_commands_table_are_keys() -> None:
    for span in COMMANDS:
        if "=" in span and " " not in span:
            check_config(config("train", [*RECIPE, *TYPED, "hardware=a100_80gb", span]))


def test_tf32_is_set_for_the_process_as_the_recipe_says() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for setting, precision in (("hardware.tf32=true", "high"), ("hardware.tf32=false", "highest")):
            apply_hardware(config("train", [*RECIPE, *TYPED, "hardware=a100_80gb", setting]).hardware)
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_rows_that_all_show_the_video_first_are_marked_as_a_departure() -> None:
    words = [*RECIPE, *TYPED, "hardware=a100_80gb"]
    marked = describe_departures(config("train", [*words, "data.media_placement=video_first"]))
    assert "restored by data.media_placement=original" in marked
    assert "media_placement" not in describe_departures(config("train", words))
