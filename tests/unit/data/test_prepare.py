"""Releases to annotations: rows as the originals', archives that cannot write elsewhere, starts that go on."""

import json
import stat
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from tests.families.golden import golden_cases
from vidtune.contracts import UserError
from vidtune.data.multiple_choice import read_table
from vidtune.data.nextqa import NextQAReader
from vidtune.data.prepare import get_preparation
from vidtune.data.prepare.nextqa import COLUMNS, hub_row, prepare
from vidtune.data.prepare.unzip import unzip

HEADER = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
QUIET = Console(quiet=True)


@pytest.mark.parametrize("case", golden_cases("aria"), ids=lambda case: case.name)
def test_nextqa_rows_are_the_originals_byte_for_byte(case):
    compared = 0
    lines = {name: (case / "inputs" / f"{name}.jsonl") for name in ("train", "batch", "r980", "eval")}
    golden = [line for file in lines.values() if file.exists() for line in file.read_text().splitlines() if line]
    for record in read_table(case / "inputs/nextqa_official.csv", COLUMNS):
        for line in golden:
            row = json.loads(line)
            if "video" not in row:
                continue  # rows about images or text are not NExT-QA's
            split = "val" if "gt" in row else "train"
            # The goldens' videos are stand-ins with frame counts of their own; the first answer is that of the table.
            made = hub_row(record, "/".join(Path(row["video"]["path"]).with_suffix("").parts[-2:]), split)
            made["video"]["num_frames"] = row["video"]["num_frames"]
            if row["messages"][0] != made["messages"][0]:
                continue
            row["messages"] = row["messages"][: len(made["messages"])]  # one golden row goes on after the answer
            assert json.dumps(made) == (line if row == json.loads(line) else json.dumps(row))
            compared += 1
    assert compared


def official(root: Path, *lines: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / "val.csv").write_text(HEADER + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    (root / "map_vid_vidorID.json").write_text(json.dumps({"7": "0001/7", "8": "0002/8"}))
    return root


def test_nextqa_oddities_are_counted_and_handled_by_their_rules(tmp_path):
    root = official(
        tmp_path / "set",
        "7,300,640,480,why did he run？,0,1,CW,home, away ,up,down,left",
        "8,300,640,480,what then?,4,0,TN,sit,sit,stand,lie,jump ",
    )
    report = prepare(root, {}, QUIET)
    assert report.counts == {"question_mark": 2, "blanks": 2, "equal_options": 1}
    assert any("2 videos are not below" in note for note in report.notes)
    first, second = NextQAReader(str(root))("val")
    assert first.messages[0].content[1] == (
        "why did he run?\nA. home\nB. away\nC. up\nD. down\nE. left\n"
        " Answer with the option's letter from the given choices directly."
    )
    assert (first.sample_id, first.question_type, first.answer, first.messages[1].text) == ("7_1", "CW", "home", "A")
    assert (second.options, second.answer, second.extra["qid"]) == (("sit", "sit", "stand", "lie", "jump"), "jump", "0")
    before = (root / "annotations/val.jsonl").read_bytes()
    prepare(root, {}, QUIET)
    assert (root / "annotations/val.jsonl").read_bytes() == before


def test_nextqa_hub_rows_keep_their_text_and_find_flat_videos(tmp_path):
    record = dict(zip(COLUMNS, ("7", "why", "1", "0", "CW", "a", "b", "c", "d", "e")))
    (tmp_path / "train.jsonl").write_text(json.dumps(hub_row(record, "0001/7", "train")) + "\n")
    (tmp_path / "NExTVideo").mkdir()
    (tmp_path / "NExTVideo/7.mp4").touch()
    report = prepare(tmp_path, {}, QUIET)
    assert "knows no question types" in report.notes[0]
    (sample,) = NextQAReader(str(tmp_path))("train")
    assert (sample.answer, sample.messages[1].text, sample.question_type) == ("b", "B", "")
    assert sample.media[0].path == str(tmp_path / "NExTVideo/7.mp4")


def test_nextqa_release_is_fetched_from_the_hub_unpacked_and_prepared_in_one_go(tmp_path, monkeypatch):
    record = dict(zip(COLUMNS, ("7", "why", "1", "0", "CW", "a", "b", "c", "d", "e")))

    def snapshot(repo, repo_type, local_dir):
        assert (repo, repo_type) == ("rhymes-ai/NeXTVideo", "dataset")
        (local_dir / "train.jsonl").write_text(json.dumps(hub_row(record, "0001/7", "train")) + "\n")
        archive(local_dir / "NExTVideo.zip", {"NExTVideo/0001/7.mp4": "frames"})

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    report = prepare(tmp_path, {"download": "true"}, QUIET)
    assert any("1 files unpacked now" in note for note in report.notes)
    (sample,) = NextQAReader(str(tmp_path))("train")
    assert Path(sample.media[0].path).read_text() == "frames"


def test_what_is_missing_is_said_with_where_to_put_it(tmp_path):
    with pytest.raises(UserError, match=r"val\.csv") as error:
        prepare(tmp_path, {}, QUIET)
    assert "--download" in str(error.value)
    with pytest.raises(UserError, match="vidtune prepare nextqa --root"):
        NextQAReader(str(tmp_path))("train")
    with pytest.raises(UserError, match="no such set"):
        get_preparation("nextq")


def archive(path: Path, entries: dict[str, str], link: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, text in entries.items():
            opened.writestr(name, text)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            opened.writestr(info, "/etc/passwd")
    return path


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    for entries, link in (({"ok": "1", "../evil": "2"}, ""), ({"/evil": "2"}, ""), ({"ok": "1"}, "link")):
        with pytest.raises(UserError, match="nothing was unpacked"):
            unzip(archive(tmp_path / "a.zip", entries, link), tmp_path / "out", QUIET)
        assert not (tmp_path / "out").exists() and not (tmp_path / "evil").exists()


def test_unpacking_goes_on_where_it_stopped(tmp_path):
    path, out = archive(tmp_path / "a.zip", {"x/1": "one", "x/2": "two"}), tmp_path / "out"
    assert unzip(path, out, QUIET) == 2
    (out / "x/1").unlink()
    (out / "x/2").write_text("t")  # as an interrupted copy would leave it
    assert unzip(path, out, QUIET) == 2 and unzip(path, out, QUIET) == 0
    assert Counter(file.read_text() for file in (out / "x").iterdir()) == {"one": 1, "two": 1}
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="Download it again"):
        unzip(path, out, QUIET)
