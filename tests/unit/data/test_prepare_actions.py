"""Folders of actions to annotations, and the annotations of the guide as they stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.families.golden import golden_cases
from vidtune.contracts import MediaRef, UserError
from vidtune.data.prepare.actions import WORDINGS, prepare
from vidtune.data.question_answers import QuestionAnswersReader
from vidtune.media import probe

QUIET = Console(quiet=True)


@pytest.fixture
def clip(shapes: Path) -> Path:
    return next(shapes.rglob("*.mp4"))


def folder(root: Path, clip: Path, names: dict[str, int], twins: bool = False) -> Path:
    for name, count in names.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            for ending in ("", "_flip") if twins else ("",):
                (root / name / f"video_{number}{ending}.mp4").symlink_to(clip)
    return root


def rows(root: Path, split: str) -> list[dict]:
    return json.loads((root / "annotations" / f"{split}.json").read_text())


def test_class_folders_become_questions_with_normalised_answers_and_counts(tmp_path: Path, clip: Path) -> None:
    root = folder(tmp_path, clip, {"Fall_Down": 20, "sitting": 20}, twins=True)
    report = prepare(root, {"min_frames": "0"}, QUIET)
    parts = {split: rows(root, split) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == 80 == sum(report.files.values())
    originals = [{row["video"].replace("_flip", "") for row in part} for part in parts.values()]
    assert not (originals[0] & originals[1] or originals[0] & originals[2] or originals[1] & originals[2])
    assert {row["QA"][0]["a"] for row in parts["train"]} == {"Fall down", "Sitting"}
    assert len({row["QA"][0]["q"] for row in parts["train"]}) == len(WORDINGS)
    assert {row["QA"][0]["q"] for row in parts["test"]} == {WORDINGS[0]}
    counts = json.loads((root / "annotations/classes.json").read_text())
    assert {label: sum(part.values()) for label, part in counts.items()} == {"Fall down": 40, "Sitting": 40}
    before = parts["train"]
    prepare(root, {"min_frames": "0"}, QUIET)
    assert rows(root, "train") == before


def test_split_folders_are_kept_and_short_or_broken_videos_are_reported(tmp_path: Path, clip: Path) -> None:
    for split in ("train", "test"):
        folder(tmp_path / split, clip, {"walk": 8, "stand": 8})
    (tmp_path / "train/walk/broken.mp4").write_bytes(b"no video")
    (tmp_path / "q.txt").write_text("What now: {classes}?\n\n")
    report = prepare(tmp_path, {"min_frames": "10000", "questions": str(tmp_path / "q.txt")}, QUIET)
    assert report.counts == {"short": 32, "unreadable": 1}
    assert any("broken.mp4" in note for note in report.notes)
    assert len(rows(tmp_path, "test")) == 16
    assert len(rows(tmp_path, "train")) + len(rows(tmp_path, "val")) == 16
    assert {row["QA"][0]["q"] for row in rows(tmp_path, "train")} == {"What now: Stand, Walk?"}


def test_a_prepared_folder_reads_with_the_classes_as_options(tmp_path: Path, clip: Path) -> None:
    root = folder(tmp_path, clip, {"walk": 3, "stand": 3})
    prepare(root, {"min_frames": "0", "val_fraction": "0", "test_fraction": "0"}, QUIET)
    sample = QuestionAnswersReader(str(root), "annotations/{split}.json", "annotations/classes.json")("train")[-1]
    assert (sample.answer, sample.options, sample.sample_id) == ("Walk", ("Stand", "Walk"), "walk/video_2.mp4")
    assert Path(sample.media[0].path).exists()


@pytest.mark.parametrize("case", golden_cases("video_llama"), ids=lambda case: case.name)
def test_the_guides_json_is_read_as_it_stands_with_all_its_turns(case: Path) -> None:
    entries = json.loads((case / "inputs/annotations.json").read_text())
    samples = QuestionAnswersReader("videos", str(case / "inputs/annotations.json"))("train")
    for entry, sample in zip(entries, samples, strict=True):
        assert [m.text for m in sample.messages if m.role == "assistant"] == [pair["a"] for pair in entry["QA"]]
        assert [m.content[-1] for m in sample.messages if m.role == "user"] == [pair["q"] for pair in entry["QA"]]
        assert Path(sample.media[0].path).name == entry["video"] and sample.messages[0].content[0] is sample.media[0]
        assert bool(sample.options) == (len(entry["QA"]) == 1)


def test_short_clips_of_a_class_and_split_can_be_joined(tmp_path: Path, clip: Path) -> None:
    for split in ("train", "test"):
        folder(tmp_path / split, clip, {"walk": 5, "stand": 2})
    report = prepare(tmp_path, {"min_frames": "0", "join": "2", "val_fraction": "0"}, QUIET)
    assert sum(report.files.values()) == 8
    first, *_, last = rows(tmp_path, "train")
    assert (first["QA"][0]["a"], last["QA"][0]["a"]) == ("Stand", "Walk")
    alone = probe(MediaRef(str(clip))).num_frames
    lengths = [probe(MediaRef(str(tmp_path / row["video"]))).num_frames for row in rows(tmp_path, "train")]
    assert lengths == [2 * alone, 2 * alone, 2 * alone, alone]
    # Started again, what was joined is no clip to be joined.
    assert prepare(tmp_path, {"min_frames": "0", "join": "2", "val_fraction": "0"}, QUIET).files == report.files
    with pytest.raises(UserError, match="--join 0"):
        prepare(tmp_path, {"min_frames": "0", "join": "0"}, QUIET)


def test_bad_annotations_and_folders_are_named(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        prepare(tmp_path / "none", {}, QUIET)
    with pytest.raises(UserError, match="at least two folders"):
        prepare(folder(tmp_path / "one", clip, {"walk": 2}), {}, QUIET)
    (tmp_path / "a.json").write_text(json.dumps([{"video": "v.mp4", "QA": []}]))
    with pytest.raises(UserError, match=r"a\.json, row 1: QA=\[\]"):
        QuestionAnswersReader(str(tmp_path), "a.json")("train")
    (tmp_path / "a.json").write_text(json.dumps([{"video": "v.mp4", "QA": [{"q": "?"}]}]))
    with pytest.raises(UserError, match="no 'a' in this row"):
        QuestionAnswersReader(str(tmp_path), "a.json")("train")
