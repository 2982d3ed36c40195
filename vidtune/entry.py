"""Entry points: composition by Hydra, one clear message for every user's mistake, exit codes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vidtune.config import resolvers, schema
from vidtune.contracts import UserError
from vidtune.run.sweep import sweep

Task = Callable[[DictConfig, Sequence[str]], dict[str, float]]


def run_task(task: Task, config_path: str, config_name: str) -> dict[str, float] | None:
    """Compose the configuration from the command line and run the task.

    Mistakes of the user are printed without a traceback and exit with code 1; a defect of vidtune keeps its traceback.
    """
    schema.register()
    resolvers.register()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises its errors instead of printing them
    result: list[dict[str, float]] = []

    @hydra.main(version_base="1.3", config_path=config_path, config_name=config_name)
    def main(cfg: DictConfig) -> None:
        result.append(task(cfg, list(HydraConfig.get().overrides.task)))

    try:
        if config_name == "train" and (sweeping := _swept_overrides(sys.argv[1:])):
            raise SystemExit(sweep(sys.argv[0], sweeping))
        main()
    except UserError as error:
        _fail(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        root = schema.TrainConfig if config_name == "train" else schema.EvaluateConfig
        _fail(_explain(error, root, Path(config_path)))
    return result[0] if result else None


def _swept_overrides(arguments: Sequence[str]) -> list[str]:
    """The overrides of a multirun that is ours to run; one with a launcher or sweeper of its own is Hydra's."""
    flags = {"-m", "--multirun"}
    if not flags & set(arguments) or any(a.startswith(("hydra/launcher=", "hydra/sweeper=")) for a in arguments):
        return []
    return [argument for argument in arguments if argument not in flags]


def _fail(message: str) -> None:
    print(f"vidtune: error: {message}", file=sys.stderr)
    raise SystemExit(1)


def _explain(error: Exception, root: type, conf: Path) -> str:
    """Hydra's message in one piece, and the nearest valid key where one was mistyped."""
    causes, current = [], error
    while current is not None:
        if isinstance(current, UserError):  # raised while Hydra built an object
            return str(current)
        causes.append(" ".join(str(current).split()))
        current = current.__cause__  # type: ignore[assignment]
    message = max(causes, key=lambda text: "Key '" in text) if causes else str(error)
    if found := re.search(r"Key '([^']+)' (?:is )?not in", message):
        near = get_close_matches(found[1], _known_keys(root, conf), n=1)
        if near:
            message += f" Did you mean {near[0]!r}?"
    if found := re.search(r"Missing mandatory value: (\S+)", message):
        message = f"{found[1]} is not set; set {found[1]}=... on the command line."
    return message


def _known_keys(root: type, conf: Path) -> set[str]:
    """Names of the schema, and of everything that a file in ``conf`` sets."""
    names = set(_keys(root))
    for file in conf.rglob("*.yaml"):
        names.update(re.findall(r"(?:^|[\s{])(\w+):(?=\s)", file.read_text()))
    return names


def _keys(node: type) -> list[str]:
    """Names of all keys below a schema class, dotted, and by their last component."""
    names: list[str] = []
    hints: dict[str, Any] = get_type_hints(node)
    for field in fields(node):
        names.append(field.name)
        if is_dataclass(hints[field.name]):
            names += _keys(hints[field.name])
    return names
