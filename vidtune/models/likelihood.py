"""Likelihood of the supervised tokens, without ever holding the logits of a whole row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK = 512
"""Targets per call of the head: 512 x 152k logits in fp32 are 0.3 GB, kept once and for one chunk at a time."""


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
        return _Likelihood.apply(lm_head(states).float(), ids)

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


class _Likelihood(torch.autograd.Function):
    """Cross-entropy whose probabilities and gradient take the place of the logits.

    The logits are by far the largest tensor of a step. ``F.cross_entropy`` holds them three times (logits, log-softmax,
    gradient) and passes over them about ten times; for 80 targets and 152k tokens that is a third of the head's time on
    a CPU. They must not be needed by what made them: a linear layer's are not, and autograd raises where one's are.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(S, V) float32, overwritten, and (S,) ids to (S,) nats and (S,) bool."""
        column = ids[:, None]
        target = logits.gather(1, column)
        largest, place = logits.max(-1, keepdim=True)
        probabilities = torch.softmax(logits, -1, out=logits)
        # The log of the normaliser from the likeliest token, whose probability is at least 1 / V, whereas that of the
        # target may underflow.
        nll = (largest - target - probabilities.gather(1, place).log()).squeeze(1)
        ctx.save_for_backward(column)
        ctx.probabilities = probabilities
        correct = (place == column).squeeze(1)
        ctx.mark_non_differentiable(correct)
        return nll, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (column,) = ctx.saved_tensors
        probabilities, ctx.probabilities = ctx.probabilities, None
        probabilities.scatter_add_(1, column, torch.full_like(column, -1, dtype=probabilities.dtype))
        return probabilities.mul_(gradient[:, None]), None
