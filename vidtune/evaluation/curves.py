"""Logged metrics of a run: reading Lightning's sparse ``metrics.csv``, smoothing."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vidtune.contracts import UserError


def read_metrics(path: Path | str) -> pd.DataFrame:
    """One row per optimizer step, ascending; a metric that was not logged at a step is NaN.

    Lightning's CSVLogger writes a line per logging call, so that training and validation of one step are two sparse
    lines: they are merged. Where a resumed run logged a step again, the later value counts.

    Raises:
        UserError: no such file, no lines, or no column ``step``.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such metrics file. Give the folder of a run that trained at least one step.")
    try:
        lines = pd.read_csv(path)
    except pd.errors.ParserError as error:
        raise UserError(f"{path}: not a CSV file ({error}).") from None
    except pd.errors.EmptyDataError:
        lines = pd.DataFrame()
    if lines.empty or "step" not in lines:
        raise UserError(f"{path}: expected lines with a column 'step', found columns {list(lines.columns)}.")
    return lines.groupby("step", as_index=False).last()


def curve(metrics: pd.DataFrame, column: str, x: str = "step") -> pd.Series:
    """The logged values of one metric, indexed by ``x``.

    Args:
        x: any column that grows with the steps (``step``, samples seen, hours); where a step lacks it, the last known
            value counts.
    """
    return pd.Series(metrics[column].to_numpy(), index=metrics[x].ffill(), name=column).dropna()


def smooth(values: pd.Series, weight: float = 0.8) -> pd.Series:
    """Exponential moving average with bias correction, as TensorBoard draws it.

    Args:
        weight: of the past, in [0, 1); 0 changes nothing.
    """
    if not 0 <= weight < 1:
        raise UserError(f"Smoothing weight {weight} is outside [0, 1).")
    return values.ewm(alpha=1 - weight, adjust=True).mean()


def pivot(runs: pd.DataFrame, row: str, column: str, metric: str) -> pd.DataFrame:
    """One metric of a sweep over two settings as rows x columns, both ascending.

    Args:
        runs: one row per run.

    Raises:
        UserError: two runs share both settings, so that a cell would hold two values.
    """
    keys = runs[[row, column]].astype(object)
    if keys.duplicated().any():
        twice = keys[keys.duplicated()].iloc[0].to_dict()
        raise UserError(f"Several runs have {twice}; a grid needs one run per cell. Choose the runs by a pattern.")
    values = runs.assign(**{metric: pd.to_numeric(runs[metric])}).pivot(index=row, columns=column, values=metric)
    return values.sort_index(key=_numbers).sort_index(axis=1, key=_numbers)


def _numbers(index: pd.Index) -> pd.Index:
    """Numbers in text ordered by value."""
    try:
        return pd.Index(pd.to_numeric(index))
    except (ValueError, TypeError):
        return index.astype(str)
