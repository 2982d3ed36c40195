"""A run's weights in the forms that others open, each re-loaded and compared before it counts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel
from safetensors.torch import load_file, save_file

from vidtune.checkpoint.attach import attach_adapter
from vidtune.checkpoint.locate import find_checkpoint
from vidtune.checkpoint.merge import merge_adapters
from vidtune.checkpoint.peft_folder import write_peft_folder
from vidtune.checkpoint.probe import compare_logits, network_dtype, probe_logits
from vidtune.checkpoint.side_files import copy_side_files
from vidtune.checkpoint.trained import load_trained
from vidtune.contracts import Processor, UserError
from vidtune.models.base import VideoLLM
from vidtune.models.loading import resolve_folder
from vidtune.run.build import build_network, build_processor, build_tuned_network, prepare
from vidtune.run.compose import compose_config
from vidtune.run.logs import start_logging
from vidtune.run.recipe import with_recipe
from vidtune.tuning.adapters import four_bit_linears, quantise
from vidtune.tuning.policy import trainable_state

log = logging.getLogger(__name__)

FORMS = ("adapter", "merged", "original", "fp32")


def export(run: str, to: str, output: str | None, checkpoint: str = "best", overrides: Sequence[str] = ()) -> Path:
    """Write one form of a run's weights and check it.

    Args:
        run: run folder; trained under any strategy.
        to: ``adapter`` (PEFT folder), ``merged`` or ``original`` (the family's checkpoint folder, adapters merged,
            with tokenizer and processor files), ``fp32`` (what trained, float32, one file under our names).
        output: folder; None for ``<run>/export/<to>``.
        checkpoint: of the run.

    Returns:
        The folder.

    Raises:
        UserError: no such run or checkpoint, a form the run cannot take, or an export that computes something else.
    """
    if to not in FORMS:
        raise UserError(f"--to {to}: expected one of {', '.join(FORMS)}.")
    cfg = with_recipe(compose_config(overrides), Path(run), overrides)
    file = find_checkpoint(Path(run), checkpoint)
    OmegaConf.update(cfg, "data.prepare", None)
    start_logging()
    prepare(cfg)
    processor = build_processor(cfg)
    network, _ = build_tuned_network(cfg)
    step = load_trained(network, file)
    folder = Path(output) if output else Path(run) / "export" / to
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; remove it or choose another --output.")
    expected = probe_logits(network, processor)
    difference = _WRITERS[to](cfg, network, processor, folder, expected)
    log.info("%s of step %d: %s", to, step, folder)
    log.info("re-loaded; largest difference of a logit, as a share of the largest logit: %.2e", difference)
    return folder


def _adapter(cfg: DictConfig, network: VideoLLM, processor: Processor, folder: Path, expected: torch.Tensor) -> float:
    names = instantiate(cfg.model.adapter_names) if cfg.model.get("adapter_names") else None
    write_peft_folder(network, folder, str(cfg.model.path), names)
    processor.save_tokenizer(folder)
    base, four_bit = build_network(cfg), four_bit_linears(network)
    if four_bit:
        quantise(base, four_bit)
    if names is None:
        opened: Any = PeftModel.from_pretrained(base, str(folder))
        again, what = opened.base_model.model, f"the network of model={cfg.model.name}"
    else:
        attach_adapter(base, instantiate(cfg.model.read_adapter, folder), str(folder))
        again, what = base, "the class of transformers that opens the model"
    what += f", {len(four_bit)} layers of it stored in NF4" if four_bit else ""
    log.info("opens with peft.PeftModel.from_pretrained(<%s>, %r)", what, str(folder))
    return compare_logits(expected, probe_logits(again, processor), network_dtype(network), str(folder))


def _merged(cfg: DictConfig, network: VideoLLM, processor: Processor, folder: Path, expected: torch.Tensor) -> float:
    dtype = getattr(torch, cfg.model.dtype)
    computed_in = torch.bfloat16 if four_bit_linears(network) else dtype
    merge_adapters(network, dtype)
    network.to(dtype)
    instantiate(cfg.model.export, network, folder)
    processor.save_tokenizer(folder)
    copy_side_files(resolve_folder(str(cfg.model.path)), folder)
    del network
    again, words = _of_export(cfg, folder)
    opens_with = OmegaConf.select(cfg, "model.opens_with", default="vidtune")
    log.info("opens with %s, and here with %s", opens_with, " ".join(words))
    return compare_logits(expected, probe_logits(build_network(again), processor), computed_in, str(folder))


def _of_export(cfg: DictConfig, folder: Path) -> tuple[DictConfig, list[str]]:
    """The configuration that opens an exported folder, and what a user types for it."""
    again = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    again.model.path = str(folder)
    sections = OmegaConf.to_container(again.model.exported, resolve=False) if "exported" in again.model else {}
    keys = [f"model.{section}.{key}" for section, values in sections.items() for key in values]
    again.model = OmegaConf.merge(again.model, sections)
    changed = [key for key in keys if OmegaConf.select(again, key) != OmegaConf.select(cfg, key)]
    words = [f"{key}={OmegaConf.select(again, key)}" for key in ["model.path", *changed]]
    return again, [f"model={cfg.model.name}", *(word.replace("=None", "=null") for word in words)]


def _fp32(cfg: DictConfig, network: VideoLLM, processor: Processor, folder: Path, expected: torch.Tensor) -> float:
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in trainable_state(network).items()}
    save_file(state, str(folder / "trained_fp32.safetensors"), metadata={"format": "pt"})
    log.info("opens with safetensors.torch.load_file: names and shapes of this project's network, float32")
    fresh, _ = build_tuned_network(cfg)
    own = trainable_state(fresh)
    with torch.no_grad():
        for name, tensor in load_file(str(folder / "trained_fp32.safetensors")).items():
            own[name].copy_(tensor)
    return compare_logits(expected, probe_logits(fresh, processor), network_dtype(fresh), str(folder))


_WRITERS = {"adapter": _adapter, "merged": _merged, "original": _merged, "fp32": _fp32}
