"""Numbers of the documentation that the code can count: weights by part and by row of the grid, memory, tokens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.tuning_grid import measure
from benchmarks.tuning_rows import PUBLISHED, ROWS, count_parts, count_rows
from tests.helpers import ROOT, config
from vidtune.evaluation.tables import Table
from vidtune.run.checks import check_config

DOCS = (ROOT / "docs/nvila.md").read_text(encoding="utf-8")


def documented(first_column: str) -> list[list[str]]:
    """Cells of the table whose first column has this name."""
    rows = DOCS.split(f"| {first_column} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_weights_of_every_part_are_those_of_the_published_sizes() -> None:
    table = count_parts()
    assert documented("model, full size") == table.shown()
    # Counted apart from this project, see the facts of the family: tower and projectors.
    assert {row[1] + row[2] for row in table.rows} == {413_327_088}
    projectors = {"lite_2b": 43_533_696, "lite_8b": 61_101_440, "lite_15b": 79_782_272, "base_8b": 62_425_088}
    assert {row[0]: row[3] for row in table.rows} == projectors and projectors.keys() == PUBLISHED.keys()


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return count_rows("lite_8b", tmp_path_factory.mktemp("cache"))


def test_weights_that_each_row_of_the_grid_trains_at_full_size(counted: Table) -> None:
    assert documented("tower / language model, lite_8b") == counted.shown()
    assert len(counted.rows) == 10
    # Less than what was measured with activations, but where the tower trains: the study keeps narrower moments.
    for row in counted.rows:
        assert row[-1] is None or row[0].startswith("FT") or row[-2] < row[-1], row[0]


# Millions that the original trains, from the arithmetic of the study's rows at rank 16.
STUDY = {
    "LN / LoRA": 101.6,
    "LoRA / LoRA": 110.2,
    "FT / LoRA": 514.8,
    "F / LoRA": 101.5,
    "FT / F": 474.4,
    "LN / F": 61.2,
}
STUDY |= {"FT / FT": 8087.1, "LN / QLoRA": 101.6, "LoRA / QLoRA": 110.2, "F / QLoRA": 101.5}
# Not run: a layer and the norm after it; two norms of weight and bias; adapters on four projections and two linears.
UNRUN = {"FT": 15_241_808, "LN": 3 * 2 * 1152, "LoRA": 16 * (4 * 2 * 1152 + 2 * (1152 + 4304)), "F": 0}


def test_rows_train_what_the_study_counts_minus_what_is_not_run(counted: Table) -> None:
    assert STUDY.keys() == ROWS.keys()
    for row, vision, _, language, here, original, *_ in counted.rows:
        tower, decoder = row.split(" / ")
        assert original / 1e6 == pytest.approx(STUDY[row], abs=0.05), row
        assert original - here == UNRUN[tower], row
        assert vision + UNRUN[tower] == {"FT": 413_327_088, "LN": 126_720, "LoRA": 8_695_296, "F": 0}[tower]
        assert language == {"FT": 7_612_656_128, "F": 0}.get(decoder, 40_370_176)


def test_the_grid_measures_every_row_and_the_cheap_ones_cost_less(tmp_path: Path) -> None:
    names = ("FT / FT", "LoRA / LoRA", "LN / LoRA", "LN / QLoRA")
    table = measure("tiny", "cpu", 2, tmp_path, names)
    assert [row[0] for row in table.rows] == list(names)
    weights, seconds, kept, checkpoint = (table.column(c.name) for c in table.columns[1:5])
    assert weights[0] > weights[1] > weights[2] == weights[3]
    assert kept[0] > kept[1] > kept[2] > kept[3] and checkpoint[0] > checkpoint[1] > checkpoint[2]
    assert min(seconds) > 0 and [ROWS[name][1] for name in names] == table.column("published GB (8B)")
    assert re.search(r'LN takes \d+ % of LoRA\'s time here .*published: 76 %, "25 % faster"', table.notes[0])


@pytest.mark.parametrize("tower", ["layernorm", "lora", "frozen"])
def test_every_quantised_row_has_a_command_for_a_24_gb_card(tower: str) -> None:
    words = ["experiment=nvila_mixture_qlora", "hardware=rtx4090", "model.path=somewhere", "data.registry=somewhere"]
    cfg = config("train", [*words, "data.sets=SampleQA", f"tuning=vision_{tower}_language_qlora"])
    check_config(cfg)
    assert cfg.micro_batch_size == 1 and cfg.hardware.activation_checkpointing and cfg.global_batch_size == 64
    assert f"`tuning=vision_{tower}_language_qlora`" in DOCS
