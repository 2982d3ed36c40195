"""Every YAML on disk composes, and what it instantiates takes the keys it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.helpers import ROOT, config
from vidtune.run.checks import bind_faults

CONF = ROOT / "conf"
FILES = sorted(str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml"))
ROOTS = {"train.yaml", "evaluate.yaml"}


def overrides_for(file: str) -> list[str]:
    group, _, name = file.removesuffix(".yaml").rpartition("/")
    if group == "suits":
        return [f"model={name}"]
    return [f"{group}={name}"] if not group.startswith("hydra") else []


@pytest.mark.parametrize("file", [name for name in FILES if name not in ROOTS])
def test_every_choice_composes_and_binds_its_targets(file: str) -> None:
    overrides = overrides_for(file)
    if not overrides:
        pytest.skip("Hydra's own group: composed with every other file")
    cfg = config("train", [*overrides, "++data.root=somewhere", "++model.path=somewhere"])
    assert bind_faults(cfg) == []


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_the_defaults_compose(name: str) -> None:
    cfg = config(name)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert bind_faults(cfg) == []


@pytest.mark.parametrize("model", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
@pytest.mark.parametrize("data", ["shapes", "folder"])
def test_any_model_goes_with_any_data(model: str, data: str) -> None:
    cfg = config("train", [f"model={model}", f"data={data}", "data.root=somewhere", "++model.path=somewhere"])
    assert bind_faults(cfg) == []
    assert OmegaConf.to_container(cfg, resolve=True)["model"]["processor"]["max_length"] == cfg.model.max_length


@pytest.mark.parametrize("model", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_videos_that_are_too_short_are_filled_as_one_key_says_in_every_model(model: str) -> None:
    words = [f"model={model}", "++data.root=somewhere", "++model.path=somewhere"]
    assert config("train", words).model.processor.short is None  # as each original
    assert config("train", [*words, "media.short=loop"]).model.processor.short == "loop"


def test_every_yaml_on_disk_was_checked() -> None:
    checked = {file for file in FILES if file in ROOTS or overrides_for(file)} | {
        file for file in FILES if file.startswith("hydra/")
    }
    assert checked == {str(path.relative_to(CONF)) for path in Path(CONF).rglob("*.yaml")}
