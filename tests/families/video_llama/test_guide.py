"""What the docs promise to users of the guide: its commands, and every value of its YAML."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.guide_tables import check_departures, differences, overrides, settings, spans, table
from tests.helpers import ROOT, config
from vidtune.commands.main import main as vidtune
from vidtune.run.checks import check_config

COMMANDS = [span for row in table("video_llama", "From the guide to our commands") for span in spans(row[1])]
TRAINING = [command for command in COMMANDS if "train.py" in command]
VALUES = table("video_llama", "The guide's YAML, value by value")

# Every leaf of the guide's file, with its value as written there.
WEBVID = "datasets.webvid_instruct"
GUIDE = {
    "model.arch": "video_llama",
    "model.model_type": "pretrain_llama_v2",
    "model.freeze_vit": "True",
    "model.freeze_qformer": "True",
    "model.num_query_token": "32",
    "model.llama_model": "meta-llama/Llama-2-7b-chat-hf",
    "model.ckpt": "ckpts/VL_LLaMA_2_7B_Pretrained.pth",
    "model.equip_audio_branch": "False",
    "model.frozen_llama_proj": "False",
    "model.frozen_video_Qformer": "False",
    "model.frozen_audio_Qformer": "True",
    "model.fusion_head_layers": "2",
    "model.max_frame_pos": "32",
    "model.fusion_header_type": "seqTransf",
    "model.max_txt_len": "320",
    "model.end_sym": "</s>",
    "model.prompt_path": "prompts/alignment_image.txt",
    "model.prompt_template": r"[INST] <<SYS>>\n \n<</SYS>>\n\n{} [/INST] ",
    f"{WEBVID}.data_type": "video",
    f"{WEBVID}.build_info.anno_dir": "dataset_action_split/videoaction_instruct_11k.json",
    f"{WEBVID}.build_info.videos_dir": "dataset_action_split/data/",
    f"{WEBVID}.vis_processor.train.name": "alpro_video_train",
    f"{WEBVID}.vis_processor.train.n_frms": "8",
    f"{WEBVID}.vis_processor.train.image_size": "224",
    f"{WEBVID}.text_processor.train.name": "blip_caption",
    f"{WEBVID}.num_video_query_token": "32",
    f"{WEBVID}.tokenizer_name": "meta-llama/Llama-2-7b-chat-hf",
    f"{WEBVID}.model_type": "llama_v2",
    "run.task": "video_text_pretrain",
    "run.lr_sched": "linear_warmup_cosine_lr",
    "run.init_lr": "3e-5",
    "run.min_lr": "1e-5",
    "run.warmup_lr": "1e-6",
    "run.weight_decay": "0.05",
    "run.max_epoch": "3",
    "run.iters_per_epoch": "1000",
    "run.batch_size_train": "4",
    "run.batch_size_eval": "4",
    "run.num_workers": "4",
    "run.warmup_steps": "1000",
    "run.seed": "42",
    "run.output_dir": "output/videollama_stage2_finetune",
    "run.amp": "True",
    "run.resume_ckpt_path": "null",
    "run.evaluate": "False",
    "run.train_splits": '["train"]',
    "run.device": "cuda",
    "run.world_size": "4",
    "run.dist_url": "env://",
    "run.distributed": "True",
}
WITHOUT_KEY = {"model.fusion_header_type", f"{WEBVID}.text_processor.train.name"}

RECIPE = ["experiment=video_llama_actions_connector", "hardware=slurm_2x2"]
TYPED = [
    "model.path=ckpts",
    "data.annotation=dataset_action_split/videoaction_instruct_11k.json",
    "data.root=dataset_action_split/data",
    "paths.runs_dir=output",
    "run_name=videollama_stage2_finetune",
]


def test_the_table_holds_every_value_of_the_guides_file() -> None:
    assert {row[0].strip("`"): spans(row[1])[0] for row in VALUES} == GUIDE
    assert {row[0].strip("`") for row in VALUES if not settings(row[2])} == WITHOUT_KEY


def test_the_recipe_has_every_value_that_the_table_states() -> None:
    assert differences([*RECIPE, *TYPED], [row[2] for row in VALUES]) == {}


def test_the_start_log_says_where_the_recipe_departs_and_keys_restore_the_original() -> None:
    assert check_departures([*RECIPE, *TYPED]) == {"max_length", "crop", "precision", "checkpointing", "validation"}


@pytest.mark.parametrize("note", [row[3] for row in VALUES if settings(row[3])], ids=lambda note: settings(note)[0])
def test_what_the_table_offers_beside_it_is_accepted(note: str) -> None:
    for span in spans(note):
        if settings(f"`{span}`"):
            check_config(config("train", [*RECIPE, *TYPED, *shlex.split(span)]))


@pytest.mark.parametrize("command", TRAINING)
def test_training_commands_compose_and_start_as_many_processes_as_they_name(command: str) -> None:
    cfg = config("train", overrides(command))
    check_config(cfg)
    counts = {name: int(n) for name, n in re.findall(r"--(nproc_per_node|nnodes)[ =](\d+)", command)}
    assert cfg.hardware.devices == counts.get("nproc_per_node", cfg.hardware.devices)
    assert cfg.hardware.num_nodes == counts.get("nnodes", 1)
    assert bool(counts) == bool(cfg.run_name)  # processes of other launchers share a folder by its name


def test_the_other_commands_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (evaluation,) = [command for command in COMMANDS if "evaluate.py" in command]
    assert config("evaluate", overrides(evaluation)).eval.scoring == "likelihood"
    monkeypatch.chdir(tmp_path)
    for prepare in (command for command in COMMANDS if command.startswith("vidtune prepare")):
        assert vidtune(shlex.split(prepare)[1:]) == 1
        assert "there is no such folder" in capsys.readouterr().err
    for command in COMMANDS:
        if command.startswith(("data.", "model.")):
            check_config(config("train", [*RECIPE, *TYPED, *shlex.split(command)]))


def test_the_batch_file_starts_the_recipe_on_two_nodes_of_two_gpus(tmp_path: Path) -> None:
    """Run with a stand-in for ``srun`` that writes down what it is asked to start."""
    (command,) = [command for command in COMMANDS if command.startswith("sbatch ")]
    file = ROOT / command.split()[1]
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$ASKED"\n')
    srun.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "ASKED": str(tmp_path / "asked"),
        "SLURM_JOB_ID": "7",
        "MODEL_PATH": "my files",
        "DATA_ROOT": "actions",
    }
    subprocess.run(["bash", str(file), "trainer.max_steps=5"], env=environment, check=True, timeout=30)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[:2] == ["python", "train.py"]
    words = [word.replace("my files", "'my files'") for word in asked[2:]]
    cfg = config("train", words)
    check_config(cfg)
    assert (cfg.model.path, cfg.run_name, cfg.trainer.max_steps) == ("my files", "actions_7", 5)
    directives = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", file.read_text()))
    assert int(directives["nodes"]) == cfg.hardware.num_nodes == 2
    assert int(directives["ntasks-per-node"]) == cfg.hardware.devices == 2
    assert directives["gres"] == "gpu:2" and int(directives["cpus-per-task"]) > cfg.data.num_workers
    del environment["MODEL_PATH"]
    refused = subprocess.run(["bash", str(file)], env=environment, capture_output=True, text=True, timeout=30)
    assert refused.returncode and "export MODEL_PATH" in refused.stderr
