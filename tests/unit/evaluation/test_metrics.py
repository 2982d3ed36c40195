import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.proportion import proportion_confint
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from vidtune.contracts import UserError
from vidtune.evaluation.classification import classes
from vidtune.evaluation.comparison import mcnemar, mean_interval, pair, paired_bootstrap
from vidtune.evaluation.metrics import accuracies, wilson_interval
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.text_metrics import meteor, rouge_l, why_no_meteor


def answered(sample_id, question_type, correct, answer="x", options=("x", "y"), **kwargs):
    return Prediction(
        str(sample_id), question_type=question_type, correct=correct, answer=answer, options=options, **kwargs
    )


FEW = [
    answered(1, "CW", True, "x"),
    answered(2, "CW", False, "x"),
    answered(3, "CW", True, "y", status="ok"),
    answered(4, "TN", True, "y", options=("x", "y", "z", "w")),
    answered(5, "TP", False, "x", status="unparsed"),
    answered(6, "", False, "x", status="bad_media"),
]


def test_accuracy_by_type_group_and_total_by_hand():
    rows = accuracies(FEW, {"T": ["TN", "TP"], "TN+TP": ["TP", "TN"], "D": ["DC"]})
    assert list(rows) == ["(no type)", "CW", "TN", "TP", "T", "TN+TP", "D", "total"]
    assert (rows["CW"].n, rows["CW"].correct) == (3, 2)
    assert rows["CW"].majority == pytest.approx(2 / 3)  # x, x, y
    assert rows["T"] == rows["TN+TP"]
    assert rows["T"].value == 0.5
    assert rows["T"].chance == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert rows["T"].majority == 1.0  # a majority per type: y for TN, x for TP
    assert (rows["D"].n, rows["D"].value, rows["D"].interval) == (0, None, None)
    total = rows["total"]
    assert (total.n, total.correct, total.unparsed, total.bad_media) == (6, 3, 1, 1)
    assert total.majority == pytest.approx(5 / 6)


def test_chance_is_undefined_without_options():
    rows = accuracies([answered(1, "a", True), answered(2, "b", True, options=())])
    assert rows["a"].chance == 0.5
    assert rows["b"].chance is None
    assert rows["total"].chance is None


def test_one_question_type_makes_one_row():
    assert list(accuracies([answered(1, "CW", True), answered(2, "CW", False)])) == ["total"]


@pytest.mark.parametrize(
    ("predictions", "groups", "message"),
    [
        ([], None, "no predictions"),
        ([answered(1, "CW", None)], None, "1 of 1 predictions have no reference answer"),
        ([answered(1, "CW", True)], {"CW": ["CW"]}, "'CW' is also a row of its own"),
        ([answered(1, "CW", True)], {"total": ["CW"]}, "'total' is also a row"),
    ],
)
def test_no_wrong_table_is_made(predictions, groups, message):
    with pytest.raises(UserError, match=message):
        accuracies(predictions, groups)


