"""Going on with a run: its configuration, as long as its steps stay what they were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vidtune.contracts import UserError
from vidtune.data.datamodule import BatchArithmetic
from vidtune.run.recipe import with_recipe
from vidtune.training.strategies import num_processes


def resumed_config(cfg: DictConfig, run_dir: Path, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run with what the command line says.

    Strategy, number of processes and of data workers may change, the samples of an optimizer step may not: the plan of
    the data counts in steps, so that samples would be repeated or left out.

    Raises:
        UserError: no run folder, or the number of samples per step has changed.
    """
    merged = with_recipe(cfg, run_dir, overrides, everything=True)
    record = run_dir / "config.resolved.yaml"  # where devices were counted, what was found then
    if record.is_file():
        before, now = _batch(OmegaConf.load(record)), _batch(merged)
        if before.global_batch_size != now.global_batch_size:
            raise UserError(
                f"resume={run_dir}: a step of this run holds {before.global_batch_size} samples ({before}), and now "
                f"it would hold {now.global_batch_size} ({now}). Set global_batch_size={before.global_batch_size} "
                f"accumulation=null, or the hardware it began with (hardware.devices, hardware.num_nodes)."
            )
    return merged


def _batch(cfg: DictConfig) -> BatchArithmetic:
    processes = num_processes(cfg.hardware)
    return BatchArithmetic.derive(cfg.global_batch_size, cfg.micro_batch_size, cfg.accumulation, processes)
