"""Prompts, ids and labels of the published forms."""

from __future__ import annotations

import pytest

from tests.families.internvideo25.support import PRESETS, RNG, as_original_ids, each_case, golden
from vidtune.contracts import IGNORE, UserError


@each_case
@pytest.mark.parametrize("template", PRESETS)
def test_training_rows_have_the_ids_and_labels_of_the_original(case, template):
    files, compared = golden(case), 0
    context = files.json("added_tokens.json")["<IMG_CONTEXT>"]
    for row, entry in enumerate(files.text):
        expected = entry.get(template, entry if entry["kind"] == "text_only" and template == "upstream" else None)
        if not expected or "input_ids" not in expected:
            continue
        # Compared before the cut: the original may cut inside the frames, which we refuse.
        limit = files.config["golden"]["rows"][row]["max_length"]
        encoded = files.encode(row, template, max_length=10**6)
        assert as_original_ids(encoded, context)[:limit] == expected["input_ids"]
        assert encoded.labels[:limit] == expected["labels"]
        assert bool(entry.get("truncated")) == (encoded.num_tokens > limit) or template != "upstream"
        if limit >= encoded.prefix_length:
            cut = files.encode(row, template)
            assert as_original_ids(cut, context) == expected["input_ids"]
            assert cut.labels == expected["labels"]
        compared += 1
    assert compared


@each_case
@pytest.mark.parametrize("template", PRESETS)
def test_rendered_prompts_read_like_the_originals(case, template):
    """Compared as text too: a wrong character is easier to see than a wrong id."""
    files = golden(case)
    for row, entry in enumerate(files.text):
        if entry["kind"] != "video":
            continue
        encoded = files.encode(row, template, max_length=10**6)
        tokenizer = files.processor(row).tokenizer
        ids = as_original_ids(encoded, files.json("added_tokens.json")["<IMG_CONTEXT>"])
        per_frame = files.processor(row).frame_tokens
        expanded = entry[template]["prompt"].replace("<image>", f"<img>{'<IMG_CONTEXT>' * per_frame}</img>")
        assert tokenizer.decode(ids) == f"<s>{expanded}"


@each_case
def test_a_row_cut_inside_its_frames_is_refused_with_the_settings_to_change(case):
    files = golden(case)
    for row, options in enumerate(files.config["golden"]["rows"]):
        if "video" not in files.rows[row]:
            continue
        inside = files.encode(row, max_length=10**6).prefix_length - 1
        assert options["max_length"] <= inside or not options.get("ids_only")
        with pytest.raises(UserError, match=r"model\.max_length.*data\.num_frames"):
            files.encode(row, max_length=min(inside, options["max_length"]) if options.get("ids_only") else inside)


@each_case
def test_supervision_starts_behind_the_assistant_header_and_ends_with_the_stop_token(case):
    files = golden(case)
    for template in PRESETS:
        for row in range(len(files.rows)):
            encoded = files.encode(row, template, max_length=10**6)
            processor = files.processor(row, template)
            header = processor.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
            starts = [
                i
                for i in range(1, encoded.num_tokens)
                if encoded.labels[i] != IGNORE and encoded.labels[i - 1] == IGNORE
            ]
            answers = [turn for turn in files.rows[row]["conversations"] if turn["from"] == "gpt"]
            assert len(starts) == len(answers)
            for start in starts:
                assert encoded.input_ids[start - len(header) : start] == header
            assert encoded.labels.count(processor.stop_ids[0]) == len(answers)


@each_case
def test_a_prompt_for_generation_is_the_beginning_of_the_training_row(case):
    files = golden(case)
    for template in PRESETS:
        for row in files.video_rows:
            processor = files.processor(row, template, max_length=10**6)
            plans = [processor.plan_media(files.info(row)[0], RNG, "train")]
            messages = files.messages(row)[:2]
            whole = processor.encode(messages, plans, preset="train")
            prompt = processor.encode(messages, plans, preset="infer", generation=True)
            assert whole.input_ids[: prompt.num_tokens] == prompt.input_ids
            assert set(whole.labels[: prompt.num_tokens]) == {IGNORE}
            assert whole.labels[prompt.num_tokens] != IGNORE
