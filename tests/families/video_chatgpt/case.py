"""A golden case as our objects: checkpoint folders in the released layout, network, processor, samples, batches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from vidtune.contracts import IGNORE, Batch, Encoded, MediaInfo, MediaItem, MediaRef, Message
from vidtune.models.delta import apply_delta
from vidtune.models.video_chatgpt.key_tables import append_rows
from vidtune.models.video_chatgpt.network import VideoChatGPT
from vidtune.models.video_chatgpt.processor import VideoChatGPTProcessor
from vidtune.models.video_chatgpt.weights import build_network, load_weights

ROLES = {"human": "user", "gpt": "assistant"}


@dataclass
class Case:
    """Args:
    folder: of the golden case.
    scratch: where its checkpoints are put together.
    """

    folder: Path
    scratch: Path

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text())

    def tensors(self, path: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / path)

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.json("config.json")

    # ------------------------------------------------------------------ checkpoints

    @cached_property
    def clip(self) -> Path:
        return self._as_bin("weights/clip")

    @cached_property
    def base(self) -> Path:
        return self._as_bin("weights/base")

    @cached_property
    def delta(self) -> Path:
        folder = self._as_bin("weights/delta")
        shutil.copytree(self.folder / "tokenizer", folder, dirs_exist_ok=True)
        return folder

    @cached_property
    def llava(self) -> Path:
        """Base with the delta applied, by our conversion; shards so small that there are several."""
        out = self.scratch / "llava"
        apply_delta(self.base, self.delta, out, max_shard_bytes=50_000)
        return out

    def _as_bin(self, source: str) -> Path:
        folder = self.scratch / Path(source).name
        shutil.copytree(self.folder / source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        torch.save(load_file(self.folder / source / "pytorch_model.safetensors"), folder / "pytorch_model.bin")
        return folder

    def network(self, attention: str = "sdpa", projector: Path | None = None) -> VideoChatGPT:
        """Loaded, with the original's random rows of ``<vid_patch>`` in place of ours; only what the recipe trains
        trains."""
        network = build_network(str(self.llava), str(self.clip), attention=attention)
        network.vision.vit.set_attn_implementation("eager" if attention == "eager" else "sdpa")
        load_weights(network, str(self.llava), str(self.clip))
        new = self.tensors("expected/vocabulary.safetensors")
        head, table = network.language.lm_head.weight.data, network.language.model.embed_tokens.weight.data
        for weight, rows in ((table, new["input_rows_new"]), (head, new["output_rows_new"])):
            weight.copy_(append_rows(weight[:-3].clone(), rows[0]))
        network.new_tokens.weight.data.copy_(table[-2:])
        network.requires_grad_(False)
        network.connector.requires_grad_(True)
        network.new_tokens.requires_grad_(True)
        return network.train()

    # ------------------------------------------------------------------ input

    @cached_property
    def processor(self) -> VideoChatGPTProcessor:
        return VideoChatGPTProcessor(
            str(self.llava),
            infer_template="video-chatgpt_v1_as_given",  # a conversation of a case is asked as it stands there
            max_length=self.config["model_max_length"],
            feature_width=self.config["clip"]["width"],
        )

    @cached_property
    def frames(self) -> dict[str, np.ndarray]:
        return {name: clip.numpy() for name, clip in self.tensors("inputs/frames.safetensors").items()}

    @cached_property
    def features(self) -> dict[str, torch.Tensor]:
        vision = self.tensors("expected/vision.safetensors")
        return {name: vision[f"{name}.features"] for name in self.frames}

    def info(self, name: str) -> MediaInfo:
        count, height, width = self.frames[name].shape[:3]
        return MediaInfo(MediaRef(f"/videos/{name}.mp4"), count, 25.0, count / 25.0, height, width)

    def training_rows(self) -> dict[str, dict[str, Any]]:
        """Rows in training form by the names that ``expected/rows.json`` gives them."""
        filtered = self.json("expected/train_filtered.json")
        rows = {f"train_filtered[{index}]": row for index, row in enumerate(filtered)}
        if (self.folder / "inputs/label_rows.json").is_file():
            rows |= {entry["name"]: entry["row"] for entry in self.json("inputs/label_rows.json")}
        return rows

    def messages(self, turns: Sequence[tuple[str, str | None]], video: str | None) -> list[Message]:
        """(role, text) turns; ``<video>`` in a text stands for the video, None for the answer to come."""
        messages = []
        for role, text in turns:
            if text is None:
                continue
            parts: list[str | MediaRef] = []
            for index, piece in enumerate(text.split("<video>")):
                parts += [self.info(video).ref, piece] if index else [piece]
            messages.append(Message(role, tuple(part for part in parts if part != "")))
        return messages

    def row_messages(self, row: dict[str, Any]) -> list[Message]:
        turns = [(ROLES[turn["from"]], turn["value"]) for turn in row["conversations"]]
        return self.messages(turns, row.get("video", "").removesuffix(".pkl") or None)

    def encode(self, messages: Sequence[Message], preset: str = "train", generation: bool = False) -> Encoded:
        names = [Path(ref.path).stem for message in messages for ref in message.media]
        plans = [self.processor.plan_media(self.info(name), np.random.default_rng(0), preset) for name in names]
        return self.processor.encode(messages, plans, preset=preset, generation=generation)

    def ids(self, encoded: Encoded) -> list[int]:
        """With the original's id at placeholder positions, where ours hold 0."""
        patch = self.processor.tokenizer.convert_tokens_to_ids("<vid_patch>")
        visual = set(encoded.visual_positions)
        return [patch if position in visual else token for position, token in enumerate(encoded.input_ids)]

    def item(self, name: str, values: torch.Tensor | None = None) -> MediaItem:
        values = self.features[name] if values is None else values
        return MediaItem("video", {"values": values}, len(values), name, "features")

    def batch(self, names: Sequence[str]) -> Batch:
        """The right-padded batch of the named rows; the features are those of the golden files."""
        rows = [self.training_rows()[name] for name in names]
        encoded = [self.encode(self.row_messages(row)) for row in rows]
        length = max(row.num_tokens for row in encoded)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full_like(ids, IGNORE)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        visual: list[int] = []
        for index, row in enumerate(encoded):
            ids[index, : row.num_tokens] = torch.tensor(row.input_ids)
            labels[index, : row.num_tokens] = torch.tensor(row.labels)
            mask[index, : row.num_tokens] = True
            visual += [index * length + position for position in row.visual_positions]
        rows_at, columns = torch.nonzero(labels[:, 1:] != IGNORE, as_tuple=True)
        return Batch(
            input_ids=ids,
            position_ids=torch.arange(length).expand(len(rows), -1),
            visual_positions=torch.tensor(visual),
            media=[self.item(row["video"].removesuffix(".pkl")) for row in rows if "video" in row],
            attention_mask=mask,
            target_positions=rows_at * length + columns,
            target_ids=labels[rows_at, columns + 1],
            target_samples=rows_at,
        )
