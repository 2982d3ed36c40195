"""`vidtune doctor`: what this machine has, what is broken, what could be trained here.

Imports neither torch nor the contracts, so that it can say that torch is broken.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vidtune.commands.machine import Machine, describe_system, read_machine
from vidtune.commands.machine_checks import Finding, check_machine
from vidtune.commands.memory_plan import FACTS_FILE, load_model_memory, plan

_STYLES = {"ok": "green", "warning": "yellow", "broken": "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb has no options: it looks at this machine and the working directory's disk."""


def run(arguments: argparse.Namespace) -> int:
    return run_doctor()


def run_doctor(machine: Machine | None = None, console: Console | None = None) -> int:
    """Print the report.

    Args:
        machine: facts to judge; those of this machine by default.
        console: where to print; stdout by default.

    Returns:
        1 if something is broken, else 0; a warning limits what can run but breaks nothing.
    """
    console = console or Console()
    machine = machine or read_machine()
    findings = check_machine(machine)
    console.print(_findings_table(findings))
    if FACTS_FILE.is_file():
        _print_plan(machine, console)
    broken = [finding for finding in findings if finding.level == "broken"]
    for finding in broken:
        console.print(f"[bold red]broken[/] {escape(f'{finding.subject}: {finding.found}. {finding.remedy}')}")
    if not broken:
        console.print("Nothing is broken: `python train.py` trains the default model here.")
    return 1 if broken else 0


def _findings_table(findings: list[Finding]) -> Table:
    table = Table(title=f"This machine ({describe_system()})", title_justify="left")
    for column in ("", "found", "state", "remedy"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        state = f"[{_STYLES[finding.level]}]{finding.level}[/]"
        table.add_row(finding.subject, escape(finding.found), state, escape(finding.remedy))
    return table


def _print_plan(machine: Machine, console: Console) -> None:
    models = load_model_memory()
    if not machine.gpus:
        sizes = ", ".join(f"{model.name} {model.weights_gb:g}" for model in models)
        console.print(f"The families at real size need a GPU (weights in GB, bf16: {sizes}).")
        console.print("The default model and every <family>_tiny train on this CPU, on one process or several.")
        return
    table = Table(title="Most thorough tuning that should fit, GB per GPU (estimate)", title_justify="left")
    for column in ("strategy", *(model.name for model in models)):
        table.add_column(column, overflow="fold")
    for row in plan(models, machine):
        table.add_row(*row)
    console.print(table)
    for model in models:
        if model.note:
            console.print(f"{model.name}: {escape(model.note)}")
