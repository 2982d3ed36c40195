"""A golden case as objects of vidtune: what the files say, nothing about a particular case."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.families.golden import golden_cases
from vidtune.contracts import IGNORE, Batch, Encoded, MediaInfo, MediaItem, MediaPlan, MediaRef, Message
from vidtune.media.sampling import segment_span
from vidtune.models.attention import PACKED_SDPA
from vidtune.models.internvideo25.network import InternVideo25
from vidtune.models.internvideo25.processor import InternVideo25Processor
from vidtune.models.internvideo25.weights import build_network, load_weights

FAMILY = "internvideo25"
PRESETS = ("upstream", "internvl2_5", "internvl2_5_duration")
each_case = pytest.mark.parametrize("case", golden_cases(FAMILY), ids=lambda path: path.name)
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Golden:
    """One case folder."""

    folder: Path

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / name)

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.json("config.json")

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return self.tensors("expected.safetensors")

    @cached_property
    def scalars(self) -> dict[str, Any]:
        return self.json("expected_scalars.json")

    @cached_property
    def text(self) -> list[dict[str, Any]]:
        return self.json("expected_text.json")

    @cached_property
    def frames(self) -> dict[str, Tensor]:
        return self.tensors("frames.safetensors")

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]

    @cached_property
    def video_rows(self) -> list[int]:
        """Rows that the original runs: with a video, and not cut inside its frames."""
        return [
            index
            for index, options in enumerate(self.config["golden"]["rows"])
            if "video" in self.rows[index] and not options.get("ids_only")
        ]

    def stored_frames(self, row: int) -> list[int]:
        """Frames of a row whose tensors the case stores."""
        count = len(self.expected[f"r{row}.frame_indices"])
        wanted = self.config["golden"].get("stored_frames") or range(count)
        return [frame for frame in wanted if frame < count]

    def processor(self, row: int | None = None, template: str = "upstream", **options: Any) -> InternVideo25Processor:
        """The processor with the options of a row; without a row those of the chat call."""
        limits = self.config["golden"]["rows"][row] if row is not None else {}
        settings = {
            "tokenizer_path": str(self.folder),
            "num_frames": limits.get("max_num_frames", 8),
            "min_frames": limits.get("min_num_frames"),
            "max_length": limits.get("max_length", 8192),
            "train_template": template,
            "infer_template": template,
            "image_size": self.config["force_image_size"],
            "clip_frames": self.config["golden"]["local_num_frames"],
            "clip_tokens": self.config["golden"]["num_tome_tokens"],
        }
        return InternVideo25Processor(**{**settings, **options})

    def info(self, row: int) -> tuple[MediaInfo, int]:
        """Header of a row's segment, and its first frame in the file. The fine-tuner counts and prints the duration of
        the annotation, whatever the segment."""
        annotation = self.rows[row]
        start, end = (
            (annotation["start"], annotation["end"]) if "start" in annotation else annotation.get("clip", (None, None))
        )
        return self._info(annotation["video"], start, end, annotation["duration"])

    def _info(
        self, video: str, start: float | None = None, end: float | None = None, duration: float | None = None
    ) -> tuple[MediaInfo, int]:
        facts = self.json("videos.json")[video]
        first, count = segment_span(facts["total_frames"], facts["fps"], start, end)
        seconds = count / facts["fps"] if duration is None else duration
        ref = MediaRef(video, "video", start, end)
        return MediaInfo(ref, count, facts["fps"], seconds, facts["height"], facts["width"]), first

    def messages(self, row: int) -> list[Message]:
        """The conversation; ``<image>`` (with the newline behind it) is the video, put first where it is absent."""
        annotation, messages = self.rows[row], []
        for number, turn in enumerate(annotation["conversations"]):
            content: tuple[str | MediaRef, ...] = (turn["value"],)
            if number == 0 and "video" in annotation:
                text = turn["value"] if "<image>" in turn["value"] else f"<image>\n{turn['value']}"
                before, after = text.split("<image>\n" if "<image>\n" in text else "<image>")
                content = (before, MediaRef(annotation["video"]), after)
            messages.append(Message("assistant" if turn["from"] == "gpt" else "user", content))
        return messages

    def encode(self, row: int, template: str = "upstream", **options: Any) -> Encoded:
        processor = self.processor(row, template, **options)
        plans = [processor.plan_media(self.info(row)[0], RNG, "train")] if "video" in self.rows[row] else []
        return processor.encode(self.messages(row), plans, preset="train", name=f"row {row}")

    def load(self, processor: InternVideo25Processor, plan: MediaPlan, first: int = 0) -> MediaItem:
        """The medium of a plan, from the frames that the case stores."""
        frames = self.frames[plan.info.ref.path]
        return processor.load_media(plan, (frames[first + index].numpy() for index in plan.frame_indices))

    def media(self, row: int) -> MediaItem:
        processor = self.processor(row)
        info, first = self.info(row)
        return self.load(processor, processor.plan_media(info, RNG, "train"), first)

    def chat(self, number: int) -> tuple[InternVideo25Processor, Encoded, list[MediaItem]]:
        """A chat question as prompt and media."""
        request = self.json("chat_inputs.json")[number]
        processor = self.processor(
            template="internvl2_5",
            sampling="chat",
            num_frames=request["num_frames"] or self.config["golden"]["local_num_frames"],
        )
        turns = [*(request["history"] or []), [request["question"], None]]
        messages, plans = [], []
        for index, (question, answer) in enumerate(turns):
            content: tuple[str | MediaRef, ...] = (question,)
            if index == 0 and request["video"]:
                plans = [processor.plan_media(self._info(request["video"])[0], RNG, "infer")]
                content = (MediaRef(request["video"]), question)
            messages.append(Message("user", content))
            if answer is not None:
                messages.append(Message("assistant", (answer,)))
        encoded = processor.encode(messages, plans, preset="infer", generation=True)
        return processor, encoded, [self.load(processor, plan) for plan in plans]


@lru_cache(maxsize=8)
def golden(folder: Path) -> Golden:
    return Golden(folder)


@lru_cache(maxsize=8)
def network_of(folder: Path, attention: str = PACKED_SDPA) -> InternVideo25:
    """The network of a case with its weights, in eval mode. Shared between tests, which must not change it."""
    vision = "eager" if attention == "eager" else "sdpa"
    network = build_network(str(folder), attention=attention, vision_attention=vision)
    load_weights(network, str(folder))
    return network.eval()


def as_original_ids(encoded: Encoded, context_id: int) -> list[int]:
    """Ids with the original's placeholder token where ours hold 0."""
    ids = list(encoded.input_ids)
    for position in encoded.visual_positions:
        ids[position] = context_id
    return ids


