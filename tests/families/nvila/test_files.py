"""Every golden file is compared with somewhere; a table nobody reads would pass silently."""

from __future__ import annotations

import fnmatch

import pytest

from tests.families.golden import golden_cases, golden_files
from tests.families.nvila.cases import FAMILY, cases_with, folders

READ = {
    "options.json": "cases: rows, requests, limits",
    "expected.json": "test_text, test_stages",
    "expected.safetensors": "test_text, test_stages",
    "inputs.safetensors": "test_media_are_read_as_the_original_read_them",
    "data/*": "cases: rows and media",
    "model/*": "cases, test_weights",
    "llm_resized_rows.safetensors": "cases: rows the original drew at random",
    "label_table.json": "test_text",
    "label_table_sync_506b9ad.json": "test_text",
    "tiling_table.json": "test_text",
    "trainable_grid.json": "test_grid",
    "encoder_variants.json": "skipped below",
    "encoder_variants.safetensors": "skipped below",
    "soft_cross_entropy.json": "skipped below",
    "soft_cross_entropy.safetensors": "skipped below",
}
"""Pattern of a file within a sub-case, and who reads it."""


@pytest.mark.parametrize("case", golden_cases(FAMILY), ids=lambda case: case.name)
def test_every_file_of_a_case_is_known(case):
    unknown = []
    for file in golden_files(case):
        owners = [folder for folder in folders() if (case / file).is_relative_to(folder)]
        inside = str((case / file).relative_to(owners[0])) if owners else file
        if not any(fnmatch.fnmatchcase(inside, pattern) for pattern in READ):
            unknown.append(file)
    assert not unknown


@cases_with("encoder_variants.json")
def test_other_token_encoders(case):
    pytest.skip("released models and the guide use the basic encoders; a checkpoint with another one is refused")


@cases_with("soft_cross_entropy.json")
def test_time_token_loss(case):
    pytest.skip("only the original's video stage has time tokens; a checkpoint with them is refused")
