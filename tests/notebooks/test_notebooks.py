"""Every notebook runs on tiny runs from top to bottom, and is stored without output."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import ROOT, config, small_run
from vidtune.run import evaluate, train
from vidtune.run.train import RUN_DIR_VARIABLE

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def runs(shapes: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluated runs that differ in tuning, learning rate and seed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, *settings in (("full", "optim.lr=1e-3", "seed=1"), ("lora", "optim.lr=1e-4", "seed=2", "tuning=lora")):
        os.environ.pop(RUN_DIR_VARIABLE, None)
        train(
            config("train", small_run(shapes, cache_dir, folder, f"run_name={name}", "trainer.max_steps=3", *settings))
        )
        words = [f"run={folder / name}", "hardware=cpu", "eval.limit=8", "eval.report_samples=0"]
        evaluate(config("evaluate", words), words)
    os.environ.pop(RUN_DIR_VARIABLE, None)
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDTUNE_RUNS", f"{runs}/*")
    monkeypatch.setenv("VIDTUNE_GRID", "seed,optim.lr")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
            assert ("image/png" if re.search(r"plot_\w+\(", cell.source) else "text/plain") in kinds, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_output(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_holds_no_logic(path: Path) -> None:
    """What computes lies in ``vidtune``, where it is tested; a notebook names runs and calls."""
    logic = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.If, ast.Try)
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            code = re.sub(r"^%.*$", "", cell.source, flags=re.M)
            found = [type(node).__name__ for node in ast.walk(ast.parse(code)) if isinstance(node, logic)]
            assert not found, cell.source
