"""The files that make an environment agree with each other: pyproject.toml, environment.yml, requirements.lock."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LINUX = {
    "sys_platform": "linux",
    "platform_machine": "x86_64",
    "python_version": "3.11",
    "python_full_version": "3.11.9",
}
MAC = {"sys_platform": "darwin", "platform_machine": "arm64", "python_version": "3.11", "python_full_version": "3.11.9"}


def declared() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return project["project"]["dependencies"] + project["dependency-groups"]["dev"]


def pins(platform: dict[str, str]) -> dict[str, str]:
    """Name -> version of the lock on one platform."""
    lines = (line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#"))
    found = {}
    for requirement in map(Requirement, lines):
        (exact,) = requirement.specifier
        assert exact.operator == "==", f"{requirement} is not pinned"
        if requirement.marker is None or requirement.marker.evaluate(platform):
            found[canonicalize_name(requirement.name)] = exact.version
    return found


def test_conda_users_get_the_same_packages_as_pip_users():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip_section,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    assert pip_section == declared()
    assert "python=3.11" in dependencies


@pytest.mark.parametrize("platform", [LINUX, MAC], ids=["linux", "mac"])
def test_the_lock_pins_every_declared_package_within_its_range(platform):
    locked = pins(platform)
    for requirement in map(Requirement, declared()):
        if requirement.marker is None or requirement.marker.evaluate(platform):
            name = canonicalize_name(requirement.name)
            assert name in locked, f"{name} is not in requirements.lock; run `make lock`"
            assert requirement.specifier.contains(locked[name]), f"{name} {locked[name]}; run `make lock`"


def test_torchvision_fits_torch_and_linux_wheels_stay_off_other_platforms():
    locked = pins(LINUX)
    torch_minor, vision_minor = (int(locked[name].split(".")[1]) for name in ("torch", "torchvision"))
    assert vision_minor == torch_minor + 15, "torchvision 0.(n + 15) belongs to torch 2.n"
    assert {"decord", "deepspeed", "bitsandbytes"} <= locked.keys()
    assert not {"decord", "deepspeed", "bitsandbytes", "triton", "nvidia-cudnn-cu13"} & pins(MAC).keys()


@pytest.mark.parametrize(
    "name", ["requirements.lock", "environment.yml", "Makefile", ".pre-commit-config.yaml", ".ci/run"]
)
def test_no_file_ties_the_installation_to_a_package_index_or_machine(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|(^|[\s=\"'])/(home|root|tmp|work|opt)/", text)


def test_pre_commit_fetches_nothing():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert {hook["id"] for hook in repos[0]["hooks"]} == {"ruff", "ruff-format", "nbstripout"}
    assert {hook["language"] for hook in repos[0]["hooks"]} == {"system"}


@pytest.fixture
def clone(tmp_path) -> Path:
    """The files of a clone with a finished environment that only records what it is asked to run."""
    root = tmp_path / "work tree" / "clone"
    (root / ".ci").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml", ".ci/run"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    (root / ".ci/run").chmod(0o755)
    (root / ".venv/bin").mkdir(parents=True)
    python = root / ".venv/bin/python"
    python.write_text('#!/bin/sh\necho "python $*" "golden=$VIDTUNE_GOLDEN" >> calls\n')
    python.chmod(0o755)
    (root / ".venv/.installed").touch()
    for name in ("requirements.lock", "pyproject.toml"):
        os.utime(root / name, (0, 0))
    return root


def calls(clone: Path, *command: str) -> list[str]:
    # Nor what a `make test-all PYTEST_ARGS=...` that runs this test hands to a make below it.
    without = {"VIDTUNE_GOLDEN", "PYTEST_ARGS", "MAKEFLAGS", "MFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in without}
    subprocess.run(command, cwd=clone, env=environment, check=True, capture_output=True, timeout=60)
    return (clone / "calls").read_text().splitlines()


def test_make_demo_evaluates_the_run_it_trained_and_installs_nothing_twice(clone):
    assert calls(clone, "make", "demo") == [
        "python train.py run_name=demo golden=",
        "python evaluate.py run=runs/demo golden=",
    ]


def test_ci_hands_all_parity_fixtures_to_make_test_where_they_lie_beside_the_clone(clone):
    assert calls(clone, ".ci/run") == ["python -m pytest -m not slow -n 2 --dist loadfile golden="]
    golden = clone.parent / "shared/golden"
    golden.mkdir(parents=True)
    assert calls(clone, ".ci/run")[1:] == [f"python -m pytest -m not slow -n 2 --dist loadfile golden={golden}"]


def test_an_unfit_python_is_refused_before_anything_is_installed(clone):
    (clone / ".venv/.installed").unlink()
    old = clone / "old-python"
    old.write_text("#!/bin/sh\necho found Python 3.8, expected 3.11 or 3.12 >&2\nexit 1\n")
    old.chmod(0o755)
    result = subprocess.run(
        ["make", "venv", "PYTHON=./old-python"], cwd=clone, capture_output=True, text=True, timeout=60
    )
    assert result.returncode != 0 and "expected 3.11 or 3.12" in result.stderr
    assert not (clone / "calls").exists() and not (clone / ".venv/.installed").exists()
