import numpy as np
import pandas as pd
import pytest

from vidtune.analysis import load_run, load_runs
from vidtune.contracts import UserError
from vidtune.evaluation import plots
from vidtune.evaluation.classification import classes
from vidtune.evaluation.curves import curve, read_metrics, smooth
from vidtune.evaluation.metrics import accuracies
from vidtune.evaluation.records import Prediction, PredictionWriter

SPARSE = """epoch,lr,step,train/loss,val/accuracy,val/loss
0,0.1,1,4.0,,
0,0.1,2,3.0,,
0,,2,,0.5,2.5
0,0.1,3,9.0,,
1,0.1,3,2.0,,
"""


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(SPARSE)
    (folder / "config.yaml").write_text("seed: 7\nmodel:\n  name: tiny\n")
    (folder / "summary.json").write_text('{"val/accuracy": 0.5}')
    with PredictionWriter(folder / "eval" / "test" / "predictions.jsonl", {"split": "test"}, 1) as writer:
        writer.write(Prediction("1", correct=True))
    return folder


def test_sparse_lines_of_a_step_become_one_row_and_resumed_steps_count_once(run_folder):
    metrics = read_metrics(run_folder / "metrics.csv")
    assert metrics["step"].tolist() == [1, 2, 3]
    assert metrics["train/loss"].tolist() == [4.0, 3.0, 2.0]
    assert curve(metrics, "val/loss").to_dict() == {2: 2.5}
    assert metrics["lr"].tolist() == [0.1, 0.1, 0.1]


def test_curves_by_another_axis_know_where_validation_stood():
    metrics = pd.DataFrame({"step": [1, 2], "hours": [0.5, np.nan], "val/loss": [np.nan, 2.0]})
    assert curve(metrics, "val/loss", "hours").to_dict() == {0.5: 2.0}


def test_smoothing_by_hand():
    # weights 0.5^0, 0.5^1, ... over the past, divided by their sum
    values = smooth(pd.Series([4.0, 1.0, 1.0]), 0.5)
    assert values.tolist() == pytest.approx([4.0, (1 + 0.5 * 4) / 1.5, (1 + 0.5 + 0.25 * 4) / 1.75])
    assert smooth(pd.Series([4.0, 1.0]), 0).tolist() == [4.0, 1.0]
    with pytest.raises(UserError, match="outside"):
        smooth(values, 1.0)


@pytest.mark.parametrize("content", ["", "epoch,step\n", "a,b\n1,2\n"])
def test_files_without_metrics_are_named(tmp_path, content):
    path = tmp_path / "metrics.csv"
    with pytest.raises(UserError, match="no such metrics file"):
        read_metrics(path)
    path.write_text(content)
    with pytest.raises(UserError, match="expected lines with a column 'step'"):
        read_metrics(path)


def test_run_folder_opens_as_a_whole(run_folder):
    run = load_run(run_folder)
    assert (run.name, run.config.seed, run.config.model.name) == ("demo", 7, "tiny")
    assert run.metrics["step"].max() == 3
    assert run.summary == {"val/accuracy": 0.5}
    assert [p.sample_id for p in run.predictions["eval/test"]] == ["1"]
    assert list(load_runs(str(run_folder.parent / "*"))) == ["demo"]


def test_folders_that_are_no_runs_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_run(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no config\.yaml"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="no run folder"):
        load_runs(str(tmp_path / "*"))


def test_loss_curve_shows_train_and_validation(run_folder, tmp_path):
    metrics = read_metrics(run_folder / "metrics.csv")
    figure = plots.plot_curves({"demo": metrics}, smoothing=0.5)
    loss, accuracy = figure.axes
    labelled = {line.get_label(): line for line in loss.lines if not line.get_label().startswith("_")}
    assert set(labelled) == {"train/loss", "val/loss"}
    np.testing.assert_allclose(labelled["val/loss"].get_xydata(), [[2, 2.5]])
    assert (accuracy.get_xlabel(), loss.get_ylabel()) == ("optimizer step", "loss (nats per target)")
    path = plots.save(figure, tmp_path / "plots" / "loss.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_overlaid_runs_keep_their_colours(run_folder):
    metrics = read_metrics(run_folder / "metrics.csv")
    without_validation = metrics[["step", "train/loss"]]
    figure = plots.plot_curves({"a": metrics, "b": without_validation}, smoothing=0)
    lines = {line.get_label(): line.get_color() for line in figure.axes[0].lines}
    assert set(lines) == {"a: train/loss", "a: val/loss", "b: train/loss"}
    assert lines["a: train/loss"] == lines["a: val/loss"] != lines["b: train/loss"]


def test_curves_that_were_not_logged_are_refused(run_folder):
    metrics = read_metrics(run_folder / "metrics.csv")
    with pytest.raises(UserError, match=r"No run logged loss; logged are .*train/loss"):
        plots.plot_curves({"demo": metrics}, panels=[["loss"]])
    with pytest.raises(UserError, match="demo: no column 'hours'"):
        plots.plot_curves({"demo": metrics}, x="hours")


def test_accuracy_bars_stand_at_their_values_even_at_the_bounds():
    predictions = [
        Prediction(str(i), question_type="AB"[i % 2], correct=i % 2 == 0, options=("x", "y")) for i in range(8)
    ]
    figure = plots.plot_accuracy({"one": accuracies(predictions), "two": accuracies(predictions[:6])})
    assert [bar.get_height() for bar in figure.axes[0].patches] == [1.0, 0.0, 0.5] * 2


def test_heatmap_leaves_unfinished_jobs_white():
    values = pd.DataFrame([[0.5, np.nan], [0.75, 1.0]], index=pd.Index([8, 64], name="rank"), columns=[1e-4, 2e-4])
    axis = plots.plot_heatmap(values).axes[0]
    assert [text.get_text() for text in axis.texts] == ["50.0", "75.0", "100.0"]
    assert axis.get_ylabel() == "rank"


def test_confusion_matrix_counts_questions():
    results = classes([Prediction("1", answer="a", parsed="b"), Prediction("2", answer="b")], ["a", "b"])
    axis = plots.plot_confusion(results).axes[0]
    assert [text.get_text() for text in axis.texts if text.get_text()] == ["1", "1"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b", "(no answer)"]


def test_a_confusion_matrix_of_very_many_classes_stays_a_picture():
    labels = [str(number) for number in range(150)]
    figure = plots.plot_confusion(classes([Prediction("1", answer="3", parsed="4")], labels))
    assert max(figure.get_size_inches()) < 30 and not figure.axes[0].texts
