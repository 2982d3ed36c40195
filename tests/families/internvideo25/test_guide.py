"""The guide's sample files are taken as they stand; every command and setting of the docs is one that vidtune takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from tests.guide_tables import read_tables, together, words
from tests.helpers import ROOT, config
from vidtune.commands.main import main as vidtune
from vidtune.contracts import UserError
from vidtune.data.mixture import MixtureReader
from vidtune.data.prepare.qevd import prepare
from vidtune.run.checks import check_config

TABLE = read_tables("internvideo25", "From the guide to vidtune")
ANSWERS = read_tables("internvideo25", "What the guide says, what its code does, what we do")
RECIPE = "experiment=internvideo25_qevd_lora"
WEIGHTS = ["model.path=somewhere", "data.root=somewhere"]

# The files of the guide, shortened nowhere.
GROUND_TRUTH = """
[
  {
    "video_path": "exercise_class_1/video_001.mp4",
    "labels_descriptive": "The squat form shows proper depth...",
    "labels": ["proper_depth", "slight_forward_lean"]
  }
]
"""
MANIFEST = """
{
  "exercise_class_1/video_001.mp4": "exercise_class_1",
  "exercise_class_2/video_001.mp4": "exercise_class_2"
}
"""
EXAMPLE_ROW = """
{
  "id": "exercise_001",
  "video": "squats/video_001.mp4",
  "conversations": [
    {"from": "human", "value": "<image>\\nPlease evaluate..."},
    {"from": "gpt", "value": "The squat form shows..."}
  ],
  "duration": 15.5
}
"""
DIY_FT_DATA = """
{
  "qevd_fit_300k": {
    "root": "dataset",
    "annotation": "data/annotaions/qevd_fit_300k_train.jsonl",
    "data_augment": false,
    "repeat_time": 1,
    "video_read_type": "decord"
  }
}
"""
QUESTION = "Please evaluate the exercise form shown. What mistakes"


@pytest.fixture
def clip(shapes: Path) -> Path:
    return next(shapes.rglob("*.mp4"))


def test_the_guides_ground_truth_and_manifest_become_its_rows(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "ground_truth.json").write_text(GROUND_TRUTH)
    (tmp_path / "manifest.json").write_text(MANIFEST)
    for folder in ("exercise_class_1", "exercise_class_2"):
        (tmp_path / folder).mkdir()
        shutil.copy(clip, tmp_path / folder / "video_001.mp4")
    report = prepare(tmp_path, {"split": "guide"}, Console(quiet=True))
    ((file, count),) = report.files.items()
    assert (file.name, count) == ("qevd_fit_300k_test.jsonl", 1)  # int(0.6 x 1) and int(0.2 x 1) are 0
    row = json.loads(file.read_text())
    assert row["video"] == "exercise_class_1/video_001.mp4"  # by base names alone it would be the other folder's
    question, answer = row["conversations"]
    assert question["from"] == "human" and question["value"].startswith(QUESTION)
    assert answer == {"from": "gpt", "value": "The squat form shows proper depth..."}
    assert 0 < row["duration"] < 30 and row["question_type"] == "exercise_class_1"


@pytest.fixture
def place(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory as the guide lays it out."""
    for folder in ("dataset/squats", "data/annotaions"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(clip, tmp_path / "dataset/squats/video_001.mp4")
    line = json.dumps(json.loads(EXAMPLE_ROW))
    (tmp_path / "data/annotaions/qevd_fit_300k_train.jsonl").write_text(f"{line}\n")
    (tmp_path / "data/diy_ft_data.json").write_text(DIY_FT_DATA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reader(registry: str) -> MixtureReader:
    return MixtureReader("qevd_fit_300k", registry, mixing="qevd")


def test_the_guides_data_file_and_example_row_are_read_as_they_stand(place: Path) -> None:
    (sample,) = reader("data/diy_ft_data.json")("train")
    assert sample.sample_id == "qevd_fit_300k/exercise_001"
    assert [ref.path for ref in sample.media] == [str(place / "dataset/squats/video_001.mp4")]
    assert sample.messages[0].content[1] == "Please evaluate..." and sample.answer == "The squat form shows..."


def test_augmentation_is_refused_and_repeats_count(place: Path) -> None:
    wanted = DIY_FT_DATA.replace("false", "true").replace('repeat_time": 1', 'repeat_time": 2')
    (place / "wanted.json").write_text(wanted)
    with pytest.raises(UserError, match="data_augment: true is not supported"):
        reader("wanted.json")("train")
    (place / "twice.json").write_text(wanted.replace("true", "false"))
    assert len(reader("twice.json")("train")) == 2


@pytest.mark.parametrize("name", ["decord", "opencv", "av"])
def test_every_way_of_reading_that_the_guide_names_reads(name: str, place: Path) -> None:
    """There, ``opencv`` draws another row for ever."""
    (place / "other.json").write_text(DIY_FT_DATA.replace("decord", name))
    assert len(reader("other.json")("train")) == 1


def test_a_way_of_reading_that_is_none_is_refused(place: Path) -> None:
    (place / "other.json").write_text(DIY_FT_DATA.replace("decord", "fake"))
    with pytest.raises(UserError, match="video_read_type 'fake'; expected one of decord, opencv"):
        reader("other.json")


# ------------------------------------------------------------------------------------------------- docs


def test_the_table_has_every_line_of_the_guide() -> None:
    for line in (
        *("conda create", "initialize_dataset.sh", "diy_ft_data.json", "MODEL_NAME", "quickstart_finetune.sh"),
        *("finetune_qved.sh", "MICRO_BATCH_SIZE", "EPOCHS", "LR=1e-5", "--vit_lr", "--connector_lr", "MIN_FRAMES"),
        *("--max-length", "--freeze-vit", "--freeze-llm", "LoRA", "--checkpoint-interval", "--deepspeed"),
        *("--shard-strategy", "--selective-recompute", "base_model_inference.py", "run_inference.sh", "tail -f"),
        *("load_in_4bit", "NPROC_PER_NODE", "out of memory", "every 0.25 epochs"),
    ):
        assert line in TABLE.lines, line
    assert len(TABLE.commands) >= 6 and len(TABLE.settings) >= 25


def test_every_claim_that_the_guides_code_does_not_keep_is_answered() -> None:
    """The rows of section 0 of the facts that this family was built from."""
    claims = (
        *("model id", "LoRA rank 16", "QLoRA", "--deepspeed", "xtuner train", "EPOCHS=3", "--freeze-vit", "24 GB"),
        *("video_read_type", "data_augment", "step_100/model.pt", "0.25 epoch", "inference", "loss plots"),
        *("hyper-parameters", "split"),
    )
    for claim in claims:
        assert claim in ANSWERS.lines, claim


@pytest.mark.parametrize("command", [c for c in TABLE.commands if not c.startswith("vidtune p")])
def test_a_command_of_the_table_passes_all_checks(command: str) -> None:
    script, *overrides = words(command)[1:]
    if script == "evaluate.py":
        assert config("evaluate", overrides).run == "somewhere"
    else:
        check_config(config("train", overrides))


@pytest.mark.parametrize("command", [c for c in TABLE.commands if c.startswith("vidtune p")])
def test_a_verb_of_the_table_reads_its_command_line(command: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert vidtune(words(command)[1:]) == 1
    assert "somewhere" in capsys.readouterr().err  # what is not there, rather than how it was asked for


@pytest.mark.parametrize("settings", together([*TABLE.settings, *ANSWERS.settings]), ids=" ".join)
def test_settings_of_the_tables_are_accepted_beside_the_recipe(settings: list[str]) -> None:
    # A DeepSpeed file is read when the strategy is built: any JSON will do.
    given = [word.replace("config=somewhere", f"config={ROOT}/conf/model_memory.json") for word in settings]
    more = [*WEIGHTS, "data.num_frames=8", "hardware=h100_80gb"]
    own = [word for word in more if not any(w.startswith(f"{word.split('=')[0]}=") for w in given)]
    check_config(config("train", [RECIPE, *own, *given]))


def test_a_24_gb_card_is_enough_for_adapters_and_full_tuning_is_refused_on_it() -> None:
    """The guide's minimum, for which its code would need 129 GB."""
    check_config(config("train", [RECIPE, *WEIGHTS, "hardware=rtx4090"]))
    with pytest.raises(UserError, match=r"needs 129\.2 GB.*zero3 or fsdp on 6 devices"):
        check_config(config("train", ["experiment=internvideo25_qevd_full", *WEIGHTS, "hardware=rtx4090"]))
