"""A training run."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig
from rich.console import Console

from vidtune.checkpoint.locate import checkpoint_folder, find_checkpoint, find_run
from vidtune.checkpoint.storage import AtomicCheckpointIO
from vidtune.contracts import UserError
from vidtune.data.datamodule import VideoDataModule
from vidtune.evaluation.curves import read_metrics
from vidtune.evaluation.plots import plot_curves, save
from vidtune.models.shards import Cut
from vidtune.run import slurm
from vidtune.run.build import build_datamodule, build_processor, build_tuned_network, prepare
from vidtune.run.checks import check_config
from vidtune.run.departures import describe_departures
from vidtune.run.features import RunFeatures, open_features
from vidtune.run.hardware import apply_hardware
from vidtune.run.logs import start_logging
from vidtune.run.out_of_memory import LastRow, explain
from vidtune.run.recipe import save_recipe
from vidtune.run.resume import resumed_config
from vidtune.run.wandb_runs import build_logger, log_curves
from vidtune.training.callbacks import BadMediaLedger, Interrupt, Meters, StepCheckpoints, TextLog
from vidtune.training.module import VideoTuner
from vidtune.training.strategies import build_strategy, precision_plugins
from vidtune.tuning.groups import tuning_table
from vidtune.tuning.unrun import unrun_notes

log = logging.getLogger(__name__)

RUN_DIR_VARIABLE = "VIDTUNE_RUN_DIR"
"""Set by the first process, so that those it starts write into the same run folder."""


class Interrupted(SystemExit):
    """A signal ended the run after a checkpoint was written; the exit code is that of the signal."""


def train(cfg: DictConfig, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Train as configured.

    Args:
        cfg: composed from ``conf/train.yaml``.
        overrides: the command line's, which win over the configuration of a resumed run.

    Returns:
        The last logged metrics.

    Raises:
        UserError: anything wrong with the configuration, data or checkpoint; before any weight is loaded where that
            can be known.
        Interrupted: after SIGINT or SIGTERM.
    """
    resumed = find_run(cfg.resume, Path(cfg.paths.runs_dir)) if cfg.resume else _requeued_run(cfg)
    checkpoint = find_checkpoint(resumed, "last") if resumed else None
    if resumed:
        cfg = resumed_config(cfg, resumed, overrides)
    check_config(cfg)
    start_logging()
    run_dir = resumed or _new_run_dir(cfg)
    os.environ[RUN_DIR_VARIABLE] = str(run_dir)

    L.seed_everything(cfg.seed, workers=True, verbose=False)
    apply_hardware(cfg.hardware)
    prepare(cfg)
    processor = build_processor(cfg)
    data = build_datamodule(cfg, processor, run_dir)
    data.setup()
    features = open_features(cfg, data.source)
    if features is not None:
        features.plan(data.media, "train", epochs=True)
    if rank_zero_only.rank == 0 and resumed is None:
        save_recipe(cfg, processor, run_dir)
    start_logging(run_dir)
    log.info("%s", data.batch)
    log.info("%s", data.describe())
    if departures := describe_departures(cfg):
        log.info("%s", departures)

    module = VideoTuner(
        partial(_build_and_report, cfg, features),
        instantiate(cfg.optim.optimizer),
        instantiate(cfg.optim.schedule),
        lr=cfg.optim.lr,
        weight_decay=cfg.optim.weight_decay,
        rows_per_step=data.batch.accumulation * data.batch.processes,
        num_steps=data.steps,
    )
    checkpoints = _checkpoints(cfg, data, run_dir)
    interrupt = Interrupt(checkpoints)
    row = LastRow()
    trainer = _build_trainer(cfg, data, run_dir, checkpoints, [interrupt, row])
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except torch.OutOfMemoryError as error:
        raise UserError(explain(cfg, row.batch, error)) from error
    finally:
        if features is not None:
            features.close()
    return _finish(trainer, checkpoints, interrupt, run_dir)


