"""A run of Weights & Biases holds the curves and tables of the run folder; checked offline."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from wandb.proto import wandb_internal_pb2

from tests.helpers import config, small_run
from vidtune.analysis import load_run
from vidtune.run import evaluate, train
from vidtune.run.train import RUN_DIR_VARIABLE

BLOCK, HEADER = 32768, 7


def chunks(content: bytes) -> Iterator[bytes]:
    """Records of an offline run's file: LevelDB's log format after a header of seven bytes."""
    position, record = 7, b""
    while position < len(content):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # too short for a header: filled with zeros
            position += left
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + HEADER])
        record += content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def records(run_dir: Path) -> Iterator[Any]:
    """What the service would have been sent."""
    for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for data in chunks(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            yield record


def history(run_dir: Path) -> pd.DataFrame:
    rows = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records(run_dir)
        if record.WhichOneof("record_type") == "history"
    ]
    return pd.DataFrame(rows)


def table(run_dir: Path, key: str) -> pd.DataFrame:
    [file] = run_dir.glob(f"wandb/offline-run-*/files/media/table/{key}_*.table.json")
    content = json.loads(file.read_text())
    return pd.DataFrame(content["data"], columns=content["columns"])


@pytest.mark.slow  # W&B's service starts twice
def test_a_run_carries_its_curves_and_every_evaluation_its_tables(
    shapes: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    logger = ["logger=wandb", "logger.wandb.offline=true"]
    overrides = small_run(shapes, cache_dir, tmp_path, "run_name=logged", "trainer.val_samples=4", *logger)
    train(config("train", overrides), overrides)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    run_dir = tmp_path / "logged"
    words = [f"run={run_dir}", "hardware=cpu", "eval.limit=8", "eval.controls=true"]
    metrics = evaluate(config("evaluate", words), words)

    logged, metrics_csv = history(run_dir), load_run(run_dir).metrics
    for name in ("train/loss", "val/loss", "speed/samples_per_s"):
        assert logged[name].dropna().tolist() == pytest.approx(metrics_csv[name].dropna().tolist())
    curves = table(run_dir, "curves")
    assert {"step", "samples", "hours", "train/loss", "val/loss"} <= set(curves)
    assert curves["train/loss"].tolist() == pytest.approx(metrics_csv["train/loss"].tolist())
    assert list(run_dir.glob("wandb/offline-run-*/files/media/images/loss_curve_*.png"))

    [evaluation] = (run_dir / "evaluation").iterdir()
    for name in ("accuracy", "runs", "controls"):
        shown, saved = table(run_dir, f"shapes_test/{name}"), pd.read_csv(evaluation / f"{name}.csv")
        assert list(shown) == list(saved) and len(shown) == len(saved)
        number = {"accuracy": "accuracy", "runs": "accuracy", "controls": "video"}[name]
        assert shown[number].tolist() == pytest.approx(saved[number].tolist())
    assert list(run_dir.glob("wandb/offline-run-*/files/media/html/shapes_test/report_*.html"))
    summaries = {
        ".".join(item.nested_key) or item.key: json.loads(item.value_json)
        for record in records(run_dir)
        for item in record.summary.update
    }
    assert summaries["shapes_test/accuracy"] == metrics["accuracy"]
    ids = {record.run.run_id for record in records(run_dir) if record.WhichOneof("record_type") == "run"}
    assert ids == {"logged"}, "training and evaluation are one run"
