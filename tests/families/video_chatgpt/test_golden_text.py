"""Ids, labels and prompts of the original."""

from __future__ import annotations

import numpy as np

from vidtune.contracts import IGNORE
from vidtune.media.sampling import get_sampling
from vidtune.text.encode import render_conversation

MARKED = "<vid_start><vid_patch>*{num_placeholders}<vid_end>"


def prompt(case, messages, preset, generation=False):
    names = [ref for message in messages for ref in message.media]
    plans = [
        case.processor.plan_media(case.info(ref.path.split("/")[-1][:-4]), np.random.default_rng(0), preset)
        for ref in names
    ]
    template = case.processor.presets[preset]
    return render_conversation(messages, plans, template, generation=generation, span_text=MARKED)


def test_frame_choice_is_the_originals(case):
    for entry in case.json("expected/frame_indices.json"):
        chosen = get_sampling("rounded_midpoints")(entry["total_frames"], entry["num_frames"], 25.0, None)
        assert chosen == entry["indices"], entry["total_frames"]


def test_rows_read_and_train_as_in_the_original(case):
    rows = case.training_rows()
    for expected in case.json("expected/rows.json"):
        name = expected["row"]
        messages = case.row_messages(rows[name])
        if rows[name]["conversations"][0]["from"] == "human":
            assert prompt(case, messages, "train") == expected["prompt"], name
        encoded = case.encode(messages)
        if name in case.config["input_ids_informational"]:
            supervised = any(label != IGNORE for label in encoded.labels)
            assert supervised == any(label != IGNORE for label in expected["labels"]), name
            continue
        assert case.ids(encoded) == expected["input_ids"], name
        assert encoded.labels == expected["labels"], name


def test_rows_that_the_original_masks_have_no_target(case):
    rows = case.training_rows()
    for expected in case.json("expected/rows.json"):
        assert (case.encode(case.row_messages(rows[expected["row"]])).num_targets == 0) == bool(expected["warning"])


def test_inference_prompts_read_as_in_the_original(case):
    for request in case.json("expected/inference.json"):
        if "messages" in request:
            turns = [(("user", "assistant")[index % 2], text) for index, text in enumerate(request["messages"])]
            messages = case.messages(turns, next(iter(case.frames)))
        else:
            messages = case.messages([("user", request["question"] + "\n<video>")], request["video"])
        # The presets are the two templates; a request may name the other one.
        preset = "train" if request_template(case, request) == "vicuna_v1_1" else "infer"
        assert prompt(case, messages, preset, generation=True) == request["prompt"]
        assert case.ids(case.encode(messages, preset, generation=True)) == request["input_ids"]


def request_template(case, request) -> str:
    requests = [*case.config["inference"], *case.config.get("inference_history", [])]
    found = [
        entry.get("conv_mode", "video-chatgpt_v1")
        for entry in requests
        if all(request.get(key) == entry[key] for key in entry if key != "conv_mode")
    ]
    assert len(found) == 1
    return found[0]
