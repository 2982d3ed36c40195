"""Auxiliary losses of a mixture-of-experts router."""

from __future__ import annotations

import torch
from torch import Tensor


def router_losses(router_logits: Tensor, top_k: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """z-loss and load-balancing loss of one layer, without their coefficients.

    Args:
        router_logits: (N, E) of N tokens over E experts.
        top_k: experts per token, chosen by largest logit.
        weights: (N,) how much a token counts, at least 0; None for 1 each.

    Returns:
        Two float32 scalars: mean of logsumexp(g)^2 (ST-MoE, arXiv 2202.08906, eq. 5) and
        E / k * sum_e mean_t softmax(g)[t, e] * f_e with f_e the mean number of slots per token that go to expert e
        (Switch Transformer, arXiv 2101.03961, eq. 4, divided by k). All means are weighted. Counts carry no gradient.
        Both are 0 where no token counts.
    """
    logits = router_logits.float()
    if weights is None:
        shares = torch.full_like(logits[:, 0], 1.0 / len(logits))
    else:
        weights = weights.to(logits)
        # Without any weight the shares are 0, not NaN: rows whose media are all unreadable still step.
        shares = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    z_loss = (shares * torch.logsumexp(logits, dim=-1).square()).sum()
    chosen = torch.zeros_like(logits).scatter_(1, logits.detach().topk(top_k, dim=-1).indices, 1.0)
    load = shares @ chosen
    importance = shares @ torch.softmax(logits, dim=-1)
    return z_loss, logits.shape[1] / top_k * (importance * load).sum()
