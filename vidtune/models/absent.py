"""Networks without one of their roles: built and checked like any other, without its weights in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from torch import nn

from vidtune.models.base import VideoLLM


class Absent(nn.Module):
    """Stands where a role would be that this run does not need.

    Args:
        role: its name.
    """

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises:
        AttributeError: the role was needed after all.
        """
        raise AttributeError(self._explain())

    def __getattr__(self, name: str) -> Any:
        """Families look at their towers before they call them."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(self._explain()) from error

    def _explain(self) -> str:
        return (
            f"the role {self.__dict__['role']!r} was not loaded: when this run started, the feature cache held all "
            f"that is needed of it. A file in the cache or a medium has changed since; start again."
        )


def hollow(network: VideoLLM, roles: Iterable[str]) -> None:
    """Give up the memory of roles before the weights are loaded.

    Their tensors go to the meta device: names and shapes stay, so that loaders and tuning policies check them as ever,
    and what is copied into them is dropped unread. ``remove`` must follow before the network is moved or run.
    """
    for role in roles:
        getattr(network, role).to("meta")


def remove(network: VideoLLM, roles: Iterable[str]) -> None:
    """Put an ``Absent`` in the place of hollow roles."""
    for role in roles:
        setattr(network, role, Absent(role))
