"""The guide's own sample files, in place of whose pictures and videos small ones lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

# As printed there, but for the comment lines, which no JSON reader takes.
IMAGE_ROWS = """
[
    {
        "image": "images/1.jpg",
        "conversations": [
            {"from": "human", "value": "What can you see in the image"},
            {"from": "gpt", "value": "In the center of the image, I can see..."}
        ]
    },
    {
        "image": "images/2.jpg",
        "conversations": [
            {"from": "human", "value": "How many chairs are there in the image"},
            {"from": "gpt", "value": "There are tottally 3 chairs..."}
        ]
    }
]
"""
VIDEO_ROWS = """
[
    {
        "video": "videos/1.mp4",
        "conversations": [
            {
                "from": "human",
                "value": "Explain the video's components, including its characters, setting, and plot."
            },
            {"from": "gpt", "value": "The video sequence commences with a white screen that transitions"}
        ]
    }
]
"""
REGISTRY = """
SampleQA:
    _target_: llava.data.LLaVADataset
    data_path: /dataset/vila-dataset/sample-qa/dataset.json
    media_dir: /dataset/vila-dataset/sample-qa
SampleVideo:
    _target_: llava.data.LLaVADataset
    data_path: /dataset/vila-dataset/sample-video/dataset.json
    media_dir: /dataset/vila-dataset/sample-video
    is_video: true
"""
ROOT = "/dataset/vila-dataset"
"""Where the guide's sets lie; tests move them."""


def write_samples(folder: Path, clip: Path) -> list[str]:
    """Write the guide's sets and a text set below a folder; overrides that train on all three."""
    for name, rows in (("sample-qa", IMAGE_ROWS), ("sample-video", VIDEO_ROWS)):
        (folder / name).mkdir(parents=True)
        (folder / name / "dataset.json").write_text(rows)
    (folder / "sample-qa/images").mkdir()
    for number, size in ((1, (120, 60)), (2, (64, 64))):
        Image.new("RGB", size, ("red", "navy")[number - 1]).save(folder / f"sample-qa/images/{number}.jpg")
    (folder / "sample-video/videos").mkdir()
    shutil.copy(clip, folder / "sample-video/videos/1.mp4")
    turns = [{"from": "human", "value": "Name a leg exercise."}, {"from": "gpt", "value": "Lunges."}]
    more = [{"from": "human", "value": "Another one?"}, {"from": "gpt", "value": "Squats, on a chair."}]
    (folder / "text.json").write_text(json.dumps([{"conversations": turns + more}]))
    text = f"SampleText: {{_target_: llava.data.LLaVADataset, data_path: {folder}/text.json}}\n"
    (folder / "sets.yaml").write_text(REGISTRY.replace(ROOT, str(folder)) + text)
    return [f"data.registry={folder}/sets.yaml", "data.sets=SampleQA+SampleVideo+SampleText"]
