"""Model FLOPs of a packed row, for the meters.

The rule: what the decoder and its head must compute once, nothing that an implementation adds. A token that several
questions share counts once; recomputation (activation checkpointing, chunks of the head) does not count; the tower and
the connector do not count either, so that the utilisation is a lower bound.

    forward    2 W per token           W weights of the decoder's linear layers (embeddings excluded)
               4 A per attended pair   A = layers x heads x head width; scores and weighted values
               2 V D per target        the head, at supervised positions only
    backward   twice the attention, 2 W and 2 V D for the gradients of inputs, 2 per *trained* weight for its own

Where the last layer runs at supervised positions alone (``vidtune.models.last_layer``), the other tokens count there
with the weights of their keys and values only, and with no pair.

With everything trained and without attention this is the usual 6 W per token (Kaplan et al. 2020, section 2.1;
Chowdhery et al. 2022, appendix B).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidtune.contracts import Batch
from vidtune.models.base import VideoLLM
from vidtune.models.last_layer import narrows, pays


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of forward and backward per unit of work; ``VideoLLM`` and what trains decide them once.

    Args:
        per_token, per_pair, per_target: FLOPs.
        per_late_token, per_late_pair: part of the first two that the last layer spares where it is narrowed; 0 in
            networks where it never is.
    """

    per_token: float
    per_pair: float
    per_target: float
    per_late_token: float = 0.0
    per_late_pair: float = 0.0

    @staticmethod
    def of(network: VideoLLM) -> StepFlops:
        language, config = network.language, network.language.config
        head = language.get_output_embeddings()
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        modules = [module for module in language.modules() if module is not head]
        late: list[nn.Module] = []
        if network.narrows and narrows(language.model):
            layer = language.model.layers[-1]
            kept = {*layer.self_attn.k_proj.modules(), *layer.self_attn.v_proj.modules()}
            late = [module for module in layer.modules() if module not in kept]
        return StepFlops(
            _linear_flops(modules, network.expert_share),
            12 * config.num_hidden_layers * heads * width,
            (4 + 2 * head.weight.requires_grad) * config.vocab_size * config.hidden_size,
            _linear_flops(late, network.expert_share),
            12 * heads * width if late else 0,
        )

    def __call__(self, batch: Batch) -> Tensor:
        """FLOPs of a packed row, a scalar on its device. A token attends to as many as its position says, plus itself:
        positions restart with every segment, and after the prefix with every branch."""
        visible = batch.position_ids.flatten() + 1
        tokens, targets = visible.numel(), batch.target_positions
        count = 0 if targets is None else targets.numel()
        pairs = visible.sum(dtype=torch.float32)
        flops = self.per_token * tokens + self.per_pair * pairs + self.per_target * count
        if targets is not None and pays(count, tokens):
            left_out = pairs - visible[targets].sum(dtype=torch.float32)
            flops = flops - self.per_late_token * (tokens - count) - self.per_late_pair * left_out
        return flops


def _linear_flops(modules: Iterable[nn.Module], expert_share: float) -> float:
    """Per token, of the linear layers and stacked experts among some modules."""
    weights = trained = 0.0
    for module in modules:
        # Sizes of a linear layer, not of its storage: a quantised weight is packed.
        if isinstance(module, nn.Linear):
            size = float(module.in_features * module.out_features)
            weights, trained = weights + size, trained + size * module.weight.requires_grad
        else:
            for parameter in module.parameters(recurse=False):
                if parameter.ndim == 3:  # stacked experts, of which a token visits some
                    size = parameter.numel() * expert_share
                    weights, trained = weights + size, trained + size * parameter.requires_grad
    return 4 * weights + 2 * trained
