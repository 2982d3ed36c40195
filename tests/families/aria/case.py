"""A golden case of Aria as objects: network, processor, rows, padded batches as the original's collator makes them."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.families.golden import golden_cases
from vidtune.contracts import IGNORE, Batch, Encoded, MediaInfo, MediaItem, MediaPlan, MediaRef, Message, Preset
from vidtune.data.rows import pad_prompts
from vidtune.models.aria.network import Aria
from vidtune.models.aria.processor import AriaProcessor
from vidtune.models.aria.weights import build_network, load_weights
from vidtune.models.attention import PACKED_SDPA

IMAGE_ID = 9


@dataclass(frozen=True)
class Row:
    """One annotation row, planned, loaded and encoded."""

    encoded: Encoded
    plans: tuple[MediaPlan, ...]
    items: tuple[MediaItem, ...]


@dataclass
class Padded:
    """Rows as the original's training collator pads them (right), with our batch for the network."""

    batch: Batch
    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor


@dataclass
class Case:
    root: Path
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self._holder = tempfile.TemporaryDirectory()
        self._padded: dict[str, Padded] = {}
        self.folder = Path(self._holder.name)
        (self.folder / "config.json").write_text(json.dumps(self.config["model"]))
        (self.folder / "model.safetensors").symlink_to((self.root / "model.safetensors").resolve())

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.root / "config.json").read_text())

    @cached_property
    def clips(self) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in load_file(self.root / "inputs" / "clips.safetensors").items()}

    def runs(self, kind: str) -> list[str]:
        return [name for name, run in self.config["runs"].items() if run["kind"] == kind]

    def facts(self, run: str) -> dict[str, Any]:
        return self.json(f"expected/{run}/facts.json")

    def tensors(self, run: str, stage: str) -> dict[str, torch.Tensor]:
        return load_file(self.root / "expected" / run / f"{stage}.safetensors")

    def has(self, path: str) -> bool:
        return (self.root / path).exists()

    def json(self, path: str) -> Any:
        return json.loads((self.root / path).read_text())

    def network(self, attention: str = "eager", vision_attention: str = "eager", **options: Any) -> Aria:
        """A fresh network with the case's weights, all frozen or all trainable as the test wants."""
        network = build_network(str(self.folder), attention=attention, vision_attention=vision_attention, **options)
        load_weights(network, str(self.folder))
        return network.eval()

    def processor(self, run: str, num_frames: int = 8, **overrides: Any) -> AriaProcessor:
        options = self.config["runs"][run]
        arguments = {
            "max_image_size": options["size"],
            "split_image": options.get("split", False),
            "max_length": options.get("max_seq_length", 4096),
        }
        return AriaProcessor(str(self.root / "tokenizer"), num_frames=num_frames, **arguments | overrides)

    def annotations(self, run: str) -> list[dict[str, Any]]:
        text = (self.root / "inputs" / f"{self.config['runs'][run]['rows']}.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines() if line.strip()]

    def rows(self, run: str, preset: Preset = "train", generation: bool = False, **overrides: Any) -> list[Row]:
        """The rows of a run; ``overrides`` go to the processor."""
        return [self._row(run, annotation, preset, generation, overrides) for annotation in self.annotations(run)]

    def _row(
        self, run: str, annotation: dict[str, Any], preset: Preset, generation: bool, overrides: dict[str, Any]
    ) -> Row:
        video = annotation.get("video") or {}
        images = iter(annotation.get("images") or [])
        processor = self.processor(run, video.get("num_frames", 8), **overrides)
        frames: list[np.ndarray] = []
        plans: list[MediaPlan] = []

        def medium(kind: str) -> MediaRef:
            if kind == "video":
                ref, pixels = MediaRef(video["path"]), self.clips[video["path"]]
            else:
                name = next(images)
                image = Image.open(self.root / "inputs" / name).convert("RGB")
                ref, pixels = MediaRef(name, "image"), np.asarray(image)[None]
            info = MediaInfo(ref, len(pixels), 8.0, len(pixels) / 8, *pixels.shape[1:3])
            plans.append(processor.plan_media(info, np.random.default_rng(0), preset))
            frames.append(pixels)
            return ref

        messages = [
            Message(
                turn["role"],
                tuple(part["text"] if part["type"] == "text" else medium(part["type"]) for part in turn["content"]),
            )
            for turn in annotation["messages"]
        ]
        encoded = processor.encode(messages, plans, preset=preset, generation=generation)
        items = tuple(
            processor.load_media(plan, (pixels[index] for index in plan.frame_indices))
            for plan, pixels in zip(plans, frames, strict=True)
        )
        return Row(encoded, tuple(plans), items)

    def padded(self, run: str) -> Padded:
        """The training batch of a run; made once, not to be changed."""
        if run not in self._padded:
            self._padded[run] = self.pad(self.rows(run))
        return self._padded[run]

    def pad(self, rows: list[Row]) -> Padded:
        pad_id = self.processor(self.runs("train")[0]).pad_id
        length = max(row.encoded.num_tokens for row in rows)
        shape = (len(rows), length)
        ids, labels = torch.full(shape, pad_id), torch.full(shape, IGNORE)
        mask = torch.zeros(shape, dtype=torch.bool)
        visual: list[int] = []
        for index, row in enumerate(rows):
            count = row.encoded.num_tokens
            ids[index, :count] = torch.tensor(row.encoded.input_ids)
            labels[index, :count] = torch.tensor(row.encoded.labels)
            mask[index, :count] = True
            visual += [index * length + position for position in row.encoded.visual_positions]
        shown = ids.clone()
        shown.view(-1)[visual] = IMAGE_ID
        batch = Batch(
            input_ids=ids,
            position_ids=torch.arange(length).expand(shape),
            visual_positions=torch.tensor(visual, dtype=torch.long),
            media=[item for row in rows for item in row.items],
            attention_mask=mask,
        )
        set_targets(batch, labels)
        return Padded(batch, shown, labels, mask)

    def prompts(self, run: str) -> Batch:
        """The left-padded prompts of a generation run."""
        rows = self.rows(run, preset="infer", generation=True)
        items = [item for row in rows for item in row.items]
        return pad_prompts([row.encoded for row in rows], items, self.processor(run).pad_id)


def set_targets(batch: Batch, labels: torch.Tensor) -> None:
    """Mean loss over the supervised positions of a (B, L) label tensor."""
    length = labels.shape[1]
    rows, columns = torch.nonzero(labels[:, 1:] != IGNORE, as_tuple=True)
    batch.target_positions = rows * length + columns
    batch.target_ids = labels[rows, columns + 1]
    batch.target_weights = torch.ones(len(rows))
    batch.normalizer = float(len(rows))


def packed(rows: list[Row]) -> Batch:
    """Rows as segments of one packed row."""
    ids, positions, segments, visual, targets, target_ids = [], [], [], [], [], []
    for number, row in enumerate(rows):
        start, count = len(ids), row.encoded.num_tokens
        ids += row.encoded.input_ids
        positions += range(count)
        segments += [number] * count
        visual += [start + position for position in row.encoded.visual_positions]
        for position in range(1, count):
            if row.encoded.labels[position] != IGNORE:
                targets.append(start + position - 1)
                target_ids.append(row.encoded.labels[position])
    return Batch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        visual_positions=torch.tensor(visual, dtype=torch.long),
        media=[item for row in rows for item in row.items],
        segment_ids=torch.tensor([segments]),
        branch_ids=torch.zeros(1, len(ids), dtype=torch.long),
        target_positions=torch.tensor(targets),
        target_ids=torch.tensor(target_ids),
        target_weights=torch.ones(len(targets)),
        normalizer=float(len(targets)),
        token_weights=torch.ones(1, len(ids)),
    )


CASES = [Case(root) for root in golden_cases("aria")]
PACKED = PACKED_SDPA


def runs(kind: str, needs: str = "") -> list[Any]:
    """pytest parameters (case, run) of every run of a kind that has the file ``needs``."""
    import pytest

    return [
        pytest.param(case, run, id=f"{case.root.name}-{run}")
        for case in CASES
        for run in case.runs(kind)
        if not needs or case.has(f"expected/{run}/{needs}")
    ]


def tables(name: str) -> list[Any]:
    """pytest parameters (case, table) of every case that has a table."""
    import pytest

    return [
        pytest.param(case, case.json(f"tables/{name}.json"), id=case.root.name)
        for case in CASES
        if case.has(f"tables/{name}.json")
    ]
