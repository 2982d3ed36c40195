"""A golden case as our objects: network, processor, samples, batches."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vidtune.contracts import IGNORE, Batch, Encoded, MediaInfo, MediaItem, MediaRef, Message
from vidtune.models.video_llama.network import VideoLlama
from vidtune.models.video_llama.pixels import normalize
from vidtune.models.video_llama.processor import VideoLlamaProcessor
from vidtune.models.video_llama.weights import build_network, load_weights

TEMPLATES = {"llama_v2": "llama_2", "vicuna": "vicuna"}
SAMPLING = {"uniform": "segment_starts", "headtail": "headtail"}
"""The original's names and ours; it has no others."""

FILES = {
    "llm": "llm",
    "vit": "eva_vit_g.safetensors",
    "blip2": "blip2_pretrained_flant5xxl.safetensors",
}


class OriginalDraws:
    """Draws as the original's generators do: torch's for the crop, Python's for the frames."""

    def __init__(self, seed: int) -> None:
        self.torch, self.python = torch.Generator().manual_seed(seed), random.Random(seed)

    def uniform(self, low: float, high: float) -> float:
        return torch.empty(1).uniform_(low, high, generator=self.torch).item()

    def integers(self, low: int, high: int) -> int:
        return torch.randint(low, high, (1,), generator=self.torch).item()

    def choice(self, frames: range, count: int, replace: bool) -> torch.Tensor:
        assert not replace
        return torch.tensor(self.python.sample(frames, count))


