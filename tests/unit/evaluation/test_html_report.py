"""The report must open from disk in a browser, filter, and never run what a model wrote."""

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.browser import BROWSER, opened
from vidtune.evaluation.html_report import ReportSample, write_report
from vidtune.evaluation.metrics import accuracies
from vidtune.evaluation.plots import plot_accuracy
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.tables import Column, Table

ATTACK = "<script>document.title='hit'</script>"


def strip() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (200, 72), "red").save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def report(tmp_path: Path) -> Path:
    def answers(i: int) -> dict[str, Prediction]:
        common = {"question": f"question {i}", "question_type": "AB"[i % 2], "answer": "x"}
        return {
            "one": Prediction(str(i), prediction=ATTACK, correct=i < 6, **common),
            "two": Prediction(str(i), prediction="y", correct=i < 3, **common),
        }

    samples = [ReportSample(answers(i), f"<visual×8>{ATTACK}", strip()) for i in range(10)]
    rows = {name: accuracies([sample.answers[name] for sample in samples]) for name in ("one", "two")}
    table = Table([Column("run"), Column("accuracy", "percent")], [("one", 0.6), (ATTACK, None)], notes=["a note"])
    return write_report(tmp_path / "report.html", f"Title {ATTACK}", [table], [plot_accuracy(rows)], samples, "all")


def test_the_page_needs_nothing_else_and_escapes_what_models_write(report: Path) -> None:
    text = report.read_text()
    assert "http:" not in text and "https:" not in text and "<link" not in text
    assert ATTACK not in text and text.count("<article") == 10
    assert text.count("data:image/jpeg;base64,") == 10 and text.count("data:image/png;base64,") == 1


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_a_browser_shows_all_samples_and_filters_them(report: Path) -> None:
    dom = opened(report)
    assert "10 of 10 samples" in dom and "<title>hit" not in dom
    choose = "type.value='A'; right.value='some'; right.dispatchEvent(new Event('input'))"
    assert "1 of 10 samples" in opened(report, choose)  # of 3, 4, 5 only 4 is of type A
    search = "text.value='QUESTION 7'; text.dispatchEvent(new Event('input'))"
    dom = opened(report, search)
    assert "1 of 10 samples" in dom and dom.count('hidden=""') == 9
