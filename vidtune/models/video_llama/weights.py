"""Checkpoints of Video-LLaMA: five files that the original loads one over the other, read strictly, and written back.

Order (later overrides earlier): EVA ViT, BLIP-2 Q-Former, language model, optional projection, ``ckpt``, ``ckpt_2``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig

from vidtune.contracts import UserError
from vidtune.models.attention import PACKED_SDPA
from vidtune.models.key_table import KeyTable
from vidtune.models.loading import LoadReport, load_tensors, resolve_folder, stream_file, stream_folder
from vidtune.models.shards import held_whole
from vidtune.models.video_llama.keys import BLIP2, LANGUAGE, PROJECTION, TRAINED, vit_table
from vidtune.models.video_llama.network import VideoLlama
from vidtune.models.video_llama.sizes import Sizes

LLM = "llama-2-7b-chat-hf"
VIT = "eva_vit_g.pth"
BLIP2_FILE = "blip2_pretrained_flant5xxl.pth"
CKPT = "VL_LLaMA_2_7B_Pretrained.pth"
CKPT_2 = "AL_LLaMA_2_7B_Pretrained.pth"
"""Names of the published files (7B)."""

log = logging.getLogger(__name__)

_POSITIONS = "vision.vit.embeddings.position_embedding"
_BRANCHES = (("video_qformer", "projection"), ("audio_qformer", "audio_projection"))


def build_network(
    path: str,
    llm: str = LLM,
    dtype: str = "float32",
    attention: str = PACKED_SDPA,
    vision_attention: str = "sdpa",
    audio_branch: bool = False,
    sizes: dict[str, Any] | None = None,
) -> VideoLlama:
    """Build without loading weights.

    Args:
        path: folder that holds the checkpoint files.
        llm: folder of the language model, relative to ``path`` or absolute; its ``config.json`` is read.
        dtype: name of a torch dtype, for all parameters.
        attention, vision_attention: implementations in the decoder, and in ViT and Q-Formers.
        audio_branch: also build the parts that read audio features (the original's ``equip_audio_branch``).
        sizes: fields of ``Sizes`` that differ from the published models.

    Raises:
        UserError: no LLaMA configuration there.
    """
    folder = resolve_folder(path) / llm
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json of a LLaMA decoder. model.network.llm={llm!r} names its folder inside "
            f"model.path={path!r}."
        )
    config = LlamaConfig.from_pretrained(folder)
    if config.model_type != "llama":
        raise UserError(f"{folder}: model_type is {config.model_type!r}; Video-LLaMA needs a llama decoder.")
    return build_from_config(config, dtype, attention, vision_attention, audio_branch, Sizes(**(sizes or {})))


def build_from_config(
    language: LlamaConfig,
    dtype: str = "float32",
    attention: str = PACKED_SDPA,
    vision_attention: str = "sdpa",
    audio_branch: bool = False,
    sizes: Sizes | None = None,
) -> VideoLlama:
    """Build from configurations alone, also on the meta device; arguments as ``build_network``."""
    return VideoLlama(
        sizes or Sizes(), language, getattr(torch, dtype), attention, vision_attention, audio_branch=audio_branch
    )


def load_weights(
    network: VideoLlama,
    path: str,
    llm: str = LLM,
    vit: str = VIT,
    blip2: str = BLIP2_FILE,
    llama_proj_model: str | None = None,
    ckpt: str | None = None,
    ckpt_2: str | None = None,
) -> LoadReport:
    """Load all files in the original's order.

    Args:
        network: from ``build_network``.
        path: folder of the files; the other arguments are relative to it, or absolute.
        llm: folder of the language model.
        vit: EVA ViT file, with one block more than is used.
        blip2: BLIP-2 file: image Q-Former, its queries and the norm after the ViT.
        llama_proj_model: only its ``llama_proj`` is taken, as a start of the projection.
        ckpt, ckpt_2: what trainings of the vision and the audio branch wrote, in any order. A branch without a file
            starts from random values.

    Raises:
        UserError: a tensor missing from all files, unknown, or of another shape; the original passes over the first
            two in silence.
    """
    folder = resolve_folder(path)
    given: dict[str, str] = {}
    sources: list[tuple[str, KeyTable, Iterable[tuple[str, Tensor]]]] = [
        (vit, vit_table(network.sizes.vit_layers), stream_file(folder / vit)),
        (blip2, BLIP2, stream_file(folder / blip2)),
        (llm, LANGUAGE, stream_folder(folder / llm)),
    ]
    if llama_proj_model:
        sources.append((llama_proj_model, PROJECTION, stream_file(folder / llama_proj_model)))
    sources += [(name, TRAINED, stream_file(folder / name)) for name in (ckpt, ckpt_2) if name]
    tensors = (pair for source in sources for pair in _translate(network, *source, given))
    report = load_tensors(network, tensors, str(folder), expected_missing=["connector.*"])
    report.missing = _start_parts(network, given, llama_proj_model)
    report.raise_if_bad()
    return report


def export_weights(
    network: VideoLlama,
    folder: Path,
    llm: str = LLM,
    vit: str = VIT,
    blip2: str = BLIP2_FILE,
    ckpt: str = CKPT,
    ckpt_2: str = CKPT_2,
) -> None:
    """Write the files that ``load_weights`` reads, names and nesting as the original's.

    Args:
        network: loaded or trained.
        folder: is created.
        llm, vit, blip2, ckpt, ckpt_2: names as in ``load_weights``; ``ckpt_2`` only with an audio branch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()

    def pick(table: KeyTable, *prefixes: str, without: str = "-") -> dict[str, Tensor]:
        ours = ((k, v) for k, v in state.items() if k.startswith(prefixes) and not k.startswith(without))
        # Copies: torch.save would write the whole storage behind a view.
        return {name: tensor.detach().cpu().clone() for name, tensor in table.to_theirs(ours)}

    norm = "vision.vit.post_layernorm"
    torch.save(pick(vit_table(network.sizes.vit_layers), "vision.vit.", without=norm), folder / vit)
    torch.save({"model": pick(BLIP2, norm, "vision.qformer.")}, folder / blip2)
    torch.save({"model": pick(TRAINED, "connector.video_", "connector.projection.")}, folder / ckpt)
    if network.connector.audio_qformer is not None:
        torch.save({"model": pick(TRAINED, "connector.audio_")}, folder / ckpt_2)
    network.language.save_pretrained(folder / llm, state_dict=pick(LANGUAGE, "language."))


def _translate(
    network: VideoLlama, file: str, table: KeyTable, tensors: Iterable[tuple[str, Tensor]], given: dict[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """Our names for a file's tensors, noted in ``given`` (name -> file); unknown ones keep the file's name."""
    known = network.state_dict(keep_vars=True)
    for name, tensor in table.to_ours(tensors):
        if name == _POSITIONS and name in known:
            tensor = resize_positions(tensor, known[name].shape[1])
        given[name] = file
        yield (name if name in known else f"{file}: {name}"), tensor


def resize_positions(table: Tensor, num_positions: int) -> Tensor:
    """A (1, 1 + P, W) position table for another square grid: bicubic, the entry of CLS untouched.

    Source: interpolate_pos_embed in DAMO-NLP-SG/Video-LLaMA, models/eva_vit.py.
    """
    if table.shape[1] == num_positions:
        return table
    old, new = math.isqrt(table.shape[1] - 1), math.isqrt(num_positions - 1)
    grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid.float(), size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)


def _start_parts(network: VideoLlama, given: dict[str, str], start: str | None) -> list[str]:
    """Give random values to the parts of the connector that no training wrote; return the names that are missing.

    Args:
        given: name -> file of everything loaded.
        start: the file of ``llama_proj_model``, which may bring a projection for a new Q-Former.
    """
    missing: list[str] = []
    for parts in _BRANCHES:
        modules = {part: getattr(network.connector, part) for part in parts}
        if None in modules.values():
            continue
        names = {part: {f"connector.{part}.{name}" for name in modules[part].state_dict()} for part in parts}
        trained = any(given.get(name, start) != start for part in parts for name in names[part])
        for part in parts:
            absent = names[part] - given.keys()
            if trained or len(absent) < len(names[part]):
                missing += sorted(absent)
            else:
                log.warning("connector.%s starts from random values: no file in model.weights brings it", part)
                with held_whole(modules[part]):
                    modules[part].reset_parameters()
    return missing
