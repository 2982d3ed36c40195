"""The recipe that ``model=internvideo25`` composes is the one its documentation promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import config


@pytest.fixture(scope="module")
def recipe():
    return config("train", ["model=internvideo25", "model.path=somewhere"])


def test_the_guides_batch_length_and_schedule_are_the_defaults(recipe):
    assert (recipe.global_batch_size, recipe.micro_batch_size, recipe.trainer.epochs) == (8, 1, 3)
    assert (recipe.data.num_frames, recipe.model.max_length, recipe.seed) == (8, 8192, 42)
    assert recipe.batch.reduction == "sample"
    processor = recipe.model.processor
    assert (processor.train_template, processor.infer_template) == ("internvl2_5", "internvl2_5")
    assert recipe.media.short is None


def test_lora_of_rank_16_on_the_language_model_with_a_trained_projector_is_the_default(recipe):
    assert (recipe.tuning.vision.mode, recipe.tuning.connector.mode) == ("frozen", "full")
    language = recipe.tuning.language
    assert (language.mode, language.rank, language.alpha, language.dropout) == ("lora", 16, 32, 0.05)


def test_every_key_the_documentation_names_exists(recipe):
    text = (Path(__file__).parents[3] / "docs/internvideo25.md").read_text(encoding="utf-8")
    keys = {
        "tuning.vision.lr_ratio",
        "model.processor.train_template",
        "model.processor.infer_sampling",
        "model.processor.min_frames",
        "model.processor.clip_frames",
        "trainer.checkpoint_every",
        "hardware.activation_checkpointing",
    }
    for key in keys:
        assert key in text
        node = recipe
        for part in key.split("."):
            assert part in node, key
            node = node[part]
