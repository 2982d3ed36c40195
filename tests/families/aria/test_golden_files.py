"""No golden file goes unread unseen; the tables that concern no stage of the network."""

from __future__ import annotations

import fnmatch
from functools import partial

import pytest
import torch

from tests.families.aria.case import CASES, Case, tables
from tests.families.golden import golden_files
from vidtune.contracts import UserError
from vidtune.training.schedules import cosine

COMPARED = (
    "config.json",
    "model.safetensors",
    "training_revision_names.json",
    "tokenizer/*",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "inputs/*.jsonl",
    "inputs/clips.safetensors",
    "inputs/images/*.png",
    "expected/*/facts.json",
    *(f"expected/*/{stage}.safetensors" for stage in ("collate", "pixels", "vision", "projector", "lm", "lora_lm")),
    "expected/*/generate.safetensors",
    "expected/*/preprocessed_*.png",
    "expected/*/train_full.json",
    "expected/*/train_lora.json",
    *(f"tables/{name}.json" for name in ("frame_indices", "lora_targets", "lora_full_size", "position_ids", "resize")),
    *(f"tables/{name}.json" for name in ("schedule", "split", "untouched_original", "weight_decay_full_recipe")),
)
ELSEWHERE = (
    "tables/answers.json",  # tests/unit/text/test_answers.py
    "tables/mixing.json",  # data mixtures
    "inputs/nextqa_official.csv",  # preparation of NExT-QA
)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.root.name) for case in CASES])
def test_every_file_of_every_case_is_known(case: Case) -> None:
    unknown = [
        name
        for name in golden_files(case.root)
        if not any(fnmatch.fnmatch(name, pattern) for pattern in (*COMPARED, *ELSEWHERE))
    ]
    assert not unknown, f"{case.root}: no test reads {unknown}"


@pytest.mark.parametrize("case, table", tables("schedule"))
def test_learning_rates_of_both_recipes_step_by_step(case: Case, table: list[dict]) -> None:
    for recipe in table:
        factor = partial(
            cosine, total_steps=recipe["optimizer_steps"], warmup_steps=recipe["warmup_steps"], min_ratio=0.0
        )
        for step, rate in recipe["lr_of_step_index"].items():
            assert recipe["learning_rate"] * factor(int(step)) == pytest.approx(rate, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("case, table", tables("untouched_original"))
def test_where_the_published_collator_stops_we_train_or_say_why(case: Case, table: list[dict]) -> None:
    """As published it ignores a size of 490, cuts rows inside images and rounds pixels to bfloat16."""
    for entry in table:
        run = next(name for name in case.runs("train") if case.config["runs"][name]["rows"] == entry["rows"])
        options = {"max_image_size": entry["size"], "max_length": entry["max_seq_length"]}
        images, tokens = entry["pixel_values_shape"][0], {490: 128, 980: 256}[entry["size"]]
        if entry["image_tokens"] < images * tokens:
            with pytest.raises(UserError, match=f"max_length is {entry['max_seq_length']}"):
                case.rows(run, **options)
            continue
        rows = case.rows(run, **options)
        assert sum(len(row.encoded.visual_positions) for row in rows) == entry["image_tokens"]
        sides = {item.tensors["pixel_values"].shape[-1] for row in rows for item in row.items}
        assert sides == {entry["size"]}, "the configured size must be the real one"
        if "loss" in entry:
            padded = case.pad(rows)
            for item in padded.batch.media:
                item.tensors["pixel_values"] = item.tensors["pixel_values"].bfloat16()
            with torch.no_grad():
                loss = case.network()(padded.batch).nll.mean()
            assert float(loss) == pytest.approx(entry["loss"], abs=1e-5)
