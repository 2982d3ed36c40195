"""Judge the facts of a machine: what is fine, what limits it, what is broken and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from packaging.requirements import Requirement

from vidtune.commands.machine import Machine

Level = Literal["ok", "warning", "broken"]
REINSTALL = "run `make venv`, or `pip install -r requirements.lock`"


@dataclass(frozen=True)
class Finding:
    """One row of the report; ``remedy`` says what to do unless the level is ok."""

    subject: str
    found: str
    level: Level = "ok"
    remedy: str = ""


def check_machine(machine: Machine) -> list[Finding]:
    """All findings, in the order in which they are worth reading."""
    return [
        _python(machine),
        *_packages(machine),
        _torch_pair(machine),
        *_gpus(machine),
        _flash_attention(machine),
        _cpu_operators(machine),
        _ram(machine),
        _disk(machine),
    ]


def _python(machine: Machine) -> Finding:
    found = ".".join(map(str, machine.python))
    if (3, 11) <= machine.python[:2] < (3, 13):
        return Finding("Python", found)
    return Finding(
        "Python", found, "broken", "vidtune needs Python 3.11 or 3.12; `make venv PYTHON=/path/to/python3.11`"
    )


def _packages(machine: Machine) -> list[Finding]:
    """One row for all that fit, one for each that does not.

    A requirement that is limited to some platforms has a substitute elsewhere, so it is never more than a warning.
    """
    fitting, findings = [], []
    for requirement in map(Requirement, machine.requirements):
        if requirement.marker is not None and not requirement.marker.evaluate(dict(machine.markers)):
            continue
        name, version = requirement.name, machine.versions.get(requirement.name)
        level: Level = "broken" if requirement.marker is None else "warning"
        if version is None:
            findings.append(Finding(name, "missing", level, REINSTALL))
        elif not requirement.specifier.contains(version, prereleases=True):
            findings.append(Finding(name, f"{version}, expected {requirement.specifier}", level, REINSTALL))
        elif name in machine.import_errors:
            found = f"{version}, but its import fails: {machine.import_errors[name]}"
            findings.append(Finding(name, found, level, REINSTALL))
        else:
            fitting.append(f"{name} {version}")
    return [Finding("packages", ", ".join(fitting) or "none"), *findings]


def _torch_pair(machine: Machine) -> Finding:
    torch, vision = machine.versions.get("torch"), machine.versions.get("torchvision")
    if torch is None or vision is None:
        return Finding("torch + torchvision", "not both installed", "broken", REINSTALL)
    if machine.torch_wanted and not Requirement(machine.torch_wanted).specifier.contains(torch, prereleases=True):
        found = f"torchvision {vision} was built for {machine.torch_wanted}, found torch {torch}"
        return Finding("torch + torchvision", found, "broken", f"install the pair together: {REINSTALL}")
    return Finding("torch + torchvision", "a pair")


def _gpus(machine: Machine) -> list[Finding]:
    if not machine.gpus:
        if not machine.nvidia_driver:
            return [Finding("GPU", "none; the default model and the tiny variants train on the CPU")]
        reason = f"torch (built for CUDA {machine.torch_cuda})" if machine.torch_cuda else "torch, a CPU build,"
        remedy = (
            "update the NVIDIA driver, or check CUDA_VISIBLE_DEVICES and the container's GPU options"
            if machine.torch_cuda
            else f"install torch with CUDA: {REINSTALL}"
        )
        return [Finding("GPU", f"nvidia-smi is here, but {reason} sees no device", "broken", remedy)]
    findings = []
    for index, gpu in enumerate(machine.gpus):
        found = f"{gpu.name}, {gpu.memory_gb:.1f} GB, {'bf16' if gpu.bf16 else 'no bf16'}"
        if gpu.bf16:
            findings.append(Finding(f"GPU {index}", found))
        else:
            findings.append(Finding(f"GPU {index}", found, "warning", "train in fp16 with loss scaling, or in fp32"))
    return findings


def _flash_attention(machine: Machine) -> Finding:
    return Finding("flash-attn", machine.flash_attn or "not installed; torch's own attention serves")


def _cpu_operators(machine: Machine) -> Finding:
    subject = "DeepSpeed CPU ops"
    if "deepspeed" not in machine.versions:
        return Finding(subject, "no DeepSpeed here; single, ddp and fsdp remain")
    needs = {
        "a C++ compiler (package g++)": machine.compiler is not None,
        "ninja (`pip install ninja`)": machine.ninja,
        "Python's headers (package python3-dev)": machine.python_headers,
    }
    missing = [need for need, met in needs.items() if not met]
    if missing:
        found = "cannot be built, so the offload strategies cannot run"
        return Finding(subject, found, "warning", f"install {', '.join(missing)}")
    return Finding(subject, f"can be built with {machine.compiler}")


def _ram(machine: Machine) -> Finding:
    found = "unknown" if machine.ram_gb is None else f"{machine.ram_gb:.0f} GB"
    return Finding("RAM", f"{found}, {machine.cores} cores")


def _disk(machine: Machine) -> Finding:
    if machine.disk_free_gb is None:
        return Finding("disk", "unknown")
    found = f"{machine.disk_free_gb:.0f} GB free here"
    if machine.disk_free_gb < 5:
        return Finding("disk", found, "warning", "free some: a checkpoint is written before an older one is removed")
    return Finding("disk", found)
