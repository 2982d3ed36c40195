"""Early fusion: visual embeddings take the place of placeholder positions."""

from __future__ import annotations

import torch
from torch import Tensor

from vidtune.contracts import Batch


def check_placeholders(batch: Batch) -> None:
    """Placeholders and media must agree; run on the host before the forward.

    Raises:
        ValueError: the row has another number of placeholders than its media fill.
    """
    expected = 0 if batch.dummy_media else sum(item.num_placeholders for item in batch.media)
    found = batch.visual_positions.numel()
    if expected != found:
        names = ", ".join(f"{item.name or item.kind}: {item.num_placeholders}" for item in batch.media)
        raise ValueError(
            f"samples {', '.join(batch.sample_ids)}: {found} placeholders in the row but {expected} visual tokens "
            f"announced by its media ({names}). The processor's spans and its tensors disagree."
        )


def fuse(embeddings: Tensor, visual: Tensor, batch: Batch) -> Tensor:
    """Put the visual embeddings into their positions.

    Args:
        embeddings: (B, L, D) text embeddings; what stands at placeholder positions is overwritten.
        visual: (N, D) in the order of ``batch.visual_positions``; of a dummy, any number of rows.

    Returns:
        (B, L, D); a new tensor, since in-place writes fail where the embeddings train.

    Raises:
        ValueError: the network made another number of embeddings than the batch has placeholders.
    """
    visual = visual.to(embeddings.dtype)
    if batch.dummy_media:
        # Keeps the tower in the graph of a row that shows nothing: every process makes the same calls.
        return embeddings + 0.0 * visual.sum()
    if visual.shape[0] != batch.visual_positions.numel():
        names = ", ".join(f"{item.name or item.kind}: {item.num_placeholders}" for item in batch.media)
        raise ValueError(
            f"samples {', '.join(batch.sample_ids)}: {batch.visual_positions.numel()} placeholders but "
            f"{visual.shape[0]} visual embeddings ({names})."
        )
    batch_size, length, width = embeddings.shape
    flat = embeddings.reshape(batch_size * length, width)
    return torch.index_put(flat, (batch.visual_positions,), visual).view(batch_size, length, width)
