"""Likelihood of the supervised tokens, without ever holding the logits of a whole row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 512
"""Targets per call of the head: 512 x 152k logits in fp32 are 0.3 GB, kept for one chunk at a time."""


def target_likelihood(hidden: Tensor, lm_head: nn.Module, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each target.

    Args:
        hidden: (S, D) states whose next token is supervised.
        lm_head: D -> V; called as a module, so that sharded weights are gathered.
        targets: (S,) int64 in [0, V).

    Returns:
        (S,) float32 negative log-likelihood in nats, and (S,) bool whether the target has the largest logit.
    """

    def chunk_likelihood(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = lm_head(states).float()
        return F.cross_entropy(logits, ids, reduction="none"), logits.argmax(-1) == ids

    nll, correct = [], []
    # The logits of a chunk are computed again in the backward pass instead of being kept; a single chunk is kept, its
    # backward pass being the next thing to run.
    recompute = len(targets) > CHUNK and torch.is_grad_enabled()
    # One call even without targets: under ZeRO-3 and FSDP every process must take part in the gathering.
    for states, ids in zip(hidden.split(CHUNK), targets.split(CHUNK)):
        if recompute and states.requires_grad:
            part = checkpoint(chunk_likelihood, states, ids, use_reentrant=False)
        else:
            part = chunk_likelihood(states, ids)
        nll.append(part[0])
        correct.append(part[1])
    return torch.cat(nll), torch.cat(correct)