@pytest.mark.parametrize(("correct", "n"), [(0, 5), (5, 5), (1, 1), (37, 50), (4103, 4996)])
def test_wilson_interval_is_that_of_a_statistics_library(correct, n):
    assert wilson_interval(correct, n) == pytest.approx(proportion_confint(correct, n, method="wilson"), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_mcnemar_is_that_of_a_statistics_library(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.random(200) < 0.6, rng.random(200) < 0.7
    table = [[(first & second).sum(), (first & ~second).sum()], [(~first & second).sum(), (~first & ~second).sum()]]
    result = mcnemar(list(first), list(second))
    assert (result.only_first, result.only_second) == (table[0][1], table[1][0])
    assert result.p_value == pytest.approx(reference_mcnemar(table, exact=True).pvalue)


def test_equal_runs_do_not_differ():
    assert mcnemar([True, False], [True, False]).p_value == 1.0
    difference = paired_bootstrap([1, 0, 1], [1, 0, 1])
    assert (difference.mean, difference.interval, difference.distinguishable) == (0.0, (0.0, 0.0), False)


def test_paired_bootstrap_agrees_with_the_normal_approximation():
    rng = np.random.default_rng(0)
    first = rng.random(2000) < 0.6
    second = np.where(rng.random(2000) < 0.9, first, True)  # strongly paired: better on a tenth of the questions
    difference = paired_bootstrap(first, second)
    values = second.astype(float) - first
    margin = 1.96 * values.std() / np.sqrt(len(values))
    assert difference.mean == pytest.approx(values.mean())
    assert difference.interval == pytest.approx((values.mean() - margin, values.mean() + margin), abs=0.1 * margin)
    assert difference.distinguishable
    assert paired_bootstrap(first, second) == difference, "the same seed must give the same interval"


def test_interval_of_a_single_question_is_undefined():
    assert mean_interval([0.5]) is None
    assert not paired_bootstrap([0], [1]).distinguishable


def test_other_sample_sets_are_not_compared():
    with pytest.raises(UserError, match=r"1 only in lora \(e.g. '6'\); 1 only in full \(e.g. '7'\)"):
        pair(FEW, [*FEW[:-1], answered(7, "CW", True)], ("lora", "full"))
    with pytest.raises(UserError, match="sample '1' is not the same question"):
        pair(FEW, [answered(1, "CW", True, answer="y"), *FEW[1:]])
    assert [(a.sample_id, b.sample_id) for a, b in pair(FEW, FEW[::-1])] == [(str(i), str(i)) for i in range(1, 7)]


def test_per_class_results_are_those_of_torchmetrics():
    labels = ["a", "b", "c", "d"]
    rng = np.random.default_rng(1)
    target, answers = rng.integers(0, 3, 60), rng.integers(0, 3, 60)  # d occurs nowhere
    predictions = [
        Prediction(str(i), answer=labels[t], parsed=labels[p]) for i, (t, p) in enumerate(zip(target, answers))
    ]
    found = classes(predictions, labels)
    given = torch.tensor(answers), torch.tensor(target)
    np.testing.assert_array_equal(found.confusion[:, :4], multiclass_confusion_matrix(*given, num_classes=4))
    for ours, reference in (
        (found.precision, multiclass_precision),
        (found.recall, multiclass_recall),
        (found.f1, multiclass_f1_score),
    ):
        np.testing.assert_allclose(ours, reference(*given, num_classes=4, average="none"), rtol=1e-6)
    assert found.macro_f1 == pytest.approx(float(multiclass_f1_score(*given, num_classes=4, average="macro")))


def test_no_answer_lowers_recall_but_not_precision():
    found = classes([Prediction("1", answer="a", parsed="a"), Prediction("2", answer="a")], ["a", "b"])
    assert found.confusion.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert (found.precision[0], found.recall[0]) == (1.0, 0.5)
    assert found.f1[0] == pytest.approx(2 / 3)
    assert found.table().cell("a", "n") == 2
    with pytest.raises(UserError, match="sample '3': 'z' is none of the 2 labels"):
        classes([Prediction("3", answer="z")], ["a", "b"])


def test_rouge_l_by_hand():
    # LCS of "police kill the gunman" and "police killed the gunman" is 3 of 4 words each way.
    assert rouge_l("police kill the gunman", "Police killed the gunman.") == pytest.approx(0.75)
    # LCS 2 ("the gunman"), P = 2/4, R = 2/4
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(0.5)
    assert rouge_l("", "police") == 0.0


def test_meteor_is_computed_or_says_what_it_lacks():
    if why_no_meteor() is None:
        assert meteor("the cat sat on the mat", "the cat sat on the mat") == pytest.approx(0.9977, abs=1e-4)
    else:
        assert "pip install nltk" in why_no_meteor() or "nltk.downloader wordnet" in why_no_meteor()


def test_paired_bootstrap_by_hand():
    """Three questions have 27 equally likely resamples; those of -1, 0, +1 have the means k/3 with known counts."""
    means = np.array([sum(draw) / 3 for draw in itertools.product((-1, 0, 1), repeat=3)])
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    difference = paired_bootstrap([1, 1, 0], [0, 1, 1])
    assert difference.mean == 0
    assert difference.interval == (pytest.approx(low), pytest.approx(high)) == (pytest.approx(-1), pytest.approx(1))
    # Of 40 questions 10 are won: the resampled count is binomial, so the interval is that of its quantiles.
    difference = paired_bootstrap([0] * 40, [1] * 10 + [0] * 30)
    assert difference.interval == pytest.approx(binom.ppf([0.025, 0.975], 40, 0.25) / 40, abs=1 / 40)
