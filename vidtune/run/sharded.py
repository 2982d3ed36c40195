"""Evaluation of a model that no device holds alone: every process has a share of the weights, and all ask together."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vidtune.models.shards import Cut
from vidtune.training.fsdp import cut_rows, shard_layers
from vidtune.training.strategies import shards_weights


def asks_together(cfg: DictConfig) -> bool:
    """Whether the processes share one copy of the weights: all then ask the same questions in step, and the first
    writes the answers. Otherwise each has a copy and its share of the questions."""
    return shards_weights(cfg.strategy) and dist.is_initialized() and dist.get_world_size() > 1


def cut_for_processes() -> Cut:
    """How this process cuts its share out of a whole tensor."""
    return partial(cut_rows, rank=dist.get_rank(), world_size=dist.get_world_size())


def shard_over_processes(network: nn.Module, device: torch.device) -> None:
    """Give a network whose weights were deferred its share of them on this process's device."""
    shard_layers(network, _mesh(device), device)


def _mesh(device: torch.device) -> DeviceMesh:
    if device.type == "cpu":
        return init_device_mesh("cpu", (dist.get_world_size(),))
    torch.cuda.set_device(device)
    # The processes of an evaluation talk through gloo; weights need what moves them between GPUs.
    group = dist.new_group(backend="nccl")
    assert isinstance(group, dist.ProcessGroup)
    return DeviceMesh.from_group(group, device.type)
