"""The real annotation of NExT-QA, from the official files to the guide's table; the videos are generated stand-ins."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from tests.families.aria.stand_ins import OFFICIAL, write_stand_ins
from tests.helpers import config
from vidtune.data.nextqa import NextQAReader
from vidtune.data.prepare.nextqa import MAP, prepare
from vidtune.run import evaluate, train
from vidtune.run.train import RUN_DIR_VARIABLE

pytestmark = pytest.mark.skipif(
    not (OFFICIAL / "val.csv").is_file(),
    reason="the official annotation of NExT-QA is not here; VIDTUNE_NEXTQA names its folder",
)

TYPES = {
    "val": {"CW": 1924, "CH": 683, "TN": 895, "TC": 663, "TP": 54, "DC": 177, "DL": 295, "DO": 305},
    "test": {"CW": 3329, "CH": 1173, "TN": 1399, "TC": 1165, "TP": 93, "DC": 322, "DL": 483, "DO": 600},
}
"""Questions per type as the benchmark's own files count them."""

RIGHT = {"val": [1013, 1013, 991, 967, 1012], "test": [1721, 1671, 1767, 1719, 1686]}
"""Questions whose right answer is A, B, C, D, E."""


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    root = tmp_path_factory.mktemp("official")
    for name in ("val.csv", "test.csv", MAP):
        shutil.copy(OFFICIAL / name, root)
    return root, prepare(root, {}, Console(quiet=True)).counts


@pytest.mark.parametrize("split", TYPES)
def test_every_official_question_is_prepared_with_its_type_and_answer(official, split: str) -> None:
    samples = NextQAReader(str(official[0]))(split)
    assert len(samples) == sum(TYPES[split].values()) == {"val": 4996, "test": 8564}[split]
    assert Counter(sample.question_type for sample in samples) == TYPES[split]
    letters = Counter(sample.messages[1].text for sample in samples)
    assert [letters[letter] for letter in "ABCDE"] == RIGHT[split]
    assert len({sample.sample_id for sample in samples}) == len(samples)
    assert len({sample.media[0].path for sample in samples}) == {"val": 570, "test": 1000}[split]


def test_oddities_of_the_official_files_are_counted(official) -> None:
    assert official[1] == {"question_mark": 1 + 3, "blanks": 4 + 24, "equal_options": 3 + 8}


def test_the_rows_of_val_have_the_size_of_the_hubs_file(official) -> None:
    """The hub's val.jsonl is about 2.92 MB; our further columns stand behind its own."""
    lines = (official[0] / "annotations/val.jsonl").read_text().splitlines()
    ours = ("id", "split", "qid", "type", "video_id")
    rows = [{key: value for key, value in json.loads(line).items() if key not in ours} for line in lines]
    assert sum(len(json.dumps(row)) + 1 for row in rows) == pytest.approx(2.92e6, abs=5e3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_untuned_lora_and_full_stand_in_one_table_by_type_beside_the_published(
    shapes: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_DIR_VARIABLE, "")
    root = tmp_path / "nextqa"
    write_stand_ins(root, sorted(shapes.rglob("*.mp4")))
    common = ["hardware=cpu", f"paths.cache_dir={cache_dir}", f"paths.runs_dir={tmp_path / 'runs'}"]
    for recipe in ("lora", "full"):
        words = [f"experiment=aria_nextqa_{recipe}", "model=aria_tiny", f"data.root={root}", "data.num_workers=0"]
        words += [*common, "data.limit=16", "global_batch_size=4", "micro_batch_size=2", f"run_name={recipe}"]
        os.environ.pop(RUN_DIR_VARIABLE, None)
        train(config("train", [*words, "trainer.val_samples=4"]), words)
    os.environ.pop(RUN_DIR_VARIABLE, None)
    runs = ",".join(str(tmp_path / "runs" / recipe) for recipe in ("lora", "full"))
    words = [f"run=[{runs}]", "untuned=true", "data=nextqa", f"data.root={root}", "eval.limit=300", *common]
    words += [f"output={tmp_path / 'table'}", "eval.report_samples=0", "data.num_workers=0"]
    metrics = evaluate(config("evaluate", words), words)
    table = (tmp_path / "table/runs.md").read_text()
    header = table.splitlines()[0]
    for column in (
        "| n |",
        "| 95 % interval |",
        "| unparsed |",
        *(f"| {name} |" for name in ("C", "T", "D", *TYPES["val"])),
    ):
        assert column in header, column
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:5]] == ["untuned_aria_tiny", "lora", "full"]
    assert "78.14" in table and "80.80" in table and "81.42" in table and "80.08" in table
    by_type = (tmp_path / "table/by_type.md").read_text()
    assert all(f"| {name} " in by_type for name in ("C", "T", "D", "total", *TYPES["val"])) and "81.42" in by_type
    for row in ("untuned_aria_tiny", "lora", "full"):
        assert 0 <= metrics[f"{row}/accuracy"] <= 1 and 0 <= metrics[f"{row}/unparsed"] <= 1
    assert (tmp_path / "table/loss_curves.png").stat().st_size > 0
