"""What this machine is and has installed, as plain facts; nothing here judges them.

No import of torch or another dependency at the top: a broken one is a fact to report.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

IMPORT_PROBES = ("torch", "torchvision", "av", "decord")
"""Packages that are often installed and yet broken, since they bring shared libraries that must fit each other."""


@dataclass(frozen=True)
class Gpu:
    """One CUDA device; memory in GB (1e9 bytes)."""

    name: str
    memory_gb: float
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """Facts about one machine; sizes in GB (1e9 bytes), ``None`` where unknown.

    Args:
        markers: the environment that requirement markers are evaluated in (``sys_platform``, ...).
        requirements: what pyproject.toml asks for, as written there.
        versions: installed version of each package that is asked for; a missing one has no entry.
        import_errors: packages of ``IMPORT_PROBES`` that are installed but cannot be imported, with the reason.
        torch_wanted: what the installed torchvision asks of torch, e.g. ``torch==2.12.1``.
        torch_cuda: CUDA version torch was built for.
        nvidia_driver: whether the driver's tools are here, whatever torch thinks of the GPUs.
        compiler, ninja, python_headers: what building DeepSpeed's CPU operators takes.
    """

    python: tuple[int, int, int]
    markers: Mapping[str, str]
    requirements: tuple[str, ...]
    versions: Mapping[str, str]
    import_errors: Mapping[str, str] = field(default_factory=dict)
    torch_wanted: str | None = None
    torch_cuda: str | None = None
    nvidia_driver: bool = False
    gpus: tuple[Gpu, ...] = ()
    flash_attn: str | None = None
    compiler: str | None = None
    ninja: bool = False
    python_headers: bool = False
    cores: int = 1
    ram_gb: float | None = None
    disk_free_gb: float | None = None


def read_machine() -> Machine:
    """Look at the machine this process runs on; the disk is that of the working directory."""
    from packaging.markers import default_environment
    from packaging.requirements import Requirement

    requirements = _requirements()
    names = [Requirement(text).name for text in requirements]
    versions = {name: version for name in names if (version := _version(name)) is not None}
    imported: dict[str, Any] = {}
    import_errors: dict[str, str] = {}
    for name in IMPORT_PROBES:
        if name in versions:
            try:
                imported[name] = importlib.import_module(name)
            except Exception as error:  # a damaged binary package may raise anything
                import_errors[name] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    torch = imported.get("torch")
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return Machine(
        python=sys.version_info[:3],
        markers={name: str(value) for name, value in default_environment().items()},
        requirements=requirements,
        versions=versions,
        import_errors=import_errors,
        torch_wanted=_torch_wanted(),
        torch_cuda=torch.version.cuda if torch else None,
        nvidia_driver=shutil.which("nvidia-smi") is not None,
        gpus=_gpus(torch) if torch else (),
        flash_attn=_version("flash-attn"),
        compiler=shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++"),
        ninja=shutil.which("ninja") is not None or importlib.util.find_spec("ninja") is not None,
        python_headers=headers.exists(),
        cores=os.cpu_count() or 1,
        ram_gb=_ram_gb(),
        disk_free_gb=shutil.disk_usage(Path.cwd()).free / 1e9,
    )


def describe_system() -> str:
    return f"{platform.system()} {platform.machine()}"


def _requirements() -> tuple[str, ...]:
    """From the checkout if this is one (an editable installation may have older metadata), else as installed."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        return tuple(tomllib.loads(project.read_text())["project"]["dependencies"])
    return tuple(metadata.requires("vidtune") or ())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch_wanted() -> str | None:
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("torchvision") or ()]
    except metadata.PackageNotFoundError:
        return None
    return next((f"torch{requirement.specifier}" for requirement in wanted if requirement.name == "torch"), None)


def _gpus(torch: Any) -> tuple[Gpu, ...]:
    if not torch.cuda.is_available():
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        # Compute capability 8.0 (Ampere) is the first with bf16 units; torch calls the slow emulation supported too.
        found.append(Gpu(properties.name, properties.total_memory / 1e9, properties.major >= 8))
    return tuple(found)


def _ram_gb() -> float | None:
    """Physical memory, or the limit of the container where that is lower."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return total / 1e9
