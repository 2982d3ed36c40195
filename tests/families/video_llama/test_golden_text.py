"""Prompts, ids, labels, frames and sentences are those of the original, to the last token."""

import re

import numpy as np
import pytest
import torch

from tests.families.video_llama.case import SAMPLING, TEMPLATES, OriginalDraws, labels_of, pad_rows
from vidtune.media.sampling import get_sampling
from vidtune.models.video_llama.templates import frame_message
from vidtune.text.encode import render_conversation

NO_CROP = np.random.default_rng(0)


def as_original(encoded, placeholder: int) -> list[int]:
    """Ids with the original's placeholder id in place of our 0."""
    visual = set(encoded.visual_positions)
    return [placeholder if position in visual else token for position, token in enumerate(encoded.input_ids)]


def render(processor, messages, plans, preset="train", generation=False) -> str:
    """The conversation with the original's placeholders: one each in training, one per medium in the demo."""
    text = render_conversation(messages, plans, processor.presets[preset], generation=generation)
    return re.sub(r"<visual×(\d+)>", lambda match: "<ImageHere>" * (1 if generation else int(match[1])), text)


def test_training_rows_hold_the_originals_tokens_and_labels(case):
    vocabulary = case.config["llm"]["vocab_size"]
    rows = case.json("expected/prompts.json")
    assert rows
    for row in rows:
        processor = case.processor(
            train_template=TEMPLATES[row["model_type"]],
            media_text="plain" if "cn" in row["data_type"] else "timed",
            num_video_tokens=row["num_video_query_token"],
        )
        entry = case.annotations[row["row"]]
        plan = processor.plan_media(case.video_info(entry["video"]), NO_CROP, "train")
        messages = case.messages(entry)
        encoded = processor.encode(messages, [plan], preset="train")
        where = (row["row"], row["model_type"], row["data_type"])
        assert render(processor, messages, [plan]) == row["prompt"], where
        assert as_original(encoded, vocabulary) == row["input_ids"], where
        assert encoded.labels == row["labels"], where
        assert frame_message(plan.times_s) == row["message"], where


def test_image_rows_read_as_in_the_original(case):
    if not (case.folder / "expected/image_prompts.json").exists():
        pytest.skip("this case holds no images")
    processor = case.processor()
    for entry, prompt in zip(
        case.json("inputs/image_annotations.json"), case.json("expected/image_prompts.json"), strict=True
    ):
        plan = processor.plan_media(case.image_info(entry["image"]), NO_CROP, "infer")
        assert render(processor, case.image_messages(entry), [plan]) == prompt


def test_batches_hold_the_originals_ids_labels_and_mask(case):
    for spec in case.config["batches"]:
        encoded, media = case.batch_of(spec)
        batch = pad_rows(encoded, media)
        name = spec["name"]
        expected = {key: case.stages.get(f"{name}/{key}") for key in ("input_ids", "labels", "attention_mask")}
        if expected["input_ids"] is not None:
            ids = batch.input_ids.clone().flatten()
            ids[batch.visual_positions] = case.config["llm"]["vocab_size"]
            assert torch.equal(ids.view_as(batch.input_ids), expected["input_ids"]), name
        assert torch.equal(labels_of(batch), expected["labels"]), name
        assert torch.equal(batch.attention_mask, expected["attention_mask"].bool()), name


def test_videos_are_sampled_at_the_originals_frames(case):
    processor = case.processor()
    for row in case.json("expected/frames.json"):
        info = case.video_info(row["video"])
        plan = processor.plan_media(info, NO_CROP, "train")
        assert (info.num_frames, list(plan.frame_indices)) == (row["total"], row["indices"])
        assert frame_message(plan.times_s) == row["message"]


def test_frame_choices_of_any_length_and_rate_are_the_originals(case):
    for row in case.json("expected/sampler_table.json"):
        if row["sampling"] not in SAMPLING:
            assert "indices" not in row, "the original knows a policy that we do not offer under its name"
            continue
        policy = get_sampling(SAMPLING[row["sampling"]])
        indices = policy(row["total"], row["n_frms"], row["fps"], OriginalDraws(row.get("seed", 0)))
        assert indices == row["indices"], row
        assert frame_message(tuple(index / row["fps"] for index in indices)) == row["message"], row
