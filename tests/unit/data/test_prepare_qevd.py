"""QEVD: the guide's rows and split to the bit, and a split that keeps persons apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from tests.families.golden import golden_cases
from vidtune.contracts import UserError
from vidtune.data.conversations import ConversationsReader
from vidtune.data.mixture import MixtureReader
from vidtune.data.prepare.qevd import prepare
from vidtune.data.prepare.qevd_rows import answer_of, exercise_of, guide_rows, guide_split, manifest_paths, original_of

QUIET = Console(quiet=True)


@pytest.mark.parametrize("case", golden_cases("internvideo25"), ids=lambda case: case.name)
def test_the_guides_rows_and_split_are_reproduced_exactly(case: Path) -> None:
    def load(name: str):
        return json.loads((case / f"{name}.json").read_text())

    clips = load("split_clips")

    def measure(video: str) -> float | None:
        clip = clips.get(Path(video).name)
        return round(clip["frame_count"] / clip["fps"], 2) if clip and clip["fps"] else None

    rows, unmeasured = guide_rows(load("split_ground_truth"), manifest_paths(load("split_manifest")), measure)
    assert guide_split(rows) == load("expected_split")
    assert {row["video"] for row in rows if row["duration"] == 30.0} == set(unmeasured)


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def record(number: int, split: str | None = None, labels=("squats - average",)) -> dict:
    marked = {} if split is None else {"split": split}
    return {"video_path": f"./{number:08d}.mp4", "labels": list(labels), "labels_descriptive": [], **marked}


@pytest.fixture
def clip(shapes: Path) -> Path:
    return next(shapes.rglob("*.mp4"))


def rows_of(root: Path, split: str) -> list[dict]:
    file = root / "annotations" / f"qevd_fit_300k_{split}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def test_the_guides_folders_become_its_jsonl_with_unmeasured_clips_listed(tmp_path: Path, clip: Path) -> None:
    write(tmp_path / "ground_truth.json", [record(number) for number in range(10)])
    write(tmp_path / "manifest.json", {f"dataset/squats/{number:08d}.mp4": "squats" for number in range(10)})
    (tmp_path / "squats").mkdir()
    for number in range(9):
        shutil.copy(clip, tmp_path / f"squats/{number:08d}.mp4")
    report = prepare(tmp_path, {"split": "guide"}, QUIET)
    assert sorted(report.files.values()) == [2, 2, 6]
    assert report.counts["unmeasured"] == 1
    assert any("squats/00000009.mp4" in note and "30.0" in note for note in report.notes)
    rows = [row for split in ("train", "val", "test") for row in rows_of(tmp_path, split)]
    assert [row["video"] for row in rows if row["duration"] == 30.0] == ["squats/00000009.mp4"]
    assert list(rows[0])[:3] == ["video", "conversations", "duration"]
    reader = ConversationsReader(str(tmp_path), "annotations/qevd_fit_300k_{split}.jsonl", media_position="first")
    sample = reader("train")[0]
    assert sample.question_type == "squats" and sample.answer == "squats - average"
    assert sample.messages[0].content[1].startswith("Please evaluate")


def test_the_official_split_keeps_the_test_set_persons_and_twins_apart(tmp_path: Path, clip: Path) -> None:
    numbers = range(60)
    (tmp_path / "Part-1").mkdir()
    records = [record(number, "test" if number < 6 else "train") for number in numbers]
    twin = record(7, "train") | {"video_path": "./00000007_1.mp4"}
    write(tmp_path / "QEVD-FIT-COACH/fine_grained_labels.json", [*records, twin, record(99, "train")])
    workers = [{"video_path": f"./{number:08d}.mp4", "worker_id": number % 20} for number in numbers]
    write(tmp_path / "fine_grained_labels_with_worker_ids.json", workers)
    for entry in [*records[:-1], twin]:
        shutil.copy(clip, tmp_path / "Part-1" / Path(entry["video_path"]).name)
    (tmp_path / "Part-1/00000059.mp4").write_bytes(b"no video")
    report = prepare(tmp_path, {"val_fraction": "0.3"}, QUIET)
    assert (report.counts["videos without a file"], report.counts["unmeasured"]) == (1, 1)
    people = {split: {row["worker_id"] for row in rows_of(tmp_path, split)} for split in ("train", "val")}
    assert people["train"] and people["val"] and not people["train"] & people["val"]
    assert {Path(row["video"]).stem for row in rows_of(tmp_path, "test")} == {f"{n:08d}" for n in range(6)}
    assert sum(report.files.values()) == 60  # 59 readable clips and the twin
    before = {split: rows_of(tmp_path, split) for split in ("train", "val", "test")}
    prepare(tmp_path, {"val_fraction": "0.3"}, QUIET)
    assert before == {split: rows_of(tmp_path, split) for split in before}


def test_without_persons_augmented_twins_still_stay_in_one_split(tmp_path: Path, clip: Path) -> None:
    entries = [record(n, "train") | {"video_path": f"./{n:08d}{t}.mp4"} for n in range(30) for t in ("", "_1", "_2")]
    write(tmp_path / "fine_grained_labels.json", entries)
    for entry in entries:
        (tmp_path / entry["video_path"]).symlink_to(clip)
    prepare(tmp_path, {"val_fraction": "0.5"}, QUIET)
    train, val = ({original_of(row["video"]) for row in rows_of(tmp_path, split)} for split in ("train", "val"))
    assert train and val and not train & val


def test_feedback_replaces_labels_where_it_is_asked_for(tmp_path: Path, clip: Path) -> None:
    write(tmp_path / "fine_grained_labels.json", [record(1, "train"), record(2, "train")])
    write(tmp_path / "feedbacks_short_clips.json", [{"video_path": "./00000002.mp4", "feedback": ["Lower.", "Good."]}])
    for number in (1, 2):
        shutil.copy(clip, tmp_path / f"{number:08d}.mp4")
    report = prepare(tmp_path, {"answers": "feedbacks", "val_fraction": "0"}, QUIET)
    (row,) = rows_of(tmp_path, "train")
    assert row["conversations"][1]["value"] == "Lower.\nGood." and report.counts["videos without feedback"] == 1


@pytest.mark.parametrize("tag", ["", "<image>\n"])
def test_the_guides_registry_file_is_taken_as_it_stands(tmp_path: Path, tag: str) -> None:
    """With and without the tag, the question follows the frames as the prompt form has it, without a second newline."""
    row = {"video": "squats/1.mp4", "duration": 3.0}
    row["conversations"] = [{"from": "human", "value": f"{tag}How?"}, {"from": "gpt", "value": "Well."}]
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    entry = {"root": str(tmp_path), "annotation": f"{tmp_path}/train.jsonl", "data_augment": False, "repeat_time": 2}
    write(tmp_path / "diy_ft_data.json", {"qevd_fit_300k": entry | {"video_read_type": "decord"}})
    reader = MixtureReader("qevd_fit_300k", str(tmp_path / "diy_ft_data.json"), mixing="qevd")
    samples = reader("train")
    assert len(samples) == 2
    video, question = samples[0].messages[0].content
    assert (video.path, question) == (str(tmp_path / "squats/1.mp4"), "How?")
    write(tmp_path / "diy_ft_data.json", {"qevd_fit_300k": entry | {"data_augment": True}})
    with pytest.raises(UserError, match="data_augment: true is not supported"):
        MixtureReader("qevd_fit_300k", str(tmp_path / "diy_ft_data.json"))


def test_answers_and_exercises_follow_the_written_rules() -> None:
    assert answer_of({"labels_descriptive": ["a", "b"], "labels": ["c"]}) == "a\nb"
    assert answer_of({"labels_descriptive": [], "labels": ["c", "d"]}) == "c"
    assert answer_of({"labels_descriptive": "plain"}) == "plain"
    assert answer_of({"labels": []}) == "No feedback available."
    assert exercise_of({"labels": ["mountain-climbers - average"]}) == "mountain-climbers"


def test_what_is_missing_or_misspelt_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fine_grained_labels\.json.*7z x"):
        prepare(tmp_path, {}, QUIET)
    with pytest.raises(UserError, match="official, guide"):
        prepare(tmp_path, {"split": "guided"}, QUIET)
    write(tmp_path / "fine_grained_labels.json", [record(1)])
    with pytest.raises(UserError, match="--videos"):
        prepare(tmp_path, {}, QUIET)