@dataclass
class Case:
    """Args:
    folder: of the golden case.
    """

    folder: Path

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text())

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.json("config.json")

    @cached_property
    def stages(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "expected/stages.safetensors")

    @cached_property
    def raw_frames(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "inputs/frames.safetensors")

    @cached_property
    def annotations(self) -> list[dict[str, Any]]:
        return self.json("inputs/annotations.json")

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    @property
    def sizes(self) -> dict[str, Any]:
        model, vit, bert = self.config["model"], self.config["vit"], self.config["bert"]
        return {
            "image_size": model["image_size"],
            "patch_size": vit["patch_size"],
            "vit_width": vit["embed_dim"],
            "vit_layers": vit["depth"],
            "vit_heads": vit["num_heads"],
            "vit_mlp": int(vit["embed_dim"] * vit["mlp_ratio"]),
            "qformer_width": bert["hidden_size"],
            "qformer_layers": bert["num_hidden_layers"],
            "qformer_heads": bert["num_attention_heads"],
            "qformer_mlp": bert["intermediate_size"],
            "num_queries": model["num_query_token"],
            "num_video_queries": model["num_video_query_token"],
            "video_layers": model["fusion_head_layers"],
            "max_frames": model["max_frame_pos"],
            "audio_width": self.config["audio"]["hidden_size"],
            "num_audio_queries": model["num_audio_query_token"],
        }

    def network(self, recipe: str, attention: str = "sdpa") -> VideoLlama:
        """Loaded, in eval mode, with what the recipe trains set to train."""
        flags = self.config["recipes"][recipe]
        network = build_network(
            str(self.weights),
            llm="llm",
            attention=attention if attention == "eager" else "vidtune_packed_sdpa",
            vision_attention=attention,
            audio_branch=flags["equip_audio_branch"],
            sizes=self.sizes,
        )
        load_weights(network, str(self.weights), **FILES, ckpt=flags["ckpt"], ckpt_2=flags.get("ckpt_2"))
        network.requires_grad_(False).eval()
        frozen = {
            "projection": flags["frozen_llama_proj"],
            "video_qformer": flags["frozen_video_Qformer"],
            "audio_qformer": flags["frozen_audio_Qformer"],
            "audio_projection": flags["frozen_audio_Qformer"],
        }
        for part, module in network.connector.named_children():
            module.requires_grad_(not frozen[part])
        return network

    def processor(self, **options: Any) -> VideoLlamaProcessor:
        data, sizes = self.config["data"], self.sizes
        known = {
            "num_frames": data["n_frms"],
            "sampling": SAMPLING[data["sampling"]],
            "max_length": data["max_length"],
            "image_size": data["image_size"],
            "num_video_tokens": sizes["num_video_queries"],
            "max_frames": sizes["max_frames"],
            "num_audio_tokens": sizes["num_audio_queries"],
            "audio_width": sizes["audio_width"],
        }
        return VideoLlamaProcessor(str(self.weights / "llm"), **{**known, **options})

    # ------------------------------------------------------------------ media and conversations

    def video_info(self, name: str, kind: str = "video") -> MediaInfo:
        clip = self.config["clips"][name]
        fps = float(Fraction(clip["fps"]))
        return MediaInfo(MediaRef(name, kind), clip["frames"], fps, clip["frames"] / fps, clip["height"], clip["width"])

    def image_info(self, name: str) -> MediaInfo:
        # LLaVA's rows name COCO pictures without the prefix that the original adds.
        name = f"COCO_train2014_{name.removeprefix('COCO_train2014_')}"
        return MediaInfo(MediaRef(str(self.folder / "inputs" / name), "image"), 1, 1.0, 1.0, 0, 0)

    def messages(self, row: dict[str, Any], kind: str = "video") -> list[Message]:
        """An annotation row of the original as a conversation."""
        messages = []
        for turn, pair in enumerate(row["QA"]):
            media = (MediaRef(row["video"], kind),) if turn == 0 else ()
            messages += [Message("user", (*media, pair["q"])), Message("assistant", (pair["a"],))]
        return messages

    def image_messages(self, row: dict[str, Any]) -> list[Message]:
        """A LLaVA-style row as a conversation."""
        messages = []
        for turn in row["conversations"]:
            before, tag, after = turn["value"].partition("<image>")
            content = (before, MediaRef(row["image"], "image"), after) if tag else (before,)
            role = "user" if turn["from"] == "human" else "assistant"
            messages.append(Message(role, tuple(part for part in content if part)))
        return messages

    def encode(self, processor: VideoLlamaProcessor, row: int, kind: str = "video") -> Encoded:
        """An annotation row as the training sees it."""
        entry = self.annotations[row]
        plan = processor.plan_media(self.video_info(entry["video"], kind), OriginalDraws(self.crop_seed(row)), "train")
        return processor.encode(self.messages(entry, kind), [plan], preset="train")

    def crop_seed(self, row: int) -> int:
        return self.config["data"]["crop_seed"] + row

    def batch_of(self, spec: dict[str, Any]) -> tuple[list[Encoded], list[MediaItem]]:
        """Rows and media of a batch that config.json describes, text and pixels by our own steps."""
        processor = self.processor(train_template=TEMPLATES[spec.get("model_type", "llama_v2")], wrap_uint8=True)
        if spec["kind"] == "image":
            return self._images(processor, spec)
        if spec["kind"] == "caption":
            return self._captions(spec)
        if self.config["recipes"][spec["recipe"]]["equip_audio_branch"]:
            return self._audio(processor, spec)
        encoded = [self.encode(processor, row) for row in spec["rows"]]
        return encoded, [processor.load_media(row.plans[0], self.decoded(row.plans[0])) for row in encoded]

    def decoded(self, plan) -> list:
        """Frames of a plan as the original's reader gave them."""
        frames = self.stages[f"decode_resized/{plan.info.ref.path}"]
        return [frames[index].numpy() for index in plan.frame_indices]

    def _images(self, processor: VideoLlamaProcessor, spec: dict[str, Any]) -> tuple[list[Encoded], list[MediaItem]]:
        encoded, media = [], []
        for row, pixels in zip(spec["rows"], self.stages[f"{spec['name']}/pixels"], strict=True):
            entry = self.json("inputs/image_annotations.json")[row]
            # The batch was made with the evaluation transform, that is without a crop.
            plan = processor.plan_media(self.image_info(entry["image"]), OriginalDraws(0), "infer")
            encoded.append(processor.encode(self.image_messages(entry), [plan], preset="train"))
            media.append(MediaItem("image", {"pixel_values": pixels[None]}, plan.num_placeholders))
        return encoded, media

    def _audio(self, processor: VideoLlamaProcessor, spec: dict[str, Any]) -> tuple[list[Encoded], list[MediaItem]]:
        heads = load_file(self.folder / "inputs/audio_features.safetensors")["train_vision_head_out"]
        encoded = [self.encode(processor, row, "audio") for row in spec["rows"]]
        media = [processor.load_media(row.plans[0], head.numpy()) for row, head in zip(encoded, heads, strict=True)]
        return encoded, media

    def _captions(self, spec: dict[str, Any]) -> tuple[list[Encoded], list[MediaItem]]:
        expected = self.json("expected/caption.json")
        start, end = self.config["model"]["prompt_template"].split("{}")
        before, after = expected["prompt"].removeprefix(start).removesuffix(end).split("<ImageHere>")
        template = {"</s>": "llama_2_caption", "###": "vicuna_caption"}[expected["end_sym"]]
        encoded, media = [], []
        for position, clip in enumerate(spec["clips"]):
            processor = self.processor(
                train_template=template, sampling="headtail", media_text="none", wrap_uint8=True, max_length=10_000
            )
            draws = OriginalDraws(spec["seed"] + position)
            plan = processor.plan_media(self.video_info(clip), draws, "train")
            messages = [
                Message("user", (before, plan.info.ref, after)),
                Message("assistant", (expected["texts_processed"][position],)),
            ]
            # The original limits the text alone (max_txt_len), we the whole row.
            prompt = processor.encode(messages, [plan], preset="train", generation=True)
            processor.max_length = prompt.num_tokens + expected["max_txt_len"]
            encoded.append(processor.encode(messages, [plan], preset="train"))
            media.append(processor.load_media(plan, self.decoded(plan)))
        return encoded, media

    def golden_media(self, spec: dict[str, Any]) -> list[MediaItem] | None:
        """The original's own pixels of a batch, where they are stored."""
        pixels = self.stages.get(f"{spec['name']}/pixels")
        if pixels is None or spec["kind"] == "image":
            return None
        count = self.sizes["num_video_queries"]
        return [MediaItem("video", {"pixel_values": clip.transpose(0, 1)}, count) for clip in pixels]


