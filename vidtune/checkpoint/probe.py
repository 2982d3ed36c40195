"""Whether an export computes what the trained network computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidtune.contracts import Batch, MediaItem, Processor, UserError
from vidtune.models.base import VideoLLM

_TEXT = "What happens here? One thing after the other, and then it ends."
_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference, as a share of the largest logit: rounding of the saved type, grown over the layers."""


@torch.no_grad()
def probe_logits(network: VideoLLM, processor: Processor) -> Tensor:
    """(L, V) float32 logits of a fixed row: the processor's smallest visual, seeded noise in it, then text."""
    item = processor.dummy_media()
    generator = torch.Generator().manual_seed(0)
    tensors = {name: _noise(tensor, generator) for name, tensor in item.tensors.items()}
    count = item.num_placeholders
    ids = torch.tensor([[0] * count + list(processor.tokenizer(_TEXT, add_special_tokens=False)["input_ids"])])
    length = ids.shape[1]
    batch = Batch(
        input_ids=ids,
        position_ids=torch.arange(length)[None],
        visual_positions=torch.arange(count),
        media=[MediaItem(item.kind, tensors, count, "probe", item.stage)],
        segment_ids=torch.zeros_like(ids),
        branch_ids=torch.zeros_like(ids),
        target_positions=torch.tensor([length - 2]),
        target_ids=ids[0, -1:],
        target_weights=torch.ones(1),
        target_samples=torch.zeros(1, dtype=torch.long),
        sample_ids=("probe",),
    )
    network.eval()
    device, dtype = next(network.parameters()).device, network_dtype(network)
    # As in a run: what trained is float32 beside a frozen base of lower precision.
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = network(batch.to(device), return_logits=True).logits
    return logits[0].float().cpu()


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """What is zero in the dummy would hide the tower; ids, sizes and masks stay."""
    if not tensor.is_floating_point():
        return tensor
    return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def compare_logits(trained: Tensor, exported: Tensor, dtype: torch.dtype, what: str) -> float:
    """The largest difference as a share of the largest logit.

    Raises:
        UserError: more than rounding of ``dtype`` explains.
    """
    difference = float((trained - exported).abs().max() / trained.abs().max().clamp(min=1e-6))
    if not difference <= _LIMITS[dtype]:
        raise UserError(
            f"{what}: re-loaded, its logits differ from the trained network's by {difference:.2e} of the largest "
            f"logit, more than {_LIMITS[dtype]:.0e}. Do not use this export; report it with the run's config.yaml."
        )
    return difference


def network_dtype(network: nn.Module) -> torch.dtype:
    """The coarsest type in which a network computes; four-bit layers compute in bf16."""
    types = {p.dtype for p in network.parameters()} - {torch.float32}
    return torch.bfloat16 if types - {torch.float16} else next(iter(types), torch.float32)
