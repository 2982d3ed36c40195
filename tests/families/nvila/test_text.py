"""Ids, labels, tiles and frames against the tables of the original."""

from __future__ import annotations

import json

import numpy as np

from tests.families.nvila.cases import CASES, cases_with, collapse, refuses
from vidtune.contracts import IGNORE, MediaInfo, MediaPlan, MediaRef, Message, VisualSpan
from vidtune.media.sampling import get_sampling
from vidtune.models.nvila.processor import NVILAProcessor
from vidtune.models.nvila.tiling import choose_grid, choose_pyramid_grid, num_tiles, pyramid_grids
from vidtune.models.nvila.tiny import write_tiny_checkpoint
from vidtune.text.encode import encode_conversation, render_conversation


@CASES
def test_a_row_reads_as_in_the_original(case):
    special, samples = case.expected["special_token_ids"], case.expected["samples"]
    for index, (encoded, sample) in enumerate(zip(case.whole, samples, strict=True)):
        ids, labels = collapse(encoded, special)
        assert (ids, labels) == (sample["input_ids"], sample["labels"])
        mask = case.tensors["collated.attention_mask"][index]
        length = int(mask.sum())
        assert case.tensors["collated.input_ids"][index, :length].tolist() == ids[:length]
        assert case.tensors["collated.labels"][index, :length].tolist() == labels[:length]
    assert sum(encoded.num_targets for encoded in case.whole) == case.expected["num_targets_before_splicing"]


@CASES
def test_media_fill_as_many_positions_as_in_the_original(case):
    lengths, limit = case.expected["spliced_lengths"], case.options["model_max_length"]
    for row, encoded in zip(case.kept, case.encoded, strict=True):
        assert encoded.num_tokens == lengths[row]
        assert encoded.labels == case.tensors["spliced.labels"][row, : lengths[row]].tolist()
        assert encoded.num_targets == case.expected["targets_per_row"][row]
        assert case.tensors["spliced.attention_mask"][row].sum() == lengths[row]
    for row in case.refused:
        assert lengths[row] == limit and refuses(case, row)


@CASES
def test_number_of_tiles_and_frames_of_a_row_is_that_of_the_original(case):
    for sample, expected in zip(case.samples, case.expected["samples"], strict=True):
        plans = case.source.plan_all(sample.media, 0, "train")
        items = [case.source.load(plan) for plan in plans]
        tiles = sum(len(item.tensors["pixel_values"]) for item in items if item.kind == "image")
        assert tiles == expected["num_image"]
        assert [len(item.tensors["pixel_values"]) for item in items if item.kind == "video"] == expected[
            "num_video_frames"
        ]
        if "block_sizes" in expected:
            assert [plan.extra["grid"][::-1] for plan in plans] == [tuple(block) for block in expected["block_sizes"]]


@CASES
def test_default_labels_are_the_answer_and_its_end_and_differ_from_the_original_in_newlines_only(case):
    processor = case.build_processor(train_template="nvila", max_length=10**9)
    newline, end = case.expected["newline_ids"][0], case.expected["special_token_ids"]["<|im_end|>"]
    for sample, quirk in zip(case.samples, case.whole, strict=True):
        clean = processor.encode(sample.messages, quirk.plans, preset="train")
        assert clean.input_ids == quirk.input_ids and clean.num_targets == quirk.num_targets
        for position, (label, other) in enumerate(zip(clean.labels, quirk.labels, strict=True)):
            assert label == other or clean.input_ids[position] == newline
        answers = [message.text.strip() + "<|im_end|>" for message in sample.messages if message.role == "assistant"]
        targets = [label for label in clean.labels if label != IGNORE]
        assert processor.tokenizer.decode(targets) == "".join(answers) and targets.count(end) == len(answers)


@CASES
def test_special_tokens_are_looked_up(case):
    special = case.expected["special_token_ids"]
    assert case.processor.stop_ids == [special["<|im_end|>"]]
    assert case.processor.pad_id == special["[PAD]"]
    assert list(case.processor.newline_ids) == case.expected["newline_ids"]
    assert case.network.language.lm_head.out_features == case.expected["len_tokenizer"]
    assert case.expected["stop_tokens"] == case.processor.tokenizer.convert_ids_to_tokens(case.processor.stop_ids)


@cases_with("label_table.json")
def test_labels_of_every_conversation_of_the_label_table(case):
    for entry, expected in json.loads((case.folder / "label_table.json").read_text()).items():
        name = "nvila_no_system_original_labels" if "no_system_prompt" in entry else "nvila_original_labels"
        _check_conversation(case, expected, name, ())


