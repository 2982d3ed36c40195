"""Feedback on exercises: what is measured against hand-made answers, and the files with timings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from vidtune.contracts import MediaRef, Message, Sample
from vidtune.evaluation.exercise_feedback import named_exercise
from vidtune.evaluation.result_file import save_results
from vidtune.evaluation.sentence_cosine import sentence_cosines
from vidtune.evaluation.tasks import build_task
from vidtune.evaluation.timing import TimingLog, join_timings, read_timings, speed_table


def sample(name: str, answer: str, exercise: str = "squats") -> Sample:
    messages = (Message("user", (MediaRef(f"{name}.mp4"), "How?")), Message("assistant", (answer,)))
    return Sample(name, messages, answer=answer, question_type=exercise)


def test_hyphens_inside_a_name_do_not_end_it() -> None:
    assert named_exercise("Mountain-climbers - too slow\nsquats - fine", " - ") == "mountain-climbers"
    assert named_exercise("No feedback available.", " - ") is None


def test_naming_the_exercise_counts_where_the_reference_names_one() -> None:
    task = build_task("exercise_feedback")
    pairs = [
        ("squats - average", "Squats - stopping early", 1.0),
        ("push-ups - average", "push - average", 0.0),
        ("push-ups - average", "push-ups", 0.0),
        ("No feedback available.", "squats - average", None),
    ]
    for reference, answer, expected in pairs:
        assert task.score(sample("a", reference), answer).score.get("exercise_match") == expected


def test_the_table_is_by_exercise_against_the_majority_of_each() -> None:
    task = build_task("exercise_feedback")
    references = ["squats - average"] * 3 + ["squats - deep"] + ["lunges - average", "lunges - slow"]
    samples = [sample(str(n), text, text.split(" - ")[0]) for n, text in enumerate(references)]
    table = task.summarise([task.score(one, "squats - average") for one in samples])
    assert table.cell("squats", "accuracy") == table.cell("squats", "majority") == 0.75
    assert (table.cell("lunges", "accuracy"), table.cell("lunges", "majority")) == (0.0, 0.5)
    assert table.cell("total", "n") == 6
    notes = " ".join(table.notes)
    assert "exercise_match: 66.7 %" in notes and "rouge_l" in notes
    assert "meteor" in notes and "bert_score: not computed" in notes and "sentence_cosine: not computed" in notes


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "squat", "deep", "slow"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    return str(tmp_path)


def test_sentence_cosine_is_that_of_mean_embeddings_whatever_is_padded(encoder: str) -> None:
    pairs = (("squat deep", "squat deep"), ("squat", "slow"), ("squat deep slow deep", "slow"))
    found = sentence_cosines(pairs, encoder)
    assert found[0] == pytest.approx(1.0, abs=1e-6) and found[1] < 1
    model, tokenizer = BertModel.from_pretrained(encoder).eval(), BertTokenizer.from_pretrained(encoder)
    with torch.no_grad():
        one, two = (model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].mean(0) for t in pairs[1])
    assert found[1] == pytest.approx(torch.cosine_similarity(one, two, dim=0).item(), abs=1e-5)
    assert sentence_cosines(pairs[1:2], encoder)[0] == pytest.approx(found[1], abs=1e-5)
    task = build_task("exercise_feedback", sentence_model=encoder)
    predictions = [task.score(sample("a", "squat"), "squat")]
    assert task.metrics(predictions)["sentence_cosine"] == pytest.approx(1.0, abs=1e-6)
    notes = task.summarise(predictions).notes
    assert any(note.startswith("sentence_cosine: 1.000") and "no BERTScore" in note for note in notes)


def test_the_result_file_has_the_guides_columns_and_the_speed_is_tokens_by_seconds(tmp_path: Path) -> None:
    task = build_task("exercise_feedback")
    samples = [sample("a", "squats - average"), sample("b", "squats - deep"), sample("c", "squats - deep")]
    meter, other = TimingLog(tmp_path / "timing.jsonl"), TimingLog(tmp_path / "timing.part1.jsonl")
    meter(samples[:1], [9], 9.0)
    meter(samples[:2], [6, 2], 1.0)  # asked again after a kill: the last line counts
    other.path.write_text('{"sample_id": "b", "tok')
    predictions = [task.score(one, "squats - average") for one in samples[:2]]
    predictions.append(task.bad_media(samples[2], "no video"))
    timings = read_timings(tmp_path)
    rows = json.loads(save_results(tmp_path, samples, predictions, timings).read_text())
    assert rows[0] == {
        "video_path": "a.mp4",
        "prompt": "How?",
        "ground_truth": "squats - average",
        "prediction": "squats - average",
        "generated_tokens": 6,
        "generation_time": 0.5,
        "tokens_per_second": 12.0,
        "status": "ok",
    }
    assert rows[2]["status"] == "bad_media" and "generation_time" not in rows[2]
    table = speed_table({"run": timings, "scored": {}})
    assert table.rows == [("run", 2, 8, 1.0, 4.0, 8.0)]
    join_timings(tmp_path)
    assert read_timings(tmp_path) == timings and [file.name for file in tmp_path.glob("timing*")] == ["timing.jsonl"]
