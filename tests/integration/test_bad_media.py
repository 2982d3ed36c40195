"""Clips that cannot be read: the run goes on, loses exactly their rows, says so, and does the same a second time."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from tests.broken_clips import WAYS, hang_on_marked, write_set
from tests.distributed.group import cut, run_group
from tests.helpers import config, small_run
from vidtune.commands.main import main
from vidtune.contracts import UserError
from vidtune.run import evaluate, train
from vidtune.run.train import RUN_DIR_VARIABLE


@pytest.fixture(scope="module")
def broken_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("broken") / "set"
    return root, write_set(root, 24, 6)


@pytest.fixture(autouse=True)
def hanging_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    hang_on_marked(monkeypatch)


def overrides(root: Path, cache_dir: Path, runs: Path, *more: str) -> list[str]:
    kept = [word for word in small_run(root, cache_dir, runs) if not word.startswith("data.prepare")]
    dropped = {word.split("=")[0] for word in more}
    kept = [word for word in kept if word.split("=")[0] not in dropped]
    return ["data=questions", *kept, "data.val_split=''", "media.deadline_s=1", *more]


def run(words: list[str]) -> dict[str, float]:
    os.environ.pop(RUN_DIR_VARIABLE, None)
    try:
        return train(config("train", words), words)
    finally:
        os.environ.pop(RUN_DIR_VARIABLE, None)


def ledger(run_dir: Path) -> dict[str, tuple[str, int]]:
    with (run_dir / "bad_media.csv").open(newline="") as handle:
        return {row["file"]: (row["reason"], int(row["rows_hit"])) for row in csv.DictReader(handle)}


def losses(run_dir: Path) -> list[str]:
    with (run_dir / "metrics.csv").open(newline="") as handle:
        return [row["train/loss"] for row in csv.DictReader(handle) if row.get("train/loss")]


@pytest.mark.parametrize(
    "size", [(24, 6, 0), pytest.param((200, 20, 2), marks=pytest.mark.slow)], ids=["24 clips", "200 clips, 2 workers"]
)
def test_exactly_the_broken_clips_are_lost_twice_the_same(size, cache_dir: Path, tmp_path: Path) -> None:
    num_clips, num_broken, workers = size
    broken = write_set(tmp_path / "set", num_clips, num_broken)
    assert set(broken.values()) == set(WAYS)
    epoch = [
        "trainer.max_steps=null",
        "trainer.epochs=1",
        "trainer.log_every=1",
        f"data.num_workers={workers}",
        "media.max_bad_fraction=0.5",
    ]
    for name in ("first", "second"):
        run(overrides(tmp_path / "set", cache_dir, tmp_path, *epoch, f"run_name={name}"))
    first, second = ledger(tmp_path / "first"), ledger(tmp_path / "second")
    assert set(first) == set(broken)
    assert all(hits == 2 for _, hits in first.values())  # two questions a clip, one epoch
    assert first == second and losses(tmp_path / "first") == losses(tmp_path / "second")
    assert len({reason for reason, _ in first.values()}) >= 5  # each is told with a reason of its own
    summary = json.loads((tmp_path / "first/summary.json").read_text())
    assert (summary["bad_media"], summary["bad_media_rows"]) == (num_broken, 2 * num_broken)


def test_a_resumed_run_loses_the_same_rows(broken_set, cache_dir: Path, tmp_path: Path) -> None:
    """Also those of clips that were found bad before the checkpoint, without trying them again."""
    root, _ = broken_set
    epoch = ["trainer.max_steps=null", "trainer.epochs=1", "trainer.log_every=1", "trainer.checkpoint_every=3"]
    words = overrides(root, cache_dir, tmp_path, *epoch, "media.max_bad_fraction=0.5", "trainer.keep_checkpoints=9")
    run([*words, "run_name=whole"])
    cut(tmp_path / "whole", tmp_path / "resumed", 3)
    run([f"resume={tmp_path / 'resumed'}"])
    assert ledger(tmp_path / "resumed") == ledger(tmp_path / "whole")
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")[3:]


@pytest.mark.slow
def test_two_processes_with_two_workers_each_keep_one_ledger(broken_set, cache_dir: Path, tmp_path: Path) -> None:
    root, broken = broken_set
    epoch = ["trainer.max_steps=null", "trainer.epochs=1", "trainer.log_every=1", "media.max_bad_fraction=0.5"]
    words = overrides(root, cache_dir, tmp_path, *epoch, "data.num_workers=2")
    jobs = [[*words, "micro_batch_size=2", "strategy=ddp", "hardware.devices=2", "run_name=two"]]
    run_group(tmp_path / "group", jobs)
    run([*words, "run_name=one"])
    readable = {path for path, way in broken.items() if way == "hangs"}  # the other processes' decoders are not patched
    expected = {path: entry for path, entry in ledger(tmp_path / "one").items() if path not in readable}
    assert ledger(tmp_path / "two") == expected


def test_the_run_stops_above_the_bound_and_goes_without_listed_media(
    broken_set, cache_dir: Path, tmp_path: Path, capsys
) -> None:
    root, broken = broken_set
    with pytest.raises(UserError, match=r"media\.max_bad_fraction=0\.01") as error:
        run(overrides(root, cache_dir, tmp_path, "run_name=stops"))
    assert not (tmp_path / "stops").exists(), "unreadable headers are known before anything is written"
    assert "vidtune check" in str(error.value)

    report = tmp_path / "check.json"
    words = overrides(root, cache_dir, tmp_path)
    assert main(["check", *words, "--report", str(report), "--workers", "1"]) == 1
    found = json.loads(report.read_text())
    assert {entry["file"] for entry in found["bad_media"]} == set(broken)
    assert any("6 of 24 media cannot be read" in harm for harm in found["harm"])
    assert len(found["leaks"]) == 6, "test asks about the first 8 clips of train, of which 2 are broken"

    run(overrides(root, cache_dir, tmp_path, f"media.known_bad={report}", "run_name=without"))
    assert not (tmp_path / "without/bad_media.csv").exists()
    assert "36 training samples on 18 media" in (tmp_path / "without/log.txt").read_text()


def test_a_bad_clip_counts_as_wrong_and_is_listed(broken_set, cache_dir: Path, tmp_path: Path) -> None:
    root, broken = broken_set
    words = [word for word in overrides(root, cache_dir, tmp_path) if word.split(".")[0] in ("data", "paths", "media")]
    words = ["data=questions", *[w for w in words if w != "data=questions"], "hardware=cpu", f"output={tmp_path / 'e'}"]
    metrics = evaluate(config("evaluate", words), words)
    rows = [json.loads(line) for line in (tmp_path / "e/predictions.jsonl").read_text().splitlines()]
    bad = [row for row in rows if row.get("status") == "bad_media"]
    lost = [path for path in broken if int(Path(path).stem) < 8]
    assert len(bad) == 2 * len(lost) and not any(row["correct"] for row in bad)
    assert metrics["accuracy"] <= 1 - len(bad) / 16
    with (tmp_path / "e/bad_media.csv").open(newline="") as handle:
        assert {row["file"] for row in csv.DictReader(handle)} == set(lost)


def test_a_fast_check_of_a_sound_set_finds_no_harm(shapes: Path, cache_dir: Path, tmp_path: Path) -> None:
    words = small_run(shapes, cache_dir, tmp_path)
    assert main(["check", *words, "fast=true", "--report", str(tmp_path / "r.json")]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["harm"] == [] and found["leaks"] == [] and found["splits"]["train"]["rows"] == 64
    assert sum(found["splits"]["train"]["tokens"]["histogram"]["counts"]) == 64
    assert found["splits"]["train"]["question_types"] == dict.fromkeys(("shape", "direction", "count", "order"), 16)


def test_the_preview_shows_what_training_supervises(shapes: Path, cache_dir: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "p.html"
    assert main(["preview", *small_run(shapes, cache_dir, tmp_path), "--index", "5", "--page", str(page)]) == 0
    row = json.loads((shapes / "train.jsonl").read_text().splitlines()[5])
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 8 and "http" not in html and "<script" not in html
    target = html.split('<span class="target">')[-1].split("</span>")[0]
    assert target.split()[0].startswith(row["answer"]) and "end" in target
    shown = capsys.readouterr().out
    assert row["question"].split()[0] in shown and "supervised" in shown and "visual×" in shown
    with pytest.raises(SystemExit):
        main(["preview", "--index", "x"])
