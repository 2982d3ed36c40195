"""The official annotation of NExT-QA with generated clips in place of its videos, which are not at hand."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.helpers import ROOT
from vidtune.data.multiple_choice import read_table
from vidtune.data.prepare import Report
from vidtune.data.prepare.nextqa import COLUMNS, MAP, prepare

OFFICIAL = Path(os.environ.get("VIDTUNE_NEXTQA", ROOT.parent / "shared/data/nextqa"))
"""Folder of val.csv, test.csv and the map, as the official repository publishes them."""


def write_stand_ins(root: Path, clips: Sequence[Path]) -> Report:
    """Prepare ``root``: val as published; train is the official test file, train.csv being too large to be at hand.

    Args:
        clips: shown in turn in place of the videos.
    """
    root.mkdir(parents=True)
    shutil.copy(OFFICIAL / MAP, root)
    mapping = json.loads((OFFICIAL / MAP).read_text())
    for split, file in (("val", "val.csv"), ("train", "test.csv")):
        shutil.copy(OFFICIAL / file, root / f"{split}.csv")
        videos = dict.fromkeys(row["video"] for row in read_table(OFFICIAL / file, COLUMNS))
        for number, video in enumerate(videos):
            target = root / "NExTVideo" / f"{mapping[video]}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(clips[number % len(clips)], target)
    return prepare(root, {}, Console(quiet=True))
