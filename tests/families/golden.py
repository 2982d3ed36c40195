"""Where the goldens lie, and which cases there are."""

from __future__ import annotations

import os
from pathlib import Path

COMMITTED = Path(__file__).parents[1] / "golden"


def golden_root() -> Path:
    """The folder that VIDTUNE_GOLDEN names, else the committed first cases."""
    return Path(os.environ.get("VIDTUNE_GOLDEN") or COMMITTED)


def golden_cases(family: str) -> list[Path]:
    """Every case folder of a family.

    Raises:
        FileNotFoundError: there is none; parity must never pass because nothing was compared.
    """
    cases = sorted(path for path in (golden_root() / family).glob("case_*") if path.is_dir())
    if not cases:
        raise FileNotFoundError(f"{golden_root() / family}: no case_* folder; set VIDTUNE_GOLDEN to the goldens.")
    return cases


def golden_files(case: Path) -> list[str]:
    """All files of a case, relative to it."""
    return sorted(str(path.relative_to(case)) for path in case.rglob("*") if path.is_file())
