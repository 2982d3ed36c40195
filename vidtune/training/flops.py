"""Model FLOPs of a packed row, for the meters.

The rule: what the decoder and its head must compute once, nothing that an implementation adds. A token that several
questions share counts once; recomputation (activation checkpointing, chunks of the head) does not count; the tower and
the connector do not count either, so that the utilisation is a lower bound.

    forward    2 W per token           W weights of the decoder's linear layers (embeddings excluded)
               4 A per attended pair   A = layers x heads x head width; scores and weighted values
               2 V D per target        the head, at supervised positions only
    backward   twice the attention, 2 W and 2 V D for the gradients of inputs, 2 per *trained* weight for its own

With everything trained and without attention this is the usual 6 W per token (Kaplan et al. 2020, section 2.1;
Chowdhery et al. 2022, appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidtune.contracts import Batch
from vidtune.models.base import VideoLLM


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of forward and backward per unit of work; ``VideoLLM`` and what trains decide them once.

    Args:
        per_token, per_pair, per_target: FLOPs.
    """

    per_token: float
    per_pair: float
    per_target: float

    @staticmethod
    def of(network: VideoLLM) -> StepFlops:
        language, config = network.language, network.language.config
        head = language.get_output_embeddings()
        weights = trained = 0.0
        for module in language.modules():
            if module is head:
                continue
            # Sizes of a linear layer, not of its storage: a quantised weight is packed.
            if isinstance(module, nn.Linear):
                size = module.in_features * module.out_features
                weights, trained = weights + size, trained + size * module.weight.requires_grad
            else:
                for parameter in module.parameters(recurse=False):
                    if parameter.ndim == 3:  # stacked experts, of which a token visits some
                        size = parameter.numel() * network.expert_share
                        weights, trained = weights + size, trained + size * parameter.requires_grad
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return StepFlops(
            4 * weights + 2 * trained,
            12 * config.num_hidden_layers * heads * width,
            (4 + 2 * head.weight.requires_grad) * config.vocab_size * config.hidden_size,
        )

    def __call__(self, batch: Batch) -> Tensor:
        """FLOPs of a packed row, a scalar on its device. A token attends to as many as its position says, plus itself:
        positions restart with every segment, and after the prefix with every branch."""
        pairs = (batch.position_ids + 1).sum(dtype=torch.float32)
        targets = 0 if batch.target_positions is None else batch.target_positions.numel()
        return self.per_token * batch.input_ids.numel() + self.per_pair * pairs + self.per_target * targets
