"""Every file of a golden case is read by a test; a file that nobody knows must not pass unseen."""

from fnmatch import fnmatch

import pytest

from tests.families.golden import golden_files

CLAIMED = {
    "case.py": [
        "config.json",
        "weights/*.safetensors",
        "weights/llm/*",
        "inputs/annotations.json",
        "inputs/frames.safetensors",
        "inputs/image_annotations.json",
        "inputs/audio_features.safetensors",
        "inputs/*.png",
    ],
    "test_golden_text.py": [
        "expected/prompts.json",
        "expected/image_prompts.json",
        "expected/frames.json",
        "expected/sampler_table.json",
        "expected/caption.json",
        "inputs/alignment_image.txt",
    ],
    "test_golden_pixels.py": ["expected/crops.json"],
    "test_golden_stages.py": ["expected/stages.safetensors", "expected/loss.json"],
    "test_golden_training.py": ["expected/grads_*.json", "expected/lr_table.json"],
    "test_golden_chat.py": ["expected/chats.json"],
    "test_contract.py": ["expected/errors.json"],
    "test_files.py": ["expected/text_processor.json"],
}


def test_every_golden_file_is_claimed_by_a_test(case):
    patterns = [pattern for claimed in CLAIMED.values() for pattern in claimed]
    unknown = [name for name in golden_files(case.folder) if not any(fnmatch(name, pattern) for pattern in patterns)]
    assert not unknown, f"no test reads {unknown}"


def test_every_stored_tensor_belongs_to_a_batch_a_chat_or_the_reader(case):
    known = {spec["name"] for spec in case.config["batches"]} | {"decode_resized"}
    known |= {f"chat_{chat['name']}" for chat in case.config["chats"]}
    assert {key.split("/")[0] for key in case.stages} <= known


def test_captions_are_cleaned_as_in_the_original(case):
    assert case.json("expected/text_processor.json")
    pytest.skip("cleaning captions (lower case, 50 words) is the business of a WebVid reader, which vidtune has not")
