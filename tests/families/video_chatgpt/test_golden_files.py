"""No golden file goes unread unseen."""

from __future__ import annotations

import fnmatch

from tests.families.golden import golden_files

COMPARED = (
    "config.json",
    "weights/*/config.json",
    "weights/*/pytorch_model.safetensors",
    "tokenizer/*",
    "inputs/frames.safetensors",
    "inputs/label_rows.json",
    "expected/delta_applied.safetensors",
    "expected/frame_indices.json",
    "expected/train_filtered.json",
    "expected/rows.json",
    "expected/summary.json",
    "expected/vision.safetensors",
    "expected/pooling.safetensors",
    "expected/vocabulary.safetensors",
    "expected/batch.safetensors",
    "expected/mixed_batch.safetensors",
    "expected/gradients.safetensors",
    "expected/video_chatgpt_projector.safetensors",
    "expected/inference.json",
    "expected/inference.safetensors",
    "weights/clip/preprocessor_config.json",
    "inputs/bench.json",
    "expected/bench.json",
)
ELSEWHERE = (
    "inputs/instructions.json",  # unit/data/test_prepare_video_instruct
    "expected/train.json",  # unit/data/test_prepare_video_instruct
)


def test_every_file_of_every_case_is_known(case):
    unknown = [
        name
        for name in golden_files(case.folder)
        if not any(fnmatch.fnmatch(name, pattern) for pattern in (*COMPARED, *ELSEWHERE))
    ]
    assert not unknown, f"{case.folder}: no test reads {unknown}"


def test_the_towers_preprocessing_is_the_one_we_apply(case):
    """Resize and crop to 224 find nothing to do after the original's own resize; mean and std are ours."""
    from vidtune.models.video_chatgpt.processor import CLIP_MEAN, CLIP_STD

    stated = case.json("weights/clip/preprocessor_config.json")
    assert (tuple(stated["image_mean"]), tuple(stated["image_std"])) == (CLIP_MEAN, CLIP_STD)
    assert stated["size"] == stated["crop_size"] == 224
