import pytest

from vidtune.contracts import Message, Sample, UserError
from vidtune.evaluation.tasks import TASKS, build_task, rescore

OPTIONS = ("roll the handle", "tap their feet", "strum the string", "hit with sticks", "pat with hand")


def sample(sample_id="1", answer="tap their feet", options=OPTIONS, question_type="CW", **kwargs):
    messages = (Message("user", ("why? ",)), Message("assistant", (answer,)))
    return Sample(
        sample_id, messages, source="set", question_type=question_type, options=options, answer=answer, **kwargs
    )


def test_letter_answers_are_scored_and_recorded():
    task = build_task("multiple_choice")
    right = task.score(sample(extra={"video": 7}), "B.")
    assert (right.parsed, right.correct, right.status) == ("B", True, "ok")
    assert (right.question, right.answer, right.options, right.extra) == ("why?", OPTIONS[1], OPTIONS, {"video": 7})
    wrong = task.score(sample(), "(C)")
    assert (wrong.parsed, wrong.correct, wrong.status) == ("C", False, "ok")


def test_unparsed_answers_and_bad_media_are_wrong_and_counted():
    task = build_task("multiple_choice")
    predictions = [
        task.score(sample("1"), "no idea"),
        task.bad_media(sample("2"), "moov atom not found"),
        task.score(sample("3"), "B"),
    ]
    assert [p.correct for p in predictions] == [False, False, True]
    assert predictions[1].extra == {"bad_media": "moov atom not found"}
    table = task.summarise(predictions)
    assert table.rows == [
        ("total", 3, pytest.approx(1 / 3), table.cell("total", "95 % interval"), pytest.approx(0.2), 1.0, 1, 1)
    ]
    assert task.metrics(predictions) == {"accuracy": pytest.approx(1 / 3), "unparsed": pytest.approx(1 / 3)}


def test_option_text_counts_only_where_asked_for():
    text = "they tap their feet"
    assert build_task("multiple_choice").score(sample(), text).status == "unparsed"
    assert build_task("multiple_choice", accept_option_text=True).score(sample(), text).correct


def test_either_of_two_equal_options_is_right():
    twice = sample(answer="x", options=("x", "y", "x"))
    assert [build_task("multiple_choice").score(twice, letter).correct for letter in "ABC"] == [True, False, True]


@pytest.mark.parametrize("reply", ["B", "(B)", "B. tap their feet", "tap their feet"])
def test_a_set_may_answer_with_letters_as_with_texts(reply):
    task = build_task("multiple_choice")
    row = sample(answer=reply)
    task.check(row)
    predictions = [task.score(row, letter) for letter in "AB"]
    assert [prediction.correct for prediction in predictions] == [False, True]
    assert task.summarise(predictions).cell("total", "majority") == 1.0
    expected = {"B": "C", "(B)": "(C)", "B. tap their feet": f"C. {OPTIONS[2]}", "tap their feet": OPTIONS[2]}
    assert task.candidates(row)[2] == expected[reply]
    with pytest.raises(UserError, match=r"found options .* and answer 'F'"):
        task.check(sample(answer="F"))


def test_benchmark_groups_are_data():
    types = {"CW": "BBC", "CH": "B", "TN": "BC", "TP": "C", "DO": "B"}
    groups = {"C": ["CW", "CH"], "T": ["TN", "TC", "TP"], "D": ["DC", "DL", "DO"], "TN+TP": ["TN", "TP"]}
    task = build_task("multiple_choice", groups=groups)
    predictions = [
        task.score(sample(f"{name}{i}", question_type=name), letter)
        for name, letters in types.items()
        for i, letter in enumerate(letters)
    ]
    table = task.summarise(predictions)
    assert dict(zip(table.column("question type"), table.column("accuracy"))) == pytest.approx(
        {"CH": 1, "CW": 2 / 3, "DO": 1, "TN": 1 / 2, "TP": 0}
        | {"C": 3 / 4, "T": 1 / 3, "D": 1, "TN+TP": 1 / 3, "total": 5 / 8}
    )
    assert task.metrics(predictions)["accuracy/C"] == 0.75


def test_majority_of_a_multiple_choice_set_is_a_letter():
    task = build_task("multiple_choice")
    rotated = sample("2", answer="hit with sticks", options=(OPTIONS[0], "hit with sticks", *OPTIONS[2:3]))
    table = task.summarise([task.score(sample("1"), "B"), task.score(rotated, "B")])
    assert table.cell("total", "majority") == 1.0  # "B" both times, though the texts differ


def test_classification_over_a_label_list():
    task = build_task("closed_set", labels=("jump", "run", "mountain-climbers"), text_before=" - ")
    row = sample(answer="mountain-climbers - good form", options=())
    right = task.score(row, "Mountain climbers - keep your back straight, do not run")
    assert (right.parsed, right.correct) == ("mountain-climbers", True)
    wrong = task.score(sample("2", answer="run", options=()), "they jump")
    table = task.summarise([right, wrong])
    assert table.cell("total", "chance") == pytest.approx(1 / 3)
    assert table.notes == ["Macro F1 over the labels 33.3 %."]  # F1 1 (climbers), 0 (run), 0 (jump, answered wrongly)
    assert task.metrics([right, wrong])["macro_f1"] == pytest.approx(1 / 3)


