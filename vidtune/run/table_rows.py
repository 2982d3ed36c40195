"""Which models an evaluation compares: runs, adapters trained elsewhere, and the untuned model."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from vidtune.checkpoint.locate import find_checkpoint
from vidtune.contracts import UserError
from vidtune.run.recipe import with_recipe


@dataclass(frozen=True)
class TableRow:
    """One model of the table.

    Args:
        name: unique in the table.
        cfg: its configuration; the recipe is that of its run.
        home: folder below which its predictions lie.
        checkpoint: trained weights of a run.
        adapter: PEFT folder trained elsewhere.
    """

    name: str
    cfg: DictConfig
    home: Path
    checkpoint: Path | None = None
    adapter: str | None = None

    @property
    def run_dir(self) -> Path | None:
        """Folder of the run; None for a model that no run of ours made."""
        return self.home if self.checkpoint is not None else None


def table_rows(cfg: DictConfig, overrides: Sequence[str]) -> list[TableRow]:
    """The untuned model (alone, or where ``untuned=true``), the runs, then the adapters.

    Beside runs, the untuned model and the adapters take the recipe of the first run.

    Raises:
        UserError: a run folder or checkpoint is missing, or a pattern matches none.
    """
    runs = [path for entry in _listed(cfg.run) for path in _matches(entry)]
    adapters = _listed(cfg.adapter)
    short = len({path.name for path in runs}) == len(runs)
    of_runs = [
        TableRow(
            path.name if short else str(path),
            with_recipe(cfg, path, overrides),
            path,
            checkpoint=find_checkpoint(path, cfg.checkpoint),
        )
        for path in runs
    ]
    base = of_runs[0].cfg if of_runs else cfg
    folder = Path(cfg.paths.runs_dir)
    short = len({Path(adapter).name for adapter in adapters}) == len(adapters)
    of_adapters = []
    for adapter in adapters:
        label = Path(adapter).name if short else adapter
        home = folder / f"adapter_{base.model.name}_{label.strip('/').replace('/', '_')}"
        of_adapters.append(TableRow(label, base, home, adapter=adapter))
    alone = not of_runs and not of_adapters
    name = f"untuned_{base.model.name}"
    untuned = [TableRow(name, base, folder / name)] if cfg.untuned or alone else []
    return [*untuned, *of_runs, *of_adapters]


def _listed(value: str | ListConfig | None) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, ListConfig | list) else [str(value)]


def _matches(entry: str) -> list[Path]:
    """The run folder itself, or those that a pattern matches."""
    if not glob.has_magic(entry):
        return [Path(entry)]
    found = [path for path in map(Path, sorted(glob.glob(entry))) if (path / "config.yaml").is_file()]
    if not found:
        raise UserError(f"run={entry}: no run folder (one with a config.yaml) matches. Check the pattern.")
    return found
