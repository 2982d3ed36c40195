"""Weights that are spread over processes: ZeRO-3's partitions and FSDP2's tensors."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_sharded(network: nn.Module) -> bool:
    """Whether a forward has to gather weights, so that all processes must run the same number of them."""
    return any(hasattr(parameter, "ds_id") or isinstance(parameter, DTensor) for parameter in network.parameters())


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """Shape of the whole tensor; under ZeRO-3 the parameter itself is empty and its shape lies beside it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