@cases_with("label_table_sync_506b9ad.json")
def test_an_empty_system_message_reads_as_in_the_later_commit(case):
    for expected in json.loads((case.folder / "label_table_sync_506b9ad.json").read_text()).values():
        _check_conversation(case, expected, "nvila_original_labels", (Message("system", ("",)),))


def _check_conversation(case, expected, template_name, first):
    template, special = case.processor.templates[template_name], case.expected["special_token_ids"]
    messages, plans = list(first), []
    for turn in expected["conversation"]:
        before, tag, text = turn["value"].partition("<image>")
        content: tuple = (turn["value"],)
        if tag:
            ref = MediaRef("literal", "image")
            newline = ("\n",) if text.startswith("\n") else ()
            plans.append(MediaPlan(MediaInfo(ref, 1, 1.0, 1.0, 8, 8), (0,), (0.0,), (VisualSpan(1), *newline)))
            content = (*((before,) if before else ()), ref, text)
        messages.append(Message("user" if turn["from"] == "human" else "assistant", content))
    encoded = encode_conversation(messages, plans, case.processor.tokenizer, template)
    assert collapse(encoded, special) == (expected["input_ids"], expected["labels"])
    assert render_conversation(messages, plans, template, span_text="<image>") == expected["prompt"]
    targets = [label for label in encoded.labels if label != IGNORE]
    assert case.processor.tokenizer.decode(targets) == expected["targets_text"]


@cases_with("tiling_table.json")
def test_pictures_are_cut_into_the_grids_of_the_tiling_table(case):
    for row in json.loads((case.folder / "tiling_table.json").read_text()):
        width, height, tile = row["width"], row["height"], row["tile"]
        if row.get("mode") == "dynamic_s2":
            assert row["scales"][0] == tile
            grid = choose_pyramid_grid(width, height, row["scales"], row["max_tiles"])
            assert grid[::-1] == tuple(row["block_size_rows_cols"])
            assert sum(columns * rows for columns, rows in pyramid_grids(row["scales"], grid)) == row["num_tiles"]
        else:
            grid = choose_grid(width, height, tile, row["min_tiles"], row["max_tiles"])
            assert grid == (row["cols"], row["rows"])
            assert num_tiles(grid) == row["num_tiles_with_thumbnail"]


@CASES
def test_frames_are_those_that_the_original_reads(case):
    for row in case.expected.get("frame_index_table", ()):
        wanted = row["num_video_frames"]
        indices = get_sampling("linspace")(row["total_frames"], wanted, 1.0, np.random.default_rng(0))
        assert indices == row["indices"]


# Width, height, tokens of Lite, tokens of base: counted on the original's own functions.
_BUDGET = [
    (448, 448, 123, 2305),
    (224, 224, 123, 2305),
    (640, 360, 369, 3073),
    (1920, 1080, 1107, 3073),
    (160, 120, 1599, 3073),
    (360, 640, 369, 2561),
    (1080, 1920, 1107, 2561),
    (900, 300, 492, 3073),
    (1000, 1000, 1230, 2305),
]


def test_pictures_and_frames_of_the_full_size_models_cost_what_the_originals_cost(tmp_path):
    write_tiny_checkpoint(tmp_path)
    lite = NVILAProcessor(str(tmp_path))
    base = NVILAProcessor(str(tmp_path), image_mode="dynamic_s2", fold=2)

    def tokens(processor: NVILAProcessor, ref: MediaRef, num_frames: int, width: int, height: int) -> int:
        info = MediaInfo(ref, num_frames, 1.0, float(num_frames), height, width)
        content = processor.plan_media(info, np.random.default_rng(0), "train").content
        return sum(part.num_tokens if isinstance(part, VisualSpan) else len(part) for part in content)

    for width, height, lite_tokens, base_tokens in _BUDGET:
        image = MediaRef("picture", "image")
        assert tokens(lite, image, 1, width, height) == lite_tokens
        assert tokens(base, image, 1, width, height) == base_tokens
        whole = MediaRef("picture", "image", tiled=False)
        assert (tokens(lite, whole, 1, width, height), tokens(base, whole, 1, width, height)) == (122, 257)
    video = MediaRef("video")
    assert (tokens(lite, video, 100, 640, 480), tokens(base, video, 100, 640, 480)) == (976, 2056)
