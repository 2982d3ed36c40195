"""Configurations of the verbs that ask a model about videos of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtune.checkpoint.locate import find_checkpoint
from vidtune.config import resolvers, schema
from vidtune.contracts import UserError
from vidtune.run.answerer import Answerer, load_answerer
from vidtune.run.build import build_processor, prepare
from vidtune.run.checks import check_config
from vidtune.run.logs import start_logging
from vidtune.run.recipe import with_recipe

CONF = Path(__file__).parents[2] / "conf"


def open_model(
    run: str | None, overrides: Sequence[str] = (), checkpoint: str = "best", adapter: str | None = None
) -> Answerer:
    """A model for questions outside of any data set.

    Args:
        run: run folder; None for the model that the overrides name, as published.
        overrides: Hydra's (``model=aria``, ``data.num_frames=16``); they win over the recipe of the run.
        checkpoint: of the run: ``best``, ``last`` or ``step_000200``.
        adapter: PEFT folder, without a run.

    Raises:
        UserError: no such run, checkpoint or adapter; an override that is none; weights that are not there.
    """
    if run and adapter:
        raise UserError("--run and --adapter exclude each other: a run brings its own trained weights.")
    file = None
    cfg = compose_config(overrides)
    if run:
        cfg = with_recipe(cfg, Path(run), overrides)
        file = find_checkpoint(Path(run), checkpoint)
    # The data set of the recipe lends its sampling; it is not read, so it need not be here.
    OmegaConf.update(cfg, "data.prepare", None)
    if OmegaConf.is_missing(cfg.data, "root"):
        cfg.data.root = ""
    check_config(cfg)
    start_logging()
    prepare(cfg)
    return load_answerer(cfg, build_processor(cfg), file, adapter)


def compose_config(overrides: Sequence[str], name: str = "evaluate") -> DictConfig:
    """A configuration as ``train.py`` or ``evaluate.py`` composes it from the same words.

    Args:
        name: ``train`` or ``evaluate``.

    Raises:
        UserError: an override that is none.
    """
    schema.register()
    resolvers.register()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(" ".join(str(error).split())) from error
