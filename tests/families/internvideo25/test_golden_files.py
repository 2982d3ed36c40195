"""Every file of every golden case is read by some test, so that no case holds numbers that nothing is compared with."""

from __future__ import annotations

from tests.families.golden import golden_files
from tests.families.internvideo25.support import each_case

CHECKED_BY = {
    "test_weights": ("config.json", "model.safetensors"),
    "test_tokenizer": (
        "tokenizer.model",
        "tokenizer_config.json",
        "added_tokens.json",
        "special_tokens_map.json",
        "tokenizer_strings.json",
        "expected_tokenizer.json",
    ),
    "test_prompts": ("rows.jsonl", "expected_text.json"),
    "test_pixels": ("frames.safetensors", "videos.json"),
    "test_merging": ("tome_inputs.safetensors", "tome_units.json", "expected_tome_units.json"),
    "test_stages": ("expected.safetensors", "probe_inputs.safetensors"),
    "test_losses": ("expected_scalars.json", "expected_packed.json", "expected_grads.json"),
    "test_generation": ("chat_inputs.json", "expected_generation.json", "expected_batch_generation.json"),
    # Sampling, schedule and data set belong to shared code; the tests beside it read the same golden folders.
    "unit/media/test_sampling": ("sampling_requests.json", "expected_sampling.json"),
    "unit/training/test_warmup_and_floor": ("lr_requests.json", "expected_lr_schedule.json"),
    "unit/data/test_prepare_qevd": (
        "split_manifest.json",
        "split_ground_truth.json",
        "split_clips.json",
        "expected_split.json",
    ),
}


@each_case
def test_no_golden_file_is_ignored(case):
    claimed = {name for names in CHECKED_BY.values() for name in names}
    assert set(golden_files(case)) <= claimed