def pack(samples: Sequence[Encoded], media: Sequence[MediaItem], dummy: bool = False) -> Batch:
    """Samples one behind the other in one row, positions from 0 in each."""
    ids, positions, segments, visual, targets, owners = [], [], [], [], [], []
    for number, sample in enumerate(samples):
        start = len(ids)
        ids += sample.input_ids
        positions += range(sample.num_tokens)
        segments += [number] * sample.num_tokens
        visual += [start + position for position in sample.visual_positions]
        for position, label in enumerate(sample.labels):
            if position and label != IGNORE:
                targets.append((start + position - 1, label))
                owners.append(number)
    return Batch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        visual_positions=torch.tensor(visual, dtype=torch.long),
        media=list(media),
        segment_ids=torch.tensor([segments]),
        branch_ids=torch.zeros(1, len(ids), dtype=torch.long),
        target_positions=torch.tensor([target[0] for target in targets], dtype=torch.long),
        target_ids=torch.tensor([target[1] for target in targets], dtype=torch.long),
        target_weights=torch.ones(len(targets)),
        target_samples=torch.tensor(owners, dtype=torch.long),
        dummy_media=dummy,
    )


def padded(batch: Batch) -> Batch:
    """The same single sample in the padded layout, whose attention needs no packing (eager)."""
    batch.segment_ids = batch.branch_ids = None
    batch.attention_mask = torch.ones_like(batch.input_ids, dtype=torch.bool)
    return batch


def assert_near(found: Tensor, expected: Tensor, atol: float, what: str = "") -> None:
    torch.testing.assert_close(
        found.detach().float(), expected.float(), rtol=0.0, atol=atol, msg=lambda m: f"{what}: {m}"
    )
