"""An evaluation: a run, an adapter or an untuned model on a data set."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from vidtune.checkpoint.locate import find_checkpoint
from vidtune.checkpoint.trained import load_adapter, load_trained
from vidtune.contracts import Sample, UserError
from vidtune.data.media_source import MediaSource
from vidtune.evaluation.answering import Answer, generate_answers, most_likely_options
from vidtune.evaluation.records import PredictionWriter, read_predictions
from vidtune.evaluation.tasks import build_task
from vidtune.models.base import VideoLLM
from vidtune.run.build import build_network, build_processor, build_source, build_tuned_network, prepare
from vidtune.run.checks import check_config
from vidtune.run.logs import start_logging
from vidtune.run.recipe import RECIPE_KEYS, with_recipe
from vidtune.training.callbacks.bad_media import write_ledger

log = logging.getLogger(__name__)

SCORINGS = ("generate", "likelihood")


def evaluate(cfg: DictConfig, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Answer the questions of a split, and print and save the accuracy table.

    Args:
        cfg: composed from ``conf/evaluate.yaml``.
        overrides: the command line's; they win over the recipe of the run.

    Returns:
        The numbers of the table: ``accuracy``, ``accuracy/<question type>``, ...

    Raises:
        UserError: no such run, checkpoint, adapter, split or task; predictions made with other settings.
    """
    run_dir = Path(cfg.run) if cfg.run else None
    checkpoint = None
    if run_dir is not None:
        if cfg.adapter:
            raise UserError("run= and adapter= exclude each other: a run brings its own trained weights.")
        cfg = with_recipe(cfg, run_dir, overrides)
        checkpoint = find_checkpoint(run_dir, cfg.checkpoint)
    check_config(cfg)
    if cfg.eval.scoring not in SCORINGS:
        raise UserError(f"eval.scoring={cfg.eval.scoring!r}; expected one of {', '.join(SCORINGS)}.")
    start_logging()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    prepare(cfg)
    processor = build_processor(cfg)
    split = cfg.split or cfg.data.test_split
    samples = instantiate(cfg.data.reader)(split)[: cfg.eval.limit]
    if not samples:
        raise UserError(f"data={cfg.data.name}: split {split!r} holds no samples; nothing to evaluate. Set split=.")
    task = build_task(**OmegaConf.to_container(cfg.data.task, resolve=True))  # type: ignore[arg-type]
    for sample in samples:
        task.check(sample)

    name = f"{checkpoint.stem if checkpoint else 'untuned'}_{cfg.data.name}_{split}"
    home = run_dir or Path(cfg.paths.runs_dir) / f"untuned_{cfg.model.name}"
    folder = Path(cfg.output) if cfg.output else home / "evaluation" / name
    made_by = _made_by(cfg, checkpoint, split)
    source = build_source(cfg, processor, folder)
    with PredictionWriter(folder / "predictions.jsonl", made_by, len(samples)) as writer:
        todo = [sample for sample in samples if sample.sample_id not in writer.done]
        if todo:
            network, device = _network(cfg, checkpoint)
            answers = _answers(cfg, network, processor, source, todo, device)
            for sample, text, bad in track(answers, "answering", total=len(todo), console=Console(stderr=True)):
                writer.write(task.bad_media(sample, bad) if bad else task.score(sample, text))
    predictions = read_predictions(folder / "predictions.jsonl")
    unread = {prediction.sample_id for prediction in predictions if prediction.status == "bad_media"}
    if unread:
        bad = _list_bad_media([sample for sample in samples if sample.sample_id in unread], source)
        write_ledger(folder / "bad_media.csv", bad)
        log.warning("%d media cannot be read; their %d rows count as wrong: see bad_media.csv.", len(bad), len(unread))
    table, metrics = task.summarise(predictions), task.metrics(predictions)
    table.save(folder, "accuracy")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
    Console().print(table.rich())
    Console().print(f"Predictions and tables: {folder}", soft_wrap=True)
    return metrics


def _network(cfg: DictConfig, checkpoint: Path | None) -> tuple[VideoLLM, torch.device]:
    """The network to ask, on its device."""
    if checkpoint is not None:
        network, _ = build_tuned_network(cfg)
        step = load_trained(network, checkpoint)
        log.info("%s, trained for %d steps", checkpoint, step)
    else:
        network = build_network(cfg)
        if cfg.adapter:
            load_adapter(network, Path(cfg.adapter))
    network.requires_grad_(False)
    device = torch.device("cuda" if cfg.hardware.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    if cfg.hardware.num_threads:
        torch.set_num_threads(cfg.hardware.num_threads)
    return network.to(device), device


def _list_bad_media(samples: Sequence[Sample], source: MediaSource) -> dict[str, tuple[str, int]]:
    """Medium -> reason and number of rows. Data workers have met them; what they found is in the shared log."""
    entries: dict[str, tuple[str, int]] = {}
    for sample in samples:
        for ref in sample.media:
            source.info(ref)
            if reason := source.bad.reason(ref):
                entries[ref.stretch] = (reason, entries.get(ref.stretch, ("", 0))[1] + 1)
    return entries


def _answers(
    cfg: DictConfig,
    network: VideoLLM,
    processor: Any,
    source: MediaSource,
    samples: Sequence[Sample],
    device: torch.device,
) -> Iterable[Answer]:
    common = {"num_workers": cfg.data.num_workers, "device": device}
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=cfg.hardware.precision == "bf16-mixed")
    with autocast:
        if cfg.eval.scoring == "likelihood":
            yield from most_likely_options(network, processor, source, samples, **common)
        else:
            yield from generate_answers(
                network,
                processor,
                source,
                samples,
                batch_size=cfg.eval.batch_size,
                max_new_tokens=cfg.eval.max_new_tokens,
                **common,
            )


def _made_by(cfg: DictConfig, checkpoint: Path | None, split: str) -> dict[str, Any]:
    """What decides the predictions; half-written ones are never continued with other settings."""
    keys = [key for key in RECIPE_KEYS if key not in ("paths", "tuning")]
    recipe = OmegaConf.to_container(OmegaConf.masked_copy(cfg, keys))
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return {
        "model": cfg.model.name,
        "model_path": str(cfg.model.path),
        "checkpoint": checkpoint.name if checkpoint else None,
        "adapter": cfg.adapter,
        "data": cfg.data.name,
        "split": split,
        "num_frames": cfg.data.num_frames,
        "scoring": cfg.eval.scoring,
        "precision": cfg.hardware.precision,
        "recipe": digest,
    }
