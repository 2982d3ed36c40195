"""What the three folders of an NVILA checkpoint say about the network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Qwen2Config, SiglipVisionConfig

from vidtune.contracts import UserError
from vidtune.models.loading import resolve_folder

LANGUAGE, VISION, CONNECTOR = "llm", "vision_tower", "mm_projector"
"""Sub-folders of a checkpoint."""

_VIDEO_ENCODER, _IMAGE_ENCODER = "BasicVideoEncoder", "BasicImageEncoder"


@dataclass(frozen=True)
class NVILAConfig:
    """Geometry of a network.

    Args:
        language: Qwen2 as stored.
        vision: SigLIP as stored, with all of its layers.
        projector: name of the projector type, see ``connector.PROJECTORS``.
        select_layer: which of the tower's ``num_hidden_layers + 1`` states is the feature; the published models take
            the last but one, so that the last layer is never run.
        scales: side lengths in pixels of the pictures that dynamic-S2 stacks, ascending; empty for plain tiles.
    """

    language: Qwen2Config
    vision: SiglipVisionConfig
    projector: str
    select_layer: int = -2
    scales: tuple[int, ...] = ()

    @property
    def num_run_layers(self) -> int:
        """Tower layers that the feature depends on; those above are not built."""
        states = self.vision.num_hidden_layers + 1
        return self.select_layer % states

    @property
    def feature_width(self) -> int:
        """Channels that enter the projector."""
        return self.vision.hidden_size * max(1, len(self.scales))


def resolve_checkpoint(path: str) -> Path:
    """The folder that holds ``llm/``; a training output of the original keeps it one level down, in ``model/``.

    Raises:
        UserError: neither folder has one.
    """
    folder = resolve_folder(path)
    for candidate in (folder, folder / "model"):
        if (candidate / LANGUAGE).is_dir():
            return candidate
    raise UserError(
        f"model.path={path!r}: no {LANGUAGE}/ folder here or in model/. Expected a checkpoint with the sub-folders "
        f"{LANGUAGE}/, {VISION}/ and {CONNECTOR}/, as the NVILA repositories on the hub have them (not the -hf ports)."
    )


def read_config(folder: Path) -> NVILAConfig:
    """Read the configs of a checkpoint.

    Raises:
        UserError: a file is missing, or the checkpoint uses a part that is not implemented here.
    """
    root = read_json(folder / "config.json")
    language = read_json(folder / LANGUAGE / "config.json")
    vision = read_json(folder / VISION / "config.json")
    projector = read_json(folder / CONNECTOR / "config.json")
    _require(folder, "llm/config.json: model_type", language.get("model_type"), "qwen2")
    _require(folder, "vision_tower/config.json: model_type", vision.get("model_type"), "siglip_vision_model")
    _require(folder, "mm_vision_select_feature", root.get("mm_vision_select_feature", "cls_patch"), "cls_patch")
    _require(folder, "num_time_tokens", root.get("num_time_tokens") or 0, 0)
    _require(folder, "s2", bool(root.get("s2")), False)
    for key, expected in (("image_encoder", _IMAGE_ENCODER), ("video_encoder", _VIDEO_ENCODER)):
        # A JSON string that names a class and its arguments; without arguments it appends one newline per tile.
        encoder = json.loads(root.get(key) or "{}")
        _require(folder, key, str(encoder.pop("_target_", expected)).rpartition(".")[2], expected)
        _require(folder, f"arguments of {key}", encoder, {})

    scales: tuple[int, ...] = ()
    if root.get("dynamic_s2"):
        scales = tuple(sorted(int(scale) for scale in str(root["s2_scales"]).split(",")))
        _require(folder, "s2_resize_output_to_scale_idx", root.get("s2_resize_output_to_scale_idx", -1), -1)
        _require(folder, "s2_max_split_size", root.get("s2_max_split_size", scales[0]), scales[0])
    return NVILAConfig(
        language=Qwen2Config.from_pretrained(folder / LANGUAGE),
        vision=SiglipVisionConfig.from_pretrained(folder / VISION),
        projector=projector["mm_projector_type"],
        select_layer=root.get("mm_vision_select_layer", -2),
        scales=scales,
    )


def read_json(file: Path) -> dict[str, Any]:
    """Raises:
    UserError: no such file.
    """
    if not file.is_file():
        raise UserError(f"{file}: this file of the checkpoint is missing. Download the checkpoint again.")
    return json.loads(file.read_text())


def _require(folder: Path, key: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise UserError(
            f"{folder}: {key} is {found!r}, but this family implements {expected!r} only. "
            f"Set model.path to an NVILA or NVILA-Lite checkpoint."
        )
