import csv
import io

import pytest
from rich.console import Console

from vidtune.contracts import UserError
from vidtune.evaluation.by_type import compare_types
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.run_table import RunPredictions, compare_runs
from vidtune.evaluation.tables import Column, Table

TABLE = Table(
    [Column("run"), Column("n", "count"), Column("accuracy", "percent"), Column("interval", "interval")],
    [("a|b [red]", 4996, 0.81234, (0.8, 0.825)), ("empty", 0, None, None)],
    title="Title",
    notes=["first", "second"],
)


def test_markdown_shows_percent_and_keeps_pipes_in_names():
    assert TABLE.markdown() == (
        "**Title**\n\n"
        "| run | n | accuracy | interval |\n"
        "|:---|---:|---:|---:|\n"
        "| a\\|b [red] | 4,996 | 81.2 | 80.0 to 82.5 |\n"
        "| empty | 0 | – | – |\n\n"
        "- first\n- second\n"
    )


def test_csv_keeps_full_precision_and_splits_intervals():
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows == [
        ["run", "n", "accuracy", "interval low", "interval high"],
        ["a|b [red]", "4996", "0.81234", "0.8", "0.825"],
        ["empty", "0", "", "", ""],
    ]


def test_terminal_shows_names_with_brackets():
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(TABLE.rich())
    text = console.export_text()
    assert "a|b [red]" in text
    assert "81.2" in text
    assert "second" in text


def test_every_piece_of_a_wide_table_says_what_its_rows_are() -> None:
    names = [Column("run"), Column("question type"), *(Column(f"metric {i}", "percent") for i in range(7))]
    table = Table(names, [("a", "count", *(0.5,) * 6, None), ("a", "total", *(0.25,) * 6, None)], notes=["a note"])
    pieces = table.narrow(60)
    assert len(pieces) > 1
    assert all([column.name for column in piece.columns[:2]] == ["run", "question type"] for piece in pieces)
    # The seventh holds no value in any row.
    assert [c.name for piece in pieces for c in piece.columns[2:]] == [f"metric {i}" for i in range(6)]
    assert [piece.rows[1][:2] for piece in pieces] == [["a", "total"]] * len(pieces)
    assert [piece.notes for piece in pieces] == [[]] * (len(pieces) - 1) + [["a note"]]


def test_saved_tables_read_back(tmp_path):
    markdown, comma = TABLE.save(tmp_path / "eval", "accuracy")
    assert (markdown.name, markdown.read_text()) == ("accuracy.md", TABLE.markdown())
    assert (comma.name, comma.read_text()) == ("accuracy.csv", TABLE.csv())


def run(name, right, **made_by):
    predictions = [
        Prediction(str(i), question_type="AB"[i % 2], answer="x", correct=i in right, score={"f1": i / 10})
        for i in range(10)
    ]
    return RunPredictions(name, predictions, made_by)


def test_runs_are_compared_with_the_first():
    table = compare_runs(
        [run("base", range(4), frames=8), run("lora", range(10), frames=8, rank=64)], {"all": ["A", "B"]}
    )
    assert table.column("run") == ["base", "lora"]
    assert table.column("accuracy") == [0.4, 1.0]
    assert table.column("difference") == [None, pytest.approx(0.6)]
    assert table.column("p") == [None, pytest.approx(2 * 0.5**6)]  # six questions, all won by the second run
    low, high = table.cell("lora", "difference 95 % interval")
    assert 0 < low < 0.6 < high <= 1
    assert table.column("A") == [0.4, 1.0]
    assert table.column("all") == table.column("accuracy")
    assert table.column("f1") == [pytest.approx(0.45)] * 2
    assert table.column("rank") == [None, 64]
    assert "base" in table.notes[0]


def test_runs_stand_side_by_side_by_question_type():
    table = compare_types([run("base", range(4)), run("lora", range(10))], {"all": ["A", "B"]})
    assert table.column("question type") == ["A", "B", "all", "total"] and table.column("n") == [5, 5, 10, 10]
    assert table.column("base") == [0.4, 0.4, 0.4, 0.4] and table.column("lora") == [1.0] * 4
    low, high = table.cell("A", "base 95 % interval")
    assert low < 0.4 < high and table.column("base unparsed") == [0] * 4


def test_runs_on_other_samples_are_refused():
    other = RunPredictions("lora", run("lora", []).predictions[:-1])
    with pytest.raises(UserError, match="base and lora answered different samples: 1 only in base"):
        compare_runs([run("base", []), other])
    with pytest.raises(UserError, match="different names"):
        compare_runs([run("base", []), run("base", [])])
    with pytest.raises(UserError, match="different names"):
        compare_runs([])
