"""PyTorch's FSDP2 under Lightning, with the checkpoints of every other strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from vidtune.models.shards import make_room, take_parts
from vidtune.training.whole_files import WholeFiles


class ShardStrategy(WholeFiles, ModelParallelStrategy):
    """FSDP2 over all processes.

    Checkpoints are one file with full tensors, as of a single process: any strategy and any number of processes can go
    on from them, and evaluation needs no consolidation.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # ------------------------------------------------------------------ weights

    shards_weights = True

    def cut(self, value: Tensor) -> Tensor:
        return cut_rows(value, self.global_rank, self.world_size)

    def shard(self, network: nn.Module) -> None:
        shard_layers(network, self.device_mesh["data_parallel"], self.root_device)

    # ------------------------------------------------------------------ checkpoints

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """Full copies of what trains, by name; on the first process only."""
        assert self.lightning_module is not None
        trained = {name: p for name, p in self.lightning_module.named_parameters() if p.requires_grad}
        return self._gathered(trained)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state that the plain optimizer would have: full tensors."""
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = plain.state_dict()
        return {
            "state": {number: self._gathered(values) for number, values in state["state"].items()},
            "param_groups": state["param_groups"],
        }

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        with torch.no_grad():
            for name, parameter in self.lightning_module.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(_shard_like(checkpoint["state_dict"][name], parameter))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {key: _shard_like(value, parameters[number]) for key, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})

    def _gathered(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Sharded tensors made whole, on the first process; all processes must call it."""
        whole = {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in values.items()}
        if not self.is_global_zero:
            return {}
        return {key: value.detach().cpu() if isinstance(value, Tensor) else value for key, value in whole.items()}


def cut_rows(value: Tensor, rank: int, world_size: int) -> Tensor:
    """A process's rows of a whole tensor: FSDP2 divides the first axis into equal chunks but the last."""
    chunks = value.chunk(world_size)
    return chunks[rank] if rank < len(chunks) else value[:0]


def shard_layers(network: nn.Module, mesh: DeviceMesh, device: torch.device) -> None:
    """Shard every layer of every stack, and the rest with the root; deferred weights get their room and their rows.

    The root keeps its weights whole from the first to the last use in a step, and with them embedding and head: a row
    with more supervised tokens calls the head more often, and a head of its own would then wait for processes that do
    not call it.
    """
    parts = take_parts(network)
    for unit in (*stacked_layers(network), network):
        make_room(unit, device)
        fully_shard(unit, mesh=mesh)
    register_fsdp_forward_method(network, "generate")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in parts:
                local: Any = parameter
                local.to_local().copy_(parts.pop(name))


def stacked_layers(network: nn.Module) -> list[nn.Module]:
    """Elements of the module lists with weights, inner lists before outer ones: the layers of decoder and tower."""
    layers = [
        layer
        for module in network.modules()
        if isinstance(module, nn.ModuleList)
        for layer in module
        if next(layer.parameters(), None) is not None
    ]
    return layers[::-1]


def _shard_like(value: Any, parameter: Tensor) -> Any:
    """This process's part of a full tensor, laid out like a parameter; no communication."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
