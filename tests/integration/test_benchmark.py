"""The Video-ChatGPT benchmark from its question files to the files of its judge."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.helpers import config
from vidtune.run import evaluate


@pytest.fixture
def benchmark(shapes: Path, tmp_path: Path) -> Path:
    for folder in ("Test_Videos", "videos"):
        (tmp_path / folder).mkdir()
        for name, video in zip("ab", sorted(shapes.rglob("*.mp4"))):
            shutil.copy(video, tmp_path / folder / f"v_{name}.mp4")
    generic = [{"video_name": f"v_{name}", "Q": "which shape is it ?", "A": "a circle"} for name in "ab"]
    pairs = [{"video_name": "v_b", "Q1": "which shape ?", "Q2": "what shape is it ?", "A": "circle"}]
    asked = [{"video_name": name, "question": "is it red", "question_id": f"q_{name}"} for name in ("a", "gone")]
    answers = [{"answer": "yes", "type": 3, "question_id": row["question_id"]} for row in asked]
    files = {"generic_qa": generic, "temporal_qa": generic[:1], "consistency_qa": pairs, "test_q": asked}
    for name, rows in (files | {"test_a": answers}).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def run(benchmark: Path, cache_dir: Path, data: str) -> dict[str, float]:
    words = ["hardware=cpu", "model=tiny", f"data={data}", f"data.root={benchmark}", "data.num_workers=0"]
    words += [f"output={benchmark}/out", f"paths.cache_dir={cache_dir}", "eval.max_new_tokens=4"]
    return evaluate(config("evaluate", words), words)


def test_one_command_writes_the_files_of_all_five_criteria(benchmark: Path, cache_dir: Path) -> None:
    metrics = run(benchmark, cache_dir, "generative_benchmark")
    assert {"rouge_l", "token_f1", "consistency_rouge_l", "consistency_token_f1"} <= metrics.keys()
    written = {path.stem: json.loads(path.read_text()) for path in (benchmark / "out/judge").glob("*.json")}
    assert sorted(written) == ["consistency_qa", "generic_qa", "temporal_qa"]
    for name, rows in written.items():
        given = json.loads((benchmark / f"{name}.json").read_text())
        assert [{k: v for k, v in row.items() if not k.startswith("pred")} for row in rows] == given
        keys = {"pred1", "pred2"} if name == "consistency_qa" else {"pred"}
        assert all(set(row) - set(one) == keys for row, one in zip(rows, given, strict=True))
    table = (benchmark / "out/accuracy.md").read_text()
    assert "temporal (n = 1): exact_match" in table and "n = 1 pairs" in table and "No judge was asked" in table


def test_a_missing_video_is_wrong_and_listed_and_leaves_the_judge_an_empty_answer(
    benchmark: Path, cache_dir: Path
) -> None:
    metrics = run(benchmark, cache_dir, "activitynet_qa")
    assert metrics["accuracy"] <= 0.5
    rows = json.loads((benchmark / "out/judge/activitynet_qa.json").read_text())
    assert [(row["video_name"], row["Q"], row["A"]) for row in rows] == [
        ("a", "is it red", "yes"),
        ("gone", "is it red", "yes"),
    ]
    assert rows[1]["pred"] == ""
    [bad] = csv.DictReader((benchmark / "out/bad_media.csv").open())
    assert bad["file"].endswith("missing/gone.mp4")
