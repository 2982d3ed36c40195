"""The official judge gets from us what it got from the original's inference scripts, answers aside."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vidtune.contracts import Sample
from vidtune.data.benchmarks import GenerativeReader, ZeroShotReader
from vidtune.evaluation.judge_files import answer_pairs
from vidtune.evaluation.tasks import build_task

JUDGED = {
    "judge_correctness": "generic_qa",
    "judge_detail": "generic_qa",
    "judge_context": "generic_qa",
    "judge_temporal": "temporal_qa",
    "judge_consistency": "consistency_qa",
    "judge_activitynet_qa": "activitynet_qa",
}
"""Part of the golden file -> our file that the script is given."""

SHORT = {"video_name": "video", "Q": "q", "A": "a", "pred": "pred", "Q1": "q1", "Q2": "q2", "pred1": "pred1"}
SHORT |= {"pred2": "pred2"}


@pytest.fixture(scope="module")
def bench(case) -> tuple[dict[str, Any], dict[str, Any]]:
    if not (case.folder / "inputs/bench.json").is_file():
        pytest.skip(f"{case.folder.name} holds no benchmark files")
    return case.json("inputs/bench.json"), case.json("expected/bench.json")


@pytest.fixture
def files(bench, tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """Our files from the golden questions, each answered with the original's own answer."""
    given, expected = bench
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/any.mp4").touch()
    texts = {"generic": given["general"], "temporal": given["general"], "consistency": given["consistency"]}
    texts |= given["activitynet_qa"]
    for name, rows in texts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    generative = {name: f"{name}.json" for name in ("generic", "temporal", "consistency")}
    samples = GenerativeReader(str(tmp_path), generative, videos="videos")("test")
    samples += ZeroShotReader(str(tmp_path), name="activitynet_qa")("test")
    task = build_task("judged_answer")
    return task.files([task.score(sample, answer_of(sample, expected)) for sample in samples])


def answer_of(sample: Sample, expected: dict[str, Any]) -> str:
    if sample.source == "activitynet_qa":
        return next(row["pred"] for row in expected["pred_activitynet_qa"] if row["id"] == sample.sample_id)
    part = "pred_consistency" if sample.question_type == "consistency" else "pred_general"
    return expected[part][sample.extra["number"] - 1][sample.extra["answer_key"]]


def test_prediction_files_are_the_originals(bench, files):
    expected = bench[1]
    assert files["generic_qa"] == files["temporal_qa"] == expected["pred_general"]
    assert files["consistency_qa"] == expected["pred_consistency"]
    assert files["activitynet_qa"] == expected["pred_activitynet_qa_for_scoring"]
    assert files["activitynet_qa_inference"] == expected["pred_activitynet_qa"]


@pytest.mark.parametrize("part", JUDGED)
def test_the_official_scripts_find_every_answer_under_its_key(bench, files, part):
    """They name a pair after its video and a running number, and judge the two or three texts of the row."""
    count: Counter[str] = Counter()
    ours = {}
    for row in files[JUDGED[part]]:
        video = row["video_name"]
        ours[f"{video}_{count[video]}"] = {SHORT[key]: value for key, value in row.items() if key != "video_name"}
        count[video] += 1
    assert ours == {key: asked for key, (_, asked) in bench[1][part]["combined"].items()}


@pytest.mark.parametrize("part", JUDGED)
def test_the_judge_was_asked_about_our_texts(bench, files, part):
    prompts = [request["messages"][-1]["content"] for request in bench[1][part]["requests"]]
    for row in files[JUDGED[part]]:
        texts = [str(value) for key, value in row.items() if key != "video_name"]
        assert any(all(text in prompt for text in texts) for prompt in prompts), row


def test_answers_keep_the_letters_that_the_original_cuts_off(bench, case):
    """Its ``rstrip`` of the end token takes trailing letters with it: "two dogs" became "two dog"."""
    for entry in bench[1]["answer_cleaning"]:
        text = entry["decoded"].removesuffix("</s>")
        ids = case.processor.tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
        answer = case.processor.decode([*ids, case.processor.tokenizer.eos_token_id])
        assert answer == text.strip() and answer.startswith(entry["returned"])


def test_the_agreement_of_a_pair_needs_no_judge():
    samples = [
        Sample(
            f"{i}", (), question_type="consistency", answer="a child", extra={"row": {}, "number": n, "answer_key": k}
        )
        for i, (n, k) in enumerate([(1, "pred1"), (1, "pred2"), (2, "pred1"), (2, "pred2")])
    ]
    task = build_task("judged_answer")
    texts = ["a red dog", "red dog", "one two three four", "five six"]
    answered = [task.score(sample, text) for sample, text in zip(samples, texts, strict=True)]
    assert [(a.prediction, b.prediction) for a, b in answer_pairs(answered)] == list(zip(texts[::2], texts[1::2]))
    metrics = task.metrics(answered)
    assert metrics["consistency_token_f1"] == pytest.approx(0.5)  # 1 without the article, and 0
    assert metrics["consistency_rouge_l"] == pytest.approx((0.8 + 0) / 2)  # P = 1, R = 2/3
    assert any(
        note.startswith("consistency_rouge_l") and "n = 2 pairs" in note for note in task.summarise(answered).notes
    )