def _run_dir(cfg: DictConfig) -> Path:
    """The folder that a new run writes into."""
    if not cfg.run_name and not slurm.job_id() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("run_name is not set: processes that torchrun starts need one to share. Set run_name=...")
    number = slurm.job_id() or time.strftime("%Y%m%d_%H%M%S")
    name = cfg.run_name or "_".join((cfg.model.name, cfg.data.name, cfg.tuning.name, number))
    if set(name) & set("=,[]{}'\"") or "/" in name:
        raise UserError(f"run_name={name!r}: a run's name must hold no = , / brackets or quotes; it becomes a folder.")
    return Path(cfg.paths.runs_dir) / name


def _new_run_dir(cfg: DictConfig) -> Path:
    if pinned := os.environ.get(RUN_DIR_VARIABLE):
        return Path(pinned)
    run_dir = _run_dir(cfg)
    # Without a checkpoint nothing can be lost: a run that failed before its first one may be started again.
    begun = any(checkpoint_folder(run_dir).glob("*.ckpt")) or (run_dir / "summary.json").exists()
    # The other processes may see what the first one has begun to write.
    if begun and rank_zero_only.rank == 0:
        raise UserError(
            f"run_name={run_dir.name}: {run_dir} holds a run already. Choose another run_name, remove the folder, or "
            f"go on with it: resume={run_dir}."
        )
    return run_dir


def _requeued_run(cfg: DictConfig) -> Path | None:
    """The folder of this SLURM job's run, where the job was queued again and has a checkpoint to go on from."""
    run_dir = _run_dir(cfg) if slurm.restarted() else None
    return run_dir if run_dir and any(checkpoint_folder(run_dir).glob("*.ckpt")) else None


def _build_and_report(cfg: DictConfig, features: RunFeatures | None, cut: Cut | None = None) -> tuple[Any, Any]:
    absent = () if features is None else features.absent
    network, policies = build_tuned_network(cfg, absent, cut)
    if features is not None:
        features.attach(network, absent)
    if rank_zero_only.rank == 0:
        table = tuning_table(network, policies, cfg.optim.lr)
        Console().print(table)
        text = StringIO()
        Console(file=text, width=120).print(table)
        log.debug("\n%s", text.getvalue())
        for note in unrun_notes(network, cfg.tuning, cfg.model.lora_targets):
            log.info("%s", note)
    return network, policies


