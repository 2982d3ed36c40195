"""Weights that are spread over processes: cut as they are read, so that no process ever holds them all.

Under ZeRO-3 and FSDP a network is constructed on the meta device (``weights_on_meta``), and every weight is told how
this process cuts its part out of a whole tensor (``defer``). Loaders write through ``write_whole``, which keeps the
part. Policies and adapters then see names, shapes and dtypes. At last the strategy gives the weights room, one layer or
tensor at a time (``make_room``, ``place_one_by_one``), and puts the parts there (``take_parts``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Cut = Callable[[Tensor], Tensor]
"""Whole tensor -> this process's part of it."""


@contextmanager
def weights_on_meta() -> Iterator[None]:
    """Parameters that modules register while this is open have shape and dtype, but no memory; buffers are real.

    Each is made in host memory by its module and let go at once. ``torch.device("meta")`` would lose the tables that
    constructors compute into buffers.
    """
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: Any) -> None:
        if parameter is not None and not parameter.is_meta:
            # The same one again where the same tensor is registered again: tied weights stay tied.
            if not hasattr(parameter, "on_meta"):
                parameter.on_meta = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
            parameter = parameter.on_meta
        register(module, name, parameter)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def defer(network: nn.Module, cut: Cut, absent: Collection[str] = ()) -> None:
    """Say how this process cuts its part out of every weight on the meta device.

    Args:
        absent: roles that stay empty.
    """
    for name, parameter in network.named_parameters():
        if parameter.is_meta and name.split(".")[0] not in absent:
            weight: Any = parameter
            weight.cut, weight.part = cut, None


def write_whole(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a weight or buffer, cast to its dtype; of a deferred one this process's part is kept."""
    if (cut := getattr(target, "cut", None)) is None:
        target.copy_(value)
    else:
        weight: Any = target
        # A copy: a view would keep the whole tensor alive.
        weight.part = cut(value).to(target.dtype, copy=True)


def unwritten(network: nn.Module) -> list[str]:
    """Deferred weights that nothing was written to."""
    return [name for name, parameter in network.named_parameters() if getattr(parameter, "part", parameter) is None]


@contextmanager
def held_whole(module: nn.Module) -> Iterator[None]:
    """Deferred weights of a small module in host memory, uninitialised, to be written by hand; cut when it ends."""
    deferred = {place: parameter for place, parameter in _places(module) if hasattr(parameter, "cut")}
    make_room(module)
    yield
    with torch.no_grad():
        for (owner, name), parameter in deferred.items():
            write_whole(parameter, owner._parameters[name])  # type: ignore[arg-type]
            owner._parameters[name] = parameter


def take_parts(network: nn.Module) -> dict[str, Tensor]:
    """The parts of the deferred weights, by name."""
    deferred: list[tuple[str, Any]] = [(n, p) for n, p in network.named_parameters() if hasattr(p, "part")]
    return {name: parameter.part for name, parameter in deferred}


def make_room(module: nn.Module, device: torch.device | str = "cpu") -> None:
    """Put an uninitialised parameter in the place of every deferred one.

    Uninitialised host memory takes none until it is written; the strategy cuts it at once.
    """
    made: dict[int, nn.Parameter] = {}
    for (owner, name), parameter in _places(module):
        if hasattr(parameter, "cut"):
            if id(parameter) not in made:
                room = torch.empty_like(parameter, device=device)
                made[id(parameter)] = nn.Parameter(room, parameter.requires_grad)
            owner._parameters[name] = made[id(parameter)]


def place_one_by_one(network: nn.Module, device: torch.device | str) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter by name on a device, deferred ones uninitialised; the caller shrinks one before it takes the
    next."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for place, parameter in _places(network):
        places.setdefault(id(parameter), []).append(place)
    for name, parameter in list(network.named_parameters()):
        if hasattr(parameter, "cut"):
            held_at = places[id(parameter)]
            parameter = nn.Parameter(torch.empty_like(parameter, device=device), parameter.requires_grad)
            for owner, leaf in held_at:
                owner._parameters[leaf] = parameter
        else:
            parameter.data = parameter.data.to(device)
        yield name, parameter


def is_sharded(network: nn.Module) -> bool:
    """Whether a forward has to gather weights, so that all processes must run the same number of them."""
    return any(hasattr(parameter, "ds_id") or isinstance(parameter, DTensor) for parameter in network.parameters())


def _places(module: nn.Module) -> list[tuple[tuple[nn.Module, str], nn.Parameter]]:
    """Every (module, name) that holds a parameter, tied ones as often as they are held."""
    return [
        ((owner, name), parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None
    ]