def test_options_that_all_questions_share_are_classes():
    task, actions = build_task("closed_set"), ("Sit down", "Stand up")
    answers = [("Sit down", "sit down."), ("Sit down", "Stand up"), ("Stand up", "no idea")]
    rows = [task.score(sample(str(n), answer=a, options=actions), text) for n, (a, text) in enumerate(answers)]
    results = task.by_class(rows)
    assert results.confusion_table().rows == [("Sit down", 1, 1, 0), ("Stand up", 0, 0, 1)]
    assert results.table().column("recall") == [0.5, 0.0] and results.table().column("precision") == [1.0, 0.0]
    assert task.metrics(rows)["macro_f1"] == pytest.approx(1 / 3)  # F1 2/3 and 0
    rows.append(task.score(sample("9", answer="2", options=("1", "2")), "2"))
    assert task.by_class(rows) is None and "macro_f1" not in task.metrics(rows)


def test_closed_answers_come_from_each_samples_options():
    task = build_task("closed_set")
    assert task.score(sample(answer="2", options=("1", "2", "3")), "Two.").correct
    assert task.score(sample(answer="red", options=("red", "blue")), "red or blue").status == "unparsed"


def test_open_answers_carry_every_metric_that_applies():
    task = build_task("open_answer")
    sentence = task.score(sample("1", answer="guitar"), "He plays the guitar.")
    assert not sentence.correct
    assert sentence.score["contains_answer"] == 1.0
    assert sentence.score["token_f1"] == pytest.approx(0.5)  # P = 1/3, R = 1
    assert sentence.score["rouge_l"] == pytest.approx(0.4)  # P = 1/4, R = 1
    assert "yes_no" not in sentence.score
    yes = task.score(sample("2", answer="yes"), "Yes, he does.")
    assert yes.score["yes_no"] == 1.0
    empty = task.score(sample("3", answer="no"), " ")
    assert (empty.status, empty.correct) == ("unparsed", False)
    table = task.summarise([sentence, yes, empty])
    assert table.cell("total", "accuracy") == 0.0
    assert table.cell("total", "chance") is None
    assert any(note.startswith("yes_no: 50.0 %") and "n = 2" in note for note in table.notes)
    assert any(note.startswith("meteor") for note in table.notes), "METEOR or the reason for its absence"
    assert build_task("open_answer", correct_by="contains_answer").score(sample(answer="guitar"), "a guitar").correct


def test_stored_predictions_are_scored_again_without_a_model():
    strict, lenient = build_task("multiple_choice"), build_task("multiple_choice", accept_option_text=True)
    stored = [strict.score(sample("1"), "tap their feet"), strict.bad_media(sample("2"), "broken")]
    again = rescore(lenient, stored)
    assert [p.correct for p in again] == [True, False]
    assert again[1] == stored[1]
    assert rescore(strict, again) == stored


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("multiple_choice", sample(answer=""), "set sample '1' has no reference answer"),
        ("multiple_choice", sample(options=()), "multiple_choice expects 2 to 26 options"),
        ("multiple_choice", sample(answer="swim"), "the answer's text among them.*'swim'"),
        ("closed_set", sample(answer="swim"), "answer 'swim' is none of the 5 possible ones"),
    ],
)
def test_data_that_does_not_fit_the_task_is_refused_before_a_model_runs(task, row, message):
    with pytest.raises(UserError, match=message):
        build_task(task).check(row)


def test_unknown_tasks_and_options_name_the_known_ones():
    with pytest.raises(UserError, match=r"no task 'multiple'.*'multiple_choice'"):
        build_task("multiple")
    with pytest.raises(UserError, match=r"no option 'label'.*labels"):
        build_task("closed_set", label=["x"])
    named = {"multiple_choice", "closed_set", "open_answer", "judged_answer", "exercise_feedback", "perplexity"}
    assert set(TASKS) == named


def test_bert_score_is_computed_from_a_local_model_or_says_what_it_lacks(tmp_path):
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "ball", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    ).save_pretrained(tmp_path)
    task = build_task("open_answer", bert_model=str(tmp_path))
    same = [task.score(sample("1", "red ball"), "red ball"), task.score(sample("2", "blue cat"), "blue cat")]
    assert task.metrics(same)["bert_score"] == pytest.approx(1.0, abs=1e-5)
    other = [task.score(sample("1", "red ball"), "blue cat")]
    assert task.metrics(other)["bert_score"] < 1
    assert any(note.startswith("bert_score: 100.0 %") for note in task.summarise(same).notes)
    for model, reason in (("", "no model is named"), ("nobody/nothing", "neither a folder nor in the Hugging Face")):
        notes = build_task("open_answer", bert_model=model).summarise(same).notes
        assert any(note.startswith("bert_score: not computed: ") and reason in note for note in notes)


def test_meteor_is_computed_where_its_data_lie_and_otherwise_says_what_it_lacks(monkeypatch):
    from vidtune.evaluation import open_answers

    monkeypatch.setattr(
        open_answers, "why_no_meteor", lambda: "nltk has no WordNet data (python -m nltk.downloader wordnet)"
    )
    task = build_task("open_answer")
    without = [task.score(sample("1", "red ball"), "red ball")]
    assert "meteor" not in without[0].score and "meteor" not in task.metrics(without)
    assert (
        "meteor: not computed: nltk has no WordNet data (python -m nltk.downloader wordnet)"
        in task.summarise(without).notes
    )

    monkeypatch.setattr(open_answers, "why_no_meteor", lambda: None)
    monkeypatch.setattr(open_answers, "meteor", lambda answer, reference: 0.75)
    assert (
        "meteor: not computed: these predictions were scored without it; score them again"
        in task.summarise(without).notes
    )
    with_data = [task.score(sample("1", "red ball"), "red ball")]
    assert task.metrics(with_data)["meteor"] == 0.75
    assert any(note.startswith("meteor: 75.0 %") for note in task.summarise(with_data).notes)
