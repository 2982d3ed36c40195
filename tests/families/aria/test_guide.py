"""Every command and setting in the docs' table "line of the guide, our command" is one that vidtune takes."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.helpers import ROOT, config
from vidtune.commands.main import main as vidtune
from vidtune.run.checks import check_config

TABLE = (ROOT / "docs/aria.md").read_text().split("| line of the guide | our command |")[1].split("\n\n")[0]
GUIDE = [line for line in TABLE.splitlines() if "`" in line]
SPANS = [span for row in GUIDE for span in re.findall(r"`([^`]+)`", row.split("|")[2])]
COMMANDS = [span for span in SPANS if span.startswith(("python ", "vidtune "))]
SETTINGS = [span for span in SPANS if span not in COMMANDS]


def test_the_table_covers_the_guides_commands_settings_and_results() -> None:
    lines = " ".join(row.split("|")[1] for row in GUIDE)
    for word in (
        *("download_data_hf.py", "unzip NExTVideo.zip", "config_lora.yaml", "zero3_offload.yaml", "config_full.yaml"),
        *("--output_dir", "max_image_size", "freeze_vit", "freeze_projector", "lora_target_modules"),
        *("freeze_llm_layers", "zero_to_fp32.py", "evaluation.py", "--peft_model_path", "--image_size", "loss curves"),
    ):
        assert word in lines, word
    assert len(COMMANDS) >= 12 and len(SETTINGS) >= 15


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python ")])
def test_a_command_of_the_table_composes_and_passes_all_checks(command: str) -> None:
    _, script, *overrides = shlex.split(command)
    if script == "train.py":
        check_config(config("train", overrides))
        return
    cfg = config("evaluate", overrides)
    if not cfg.run:  # a run brings its own model
        check_config(cfg)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_of_the_table_is_accepted_beside_the_recipe(setting: str) -> None:
    overrides = shlex.split(setting)
    cfg = config("train", ["experiment=aria_nextqa_lora", "hardware=a100_80gb", *overrides])
    check_config(cfg)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("vidtune ")])
def test_a_verb_of_the_table_reads_its_command_line(command: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert vidtune(shlex.split(command)[1:]) == 1
    error = capsys.readouterr().err
    assert re.search(r"cannot be downloaded|holds neither|does not exist", error), error


def test_as_typed_eight_cards_take_the_global_batch_of_the_original() -> None:
    words = ["model=aria", "data=nextqa", "strategy=zero3_offload"]
    assert config("train", words).accumulation == 4
    check_config(config("train", [*words, "hardware=h100x8"]))
