"""Imports point one way, and shared code never names a family: what keeps the rooms small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vidtune"
FAMILIES = sorted(path.name for path in (PACKAGE / "models").iterdir() if (path / "network.py").is_file())

ALLOWED = {
    "contracts": set(),
    "config": {"contracts"},
    "text": {"contracts"},
    "media": {"contracts"},
    "models": {"contracts", "media", "text"},
    "data": {"contracts", "media", "text"},
    "tuning": {"contracts", "models"},
    "checkpoint": {"contracts", "models", "tuning"},
    "training": {"contracts", "config", "text", "models", "data", "tuning", "checkpoint", "media"},
    "evaluation": {"contracts", "text", "media", "models", "data"},
    "analysis": {"contracts", "evaluation"},
    "run": {
        "contracts", "config", "text", "media", "models", "data", "tuning", "checkpoint", "training", "evaluation",
        "analysis",
    },
    "entry": {"contracts", "config", "run"},
    "commands": {
        "contracts", "config", "text", "media", "models", "data", "tuning", "checkpoint", "training", "evaluation",
        "analysis", "run", "entry",
    },
}  # fmt: skip


NAMED_BY_USERS = {"data/mixing.py"}
"""``data.mixing=aria`` means the mixing rule of that original, on any model: the names are values that users type."""


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name for name in names if name.startswith("vidtune")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_to_the_right_only(path: Path) -> None:
    own = room(path)
    for name in imports(path):
        parts = name.split(".")
        if len(parts) > 1 and parts[1] != own:
            assert parts[1] in ALLOWED[own], f"{own} must not import {parts[1]}"


def test_no_family_imports_another() -> None:
    for family in FAMILIES:
        for path in (PACKAGE / "models" / family).rglob("*.py"):
            others = [
                name for name in imports(path) for other in FAMILIES if f"models.{other}" in name and other != family
            ]
            assert not others, f"{path}: {others}"


def test_shared_code_names_no_family() -> None:
    names = [family for family in FAMILIES if family != "tiny"]
    for path in modules():
        relative = path.relative_to(PACKAGE)
        if relative.parts[:2] in {("models", family) for family in FAMILIES} or str(relative) in NAMED_BY_USERS:
            continue
        strings = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        code = [s for s in strings if isinstance(s, str) and s.strip() in names]
        assert not code, f"{path}: {code}"
