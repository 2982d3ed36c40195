"""Aria checkpoints in and out: the released on-disk names and the legacy ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AriaConfig
from transformers.initialization import no_init_weights

from vidtune.contracts import UserError
from vidtune.models.aria.config import read_config
from vidtune.models.aria.network import Aria
from vidtune.models.attention import PACKED_SDPA
from vidtune.models.key_table import KeyTable, Rename
from vidtune.models.loading import LoadReport, load_tensors, resolve_folder, stream_folder
from vidtune.models.saving import write_folder

_DECODER = (
    Rename(
        "language_model.model.layers.{n}.mlp.experts.fc1.weight", "language.model.layers.{n}.mlp.experts.gate_up_proj"
    ),
    Rename("language_model.model.layers.{n}.mlp.experts.fc2.weight", "language.model.layers.{n}.mlp.experts.down_proj"),
    Rename("language_model.{rest*}", "language.{rest*}"),
)
_LEGACY_ENCODER = (
    Rename("vision_tower.vision_model.{rest*}", "vision.{rest*}"),
    Rename("multi_modal_projector.ln_ffn.{rest}", "connector.layer_norm.{rest}"),
    Rename("multi_modal_projector.ffn.{rest*}", "connector.feed_forward.{rest*}"),
    Rename("multi_modal_projector.cross_attn.ln_kv.{rest}", "connector.cross_attn.layer_norm_kv.{rest}"),
)
_ENCODER = (
    Rename("vision_tower.{rest*}", "vision.{rest*}"),
    Rename("multi_modal_projector.{rest*}", "connector.{rest*}"),
)

KEY_TABLE = KeyTable((*_DECODER, *_ENCODER))
"""Names of the released checkpoint, which export writes."""

LEGACY_KEY_TABLE = KeyTable((*_DECODER, *_LEGACY_ENCODER, *_ENCODER))
"""Names of the training revision and of the Base and Chat checkpoints; reads the released names too."""

_UNUSED_NORM = ("vision.post_layernorm.weight", "vision.post_layernorm.bias")
"""Legacy checkpoints lack this norm, and no computation uses it."""


def build_network(
    path: str,
    dtype: str = "float32",
    attention: str = PACKED_SDPA,
    vision_attention: str = "sdpa",
    moe_z_loss_coeff: float = 1e-5,
    moe_aux_loss_coeff: float = 1e-4,
    num_embeddings: int | None = None,
) -> Aria:
    """The network of a checkpoint, its weights not yet loaded (values undefined; works on the meta device too).

    Args:
        path: checkpoint folder or hub id; ``config.json`` in it may have either form.
        dtype: of all parameters.
        attention: execution in the decoder.
        vision_attention: execution in the tower, a name of transformers (``sdpa``, ``eager``, ``flash_attention_2``).
        moe_z_loss_coeff, moe_aux_loss_coeff: factors of the router losses in training; the defaults are those of the
            original's NExT-QA recipes.
        num_embeddings: rows of the embedding that the tokenizer was checked against; None: not compared.

    Raises:
        UserError: the checkpoint has another number of embeddings.
    """
    config: Any = read_config(resolve_folder(path))
    if num_embeddings not in (None, config.text_config.vocab_size):
        raise UserError(
            f"{path}: its vocab_size is {config.text_config.vocab_size}, but the tokenizer was checked against "
            f"{num_embeddings} embeddings. Set model.processor.num_embeddings={config.text_config.vocab_size}."
        )
    config.vision_config._attn_implementation = vision_attention
    config.text_config._attn_implementation = attention
    with no_init_weights(), _default_dtype(getattr(torch, dtype)):
        return Aria(config, moe_z_loss_coeff, moe_aux_loss_coeff)


def load_weights(network: Aria, path: str) -> LoadReport:
    """Fill the network from a checkpoint folder or hub id, tensor by tensor; either naming is recognised."""
    folder = resolve_folder(path)
    tensors = LEGACY_KEY_TABLE.to_ours(stream_folder(folder))
    return load_tensors(network, _with_unused_norm(tensors, network), str(folder))


def export_weights(network: Aria, folder: Path) -> None:
    """Write the checkpoint that transformers' ``AriaForConditionalGeneration`` opens.

    Args:
        network: adapters merged.
        folder: is created.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = AriaConfig.from_dict(network.native_config.to_dict())
    config.architectures = ["AriaForConditionalGeneration"]
    config.save_pretrained(folder)
    write_folder(folder, KEY_TABLE.to_theirs(network.state_dict().items()))


def _with_unused_norm(tensors: Iterable[tuple[str, Tensor]], network: Aria) -> Iterator[tuple[str, Tensor]]:
    """Adds zeros for the norm that legacy checkpoints lack: a network built on meta would otherwise keep garbage."""
    waiting = set(_UNUSED_NORM)
    for name, tensor in tensors:
        waiting.discard(name)
        yield name, tensor
    for name in sorted(waiting):
        yield name, torch.zeros(network.native_config.vision_config.hidden_size)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