def pad_rows(encoded: Sequence[Encoded], media: Sequence[MediaItem]) -> Batch:
    """Rows as the original collates them: padded on the right."""
    length = max(row.num_tokens for row in encoded)
    ids = torch.zeros(len(encoded), length, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    visual = []
    for index, row in enumerate(encoded):
        ids[index, : row.num_tokens] = torch.tensor(row.input_ids)
        labels[index, : row.num_tokens] = torch.tensor(row.labels)
        mask[index, : row.num_tokens] = True
        visual += [index * length + position for position in row.visual_positions]
    targets = (labels[:, 1:] != IGNORE).nonzero()
    return Batch(
        input_ids=ids,
        position_ids=torch.arange(length).expand(len(encoded), -1),
        visual_positions=torch.tensor(visual),
        media=list(media),
        attention_mask=mask,
        target_positions=targets[:, 0] * length + targets[:, 1],
        target_ids=labels[:, 1:][labels[:, 1:] != IGNORE],
    )


def labels_of(batch: Batch) -> torch.Tensor:
    """(B, L) labels of a padded batch."""
    labels = torch.full_like(batch.input_ids, IGNORE).flatten()
    labels[batch.target_positions + 1] = batch.target_ids
    return labels.view_as(batch.input_ids)


def grey_levels(pixels: torch.Tensor) -> torch.Tensor:
    """Normalised pixels back to grey levels, as floats."""
    zero, one = normalize(torch.zeros(1, 3, 1, 1)), normalize(torch.ones(1, 3, 1, 1))
    return (pixels - zero) / (one - zero)