def _val_every(cfg: DictConfig, data: VideoDataModule) -> int:
    return min(cfg.trainer.val_every or max(1, data.steps // 4), data.steps)


def _checkpoints(cfg: DictConfig, data: VideoDataModule, run_dir: Path) -> StepCheckpoints:
    settings = cfg.trainer
    every = settings.checkpoint_every or _val_every(cfg, data)
    if settings.checkpoint_every_epochs is not None:
        every = settings.checkpoint_every_epochs * data.train_planner.steps_per_epoch
    keep_bytes = None if settings.keep_gb is None else settings.keep_gb * 1e9
    return StepCheckpoints(checkpoint_folder(run_dir), every, settings.keep_checkpoints, keep_bytes)


def _build_trainer(
    cfg: DictConfig, data: VideoDataModule, run_dir: Path, checkpoints: StepCheckpoints, watchers: list[L.Callback]
) -> L.Trainer:
    accumulation = data.batch.accumulation
    log_every = min(cfg.trainer.log_every, data.steps)  # a run of few steps has a curve, too
    folder = checkpoint_folder(run_dir)
    callbacks: list[L.Callback] = [
        RichProgressBar(refresh_rate=accumulation),
        Meters(log_every, cfg.hardware.peak_tflops),
        TextLog(log_every, data.steps),
        BadMediaLedger(run_dir / "bad_media.csv", data.num_media, cfg.media.max_bad_fraction),
        *watchers,
        checkpoints,
    ]
    if data.val_planner is not None:
        callbacks.append(
            ModelCheckpoint(
                folder,
                filename="best_{step:06d}",
                auto_insert_metric_name=False,
                monitor=cfg.trainer.monitor,
                mode=cfg.trainer.monitor_mode,
                save_top_k=1,
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            )
        )
        if cfg.trainer.early_stopping:
            callbacks.append(
                EarlyStopping(cfg.trainer.monitor, mode=cfg.trainer.monitor_mode, patience=cfg.trainer.early_stopping)
            )
    callbacks += [instantiate(callback) for callback in cfg.callbacks.values()]
    plugins = precision_plugins(cfg.strategy, cfg.hardware)
    trainer = L.Trainer(
        accelerator=cfg.hardware.accelerator,
        devices=cfg.hardware.devices,
        num_nodes=cfg.hardware.num_nodes,
        strategy=build_strategy(cfg.strategy, cfg.hardware),
        max_epochs=1,
        max_steps=data.steps,
        accumulate_grad_batches=accumulation,
        gradient_clip_val=cfg.trainer.grad_clip,
        val_check_interval=_val_every(cfg, data) * accumulation if data.val_planner is not None else None,
        log_every_n_steps=log_every,
        num_sanity_val_steps=0,
        deterministic="warn" if cfg.trainer.deterministic else False,
        use_distributed_sampler=False,
        logger=_loggers(cfg, run_dir),
        callbacks=callbacks,
        default_root_dir=run_dir,
        enable_model_summary=False,
        precision=None if plugins else cfg.hardware.precision,
        plugins=[*plugins, *slurm.trainer_plugins()] or None,
    )
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    return trainer


def _loggers(cfg: DictConfig, run_dir: Path) -> list[Any]:
    """The CSV logger, and those of ``logger=``, all writing into the run folder."""
    loggers: list[Any] = [_csv_logger(run_dir, cfg.trainer.log_every)]
    loggers += [build_logger(name, logger, run_dir) for name, logger in cfg.logger.items()]
    return loggers


def _csv_logger(run_dir: Path, flush_every: int) -> CSVLogger:
    """``metrics.csv``; a resumed run goes on in it, where Lightning's logger would delete it."""
    file = run_dir / "metrics.csv"
    before = file.read_text() if file.is_file() else ""
    logger = CSVLogger(run_dir, name="", version="", flush_logs_every_n_steps=flush_every)
    if rank_zero_only.rank == 0 and before:
        writer = logger.experiment
        writer.metrics_keys = before.splitlines()[0].split(",")
        file.write_text(before)
    return logger


@rank_zero_only
def _summarise(run_dir: Path, metrics: dict[str, float], step: int, loggers: Sequence[Any]) -> None:
    (run_dir / "summary.json").write_text(json.dumps({"step": step, **metrics}, indent=2))
    curve: Path | str = "none, for no step was logged (trainer.log_every)"
    if (run_dir / "metrics.csv").is_file():  # not where a run was resumed for its last few steps
        curve = save(plot_curves({run_dir.name: read_metrics(run_dir / "metrics.csv")}), run_dir / "loss_curve.png")
        log_curves(loggers, run_dir, curve)
    Console().print(f"Loss curve: {curve}\nRun folder: {run_dir}", soft_wrap=True)


def _finish(trainer: L.Trainer, checkpoints: StepCheckpoints, interrupt: Interrupt, run_dir: Path) -> dict[str, float]:
    last = checkpoint_folder(run_dir) / f"step_{trainer.global_step:06d}.ckpt"
    if not trainer.strategy.broadcast(last.exists()):
        checkpoints.save(trainer)
    for logger in trainer.loggers:
        logger.finalize("success")
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    bad = next(callback for callback in trainer.callbacks if isinstance(callback, BadMediaLedger)).counts()
    if bad["bad_media"]:
        log.warning("%(bad_media)d media could not be read; they hit %(bad_media_rows)d rows: see bad_media.csv.", bad)
    _summarise(run_dir, metrics | bad, trainer.global_step, trainer.loggers)
    for logger in trainer.loggers:
        # A W&B run ends with the process otherwise, and the next run of this one would write into it.
        if (finish := getattr(logger.experiment, "finish", None)) is not None:
            finish()
    if interrupt.signal is not None:
        if interrupt.signal == "SIGUSR1" and rank_zero_only.rank == 0:
            slurm.requeue()
        log.warning("stopped by %s at step %d; go on with: resume=%s", interrupt.signal, trainer.global_step, run_dir)
        raise Interrupted(143 if interrupt.signal == "SIGTERM" else 130)
    return metrics
