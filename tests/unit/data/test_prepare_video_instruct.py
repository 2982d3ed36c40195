"""VideoInstruct-100K: the original's conversion byte for byte, noise counted, missing videos listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.families.golden import golden_cases
from vidtune.contracts import UserError
from vidtune.data.prepare.video_instruct_100k import NOISE_TAG, media_files, prepare, training_rows
from vidtune.data.video_instruct import VideoInstructReader

QUIET = Console(quiet=True)


@pytest.mark.parametrize("case", golden_cases("video_chatgpt"), ids=lambda case: case.name)
def test_released_rows_become_the_originals_training_file_byte_for_byte(case: Path, tmp_path: Path) -> None:
    records = json.loads((case / "inputs/instructions.json").read_text())
    assert json.dumps(training_rows(records)) == (case / "expected/train.json").read_text()
    filtered = json.loads((case / "expected/train_filtered.json").read_text())
    (tmp_path / "features").mkdir()
    for row in filtered:
        (tmp_path / "features" / row["video"]).touch()
    options = {"input": str(case / "inputs/instructions.json"), "strip_noise_tag": "false"}
    report = prepare(tmp_path, options, QUIET)
    written = tmp_path / "video_chatgpt_training.json"
    assert written.read_text() == (case / "expected/train_filtered.json").read_text()
    assert report.counts["rows without a medium"] == len(records) - len(filtered)


def release(root: Path) -> Path:
    records = [
        {"q": f"q{n}?", "a": f"a{n}" + (f"\n{NOISE_TAG}" if n == 1 else ""), "video_id": f"v_{n // 4:011d}"}
        for n in range(40)
    ]
    (root / "VideoInstruct100K.json").write_text(json.dumps(records))
    return root


def test_the_noise_tag_goes_and_is_counted_and_missing_videos_are_listed(tmp_path: Path) -> None:
    root = release(tmp_path)
    (root / "videos").mkdir()
    for number in range(9):
        (root / f"videos/v_{number:011d}.mkv").touch()
    report = prepare(root, {}, QUIET)
    assert report.counts == {"noise tags removed": 1, "rows without a medium": 4}
    assert (root / "missing_videos.txt").read_text() == "v_00000000009\n"
    assert len((root / "video_ids.txt").read_text().split()) == 10
    samples = VideoInstructReader(str(root), "video_chatgpt_training.json")("train")
    assert len(samples) == 36 and samples[1].answer == "a1"
    assert samples[0].media[0].path.endswith("v_00000000000.mkv")


def test_the_video_stands_where_the_original_put_it_or_always_first(tmp_path: Path) -> None:
    root = release(tmp_path)
    (root / "features").mkdir()
    (root / "features/v_00000000000.pkl").touch()
    prepare(root, {}, QUIET)
    places = {}
    for placement in ("original", "video_first"):
        reader = VideoInstructReader(str(root), "video_chatgpt_training.json", media_placement=placement)
        places[placement] = [
            tuple("video" if not isinstance(part, str) else part.strip() for part in s.messages[0].content)
            for s in reader("train")[:2]
        ]
    assert places["original"] == [("q0?", "video"), ("video", "q1?")]
    assert places["video_first"] == [("video", "q0?"), ("video", "q1?")]


def test_rows_without_a_video_are_read_as_text_wherever_they_stand(tmp_path: Path) -> None:
    """The original stops at such a row, and loses the features of a batch that begins with one."""
    root = release(tmp_path)
    (root / "features").mkdir()
    (root / "features/v_00000000000.pkl").touch()
    prepare(root, {}, QUIET)
    rows = json.loads((root / "video_chatgpt_training.json").read_text())
    turns = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}]
    (root / "video_chatgpt_training.json").write_text(json.dumps([{"id": "text", "conversations": turns}, *rows]))
    samples = VideoInstructReader(str(root), "video_chatgpt_training.json")("train")
    assert [len(sample.media) for sample in samples] == [0, 1, 1, 1, 1]
    assert (samples[0].messages[0].text, samples[0].answer) == ("Hello?", "Hello.")


def test_validation_holds_back_whole_videos(tmp_path: Path) -> None:
    root = release(tmp_path)
    (root / "videos").mkdir()
    for number in range(10):
        (root / f"videos/v_{number:011d}.mp4").touch()
    prepare(root, {}, QUIET)
    reader = VideoInstructReader(str(root), "video_chatgpt_training.json", val_fraction=0.4)
    train, val = ({s.media[0].path for s in reader(split)} for split in ("train", "val"))
    assert train and val and not train & val and len(train | val) == 10
    with pytest.raises(UserError, match="train and val only"):
        reader("test")


def test_features_are_preferred_and_named_up_to_the_first_dot(tmp_path: Path) -> None:
    for name in ("v_a.mp4", "v_a.pkl", "v_b.rest.mp4", "notes.txt"):
        (tmp_path / name).touch()
    assert {video: file.name for video, file in media_files(tmp_path).items()} == {
        "v_a": "v_a.pkl",
        "v_b": "v_b.rest.mp4",
    }


def test_what_is_missing_is_said_with_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"VideoInstruct100K\.json.*--download"):
        prepare(tmp_path, {}, QUIET)
    report = prepare(release(tmp_path), {}, QUIET)
    assert any("all rows are kept" in note for note in report.notes)
    with pytest.raises(UserError, match=r"data\.reader\.media"):
        VideoInstructReader(str(tmp_path), "video_chatgpt_training.json")("train")
    with pytest.raises(UserError, match="original, video_first"):
        VideoInstructReader(str(tmp_path), "x.json", media_placement="first")


def test_the_instructions_are_downloaded_where_there_is_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hub(repo: str, name: str, repo_type: str, local_dir: Path) -> None:
        assert (repo, name, repo_type) == ("MBZUAI/VideoInstruct-100K", "VideoInstruct100K.json", "dataset")
        (local_dir / name).write_text(json.dumps([{"q": "What?", "a": "That.", "video_id": "v_a"}]))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    assert prepare(tmp_path, {"download": "true"}, QUIET).files[tmp_path / "video_chatgpt_training.json"] == 1

    def no_connection(*call: object, **options: object) -> None:
        raise OSError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_connection)
    with pytest.raises(UserError, match=r"cannot be downloaded.*Put its VideoInstruct100K\.json into"):
        prepare(tmp_path, {"download": "true"}, QUIET)
