"""A model that is ready to be asked: weights, processor and media reader of one configuration."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from vidtune.checkpoint.trained import load_trained
from vidtune.contracts import Processor, Sample, UserError
from vidtune.data.media_source import MediaSource
from vidtune.evaluation.answering import Answer, Meter, generate_answers, most_likely_options, reference_likelihoods
from vidtune.models.base import VideoLLM
from vidtune.run.build import build_adapted_network, build_network, build_source, build_tuned_network
from vidtune.run.features import RunFeatures
from vidtune.run.hardware import apply_hardware
from vidtune.run.sharded import asks_together, cut_for_processes, shard_over_processes

log = logging.getLogger(__name__)


@dataclass
class Answerer:
    """Answers samples under the ``infer`` preset; made by ``load_answerer``."""

    cfg: DictConfig
    network: VideoLLM
    processor: Processor
    source: MediaSource
    device: torch.device

    def generate(
        self, samples: Sequence[Sample], source: MediaSource | None = None, meter: Meter | None = None
    ) -> Iterator[Answer]:
        """Greedy answers.

        Args:
            source: reads the media in place of the model's own reader.
            meter: as for ``generate_answers``.
        """
        with self._autocast():
            yield from generate_answers(
                self.network,
                self.processor,
                source or self.source,
                samples,
                max_new_tokens=self.cfg.eval.max_new_tokens,
                meter=meter,
                **self._loading,
            )

    def most_likely(
        self,
        samples: Sequence[Sample],
        candidates: Callable[[Sample], Sequence[str]],
        source: MediaSource | None = None,
    ) -> Iterator[Answer]:
        """The candidate with the highest likelihood; see ``generate`` for ``source``."""
        with self._autocast():
            yield from most_likely_options(
                self.network, self.processor, source or self.source, samples, candidates, **self._loading
            )

    def reference_likelihoods(self, samples: Sequence[Sample], source: MediaSource | None = None) -> Iterator[Answer]:
        """How likely the reference answers are; see ``generate`` for ``source``."""
        with self._autocast():
            yield from reference_likelihoods(
                self.network, self.processor, source or self.source, samples, **self._loading
            )

    @property
    def _loading(self) -> dict[str, Any]:
        return {
            "batch_size": self.cfg.eval.batch_size,
            "num_workers": self.cfg.data.num_workers,
            "device": self.device,
        }

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.cfg.hardware.precision)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The precision of ``hardware``, as training has it."""
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "32-true")


def load_answerer(
    cfg: DictConfig,
    processor: Processor,
    checkpoint: Path | None = None,
    adapter: str | None = None,
    features: RunFeatures | None = None,
) -> Answerer:
    """Build the network on its device and load its weights.

    Args:
        checkpoint: of a run whose recipe ``cfg`` holds; None for a model as published.
        adapter: PEFT folder for a model without a checkpoint.
        features: cache that the answers may read and fill; planned.

    Raises:
        UserError: weights are missing or do not fit; an adapter, and a strategy that shards weights.
    """
    # An adapter may have tensors for any role, and a control shows frames that are not stored: all roles are needed.
    absent = () if features is None or adapter or cfg.eval.controls else features.absent
    together = asks_together(cfg)
    cut = cut_for_processes() if together else None
    if checkpoint is not None:
        network, _ = build_tuned_network(cfg, absent, cut)
        log.info("%s, trained for %d steps", checkpoint, load_trained(network, checkpoint))
    elif adapter and together:
        raise UserError(
            f"adapter={adapter} is read into whole weights, but strategy={cfg.strategy.name} shards them. "
            f"Leave strategy= out, or evaluate the run that trained it: run=<run folder>."
        )
    elif adapter:
        network = build_adapted_network(cfg, Path(adapter))
    else:
        network = build_network(cfg, absent, cut)
    network.requires_grad_(False)
    network.eval()
    if features is not None:
        features.attach(network, absent)
    apply_hardware(cfg.hardware)
    device = pick_device(cfg.hardware.accelerator)
    if together:
        shard_over_processes(network, device)
    return Answerer(cfg, network.to(device), processor, build_source(cfg, processor), device)


def pick_device(accelerator: str) -> torch.device:
    """The GPU of this process, or the CPU."""
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
