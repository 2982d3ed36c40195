"""`vidtune preview data=... model=... --index 12`: what the model will see, in the terminal and as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.console import Console, Group
from rich.text import Text

if TYPE_CHECKING:
    from vidtune.run.preview import Preview, Strip

_STYLES = {"context": "", "target": "bold black on green", "visual": "cyan"}
_THUMB_WIDTH = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py: data=..., model=..., ...")
    parser.add_argument("--index", type=int, default=0, help="row, from 0 (default: 0)")
    parser.add_argument("--split", help="split (default: that of training)")
    parser.add_argument("--page", help="HTML file (default: preview_<data>_<model>_<index>.html below paths.runs_dir)")


def run(arguments: argparse.Namespace) -> int:
    from vidtune.commands.preview_page import render_page  # these take seconds to import; --help must not wait
    from vidtune.run.compose import compose_config
    from vidtune.run.preview import preview

    cfg = compose_config(arguments.overrides, "train")
    shown = preview(cfg, arguments.index, arguments.split)
    name = f"preview_{cfg.data.name}_{cfg.model.name}_{arguments.index}.html"
    page = Path(arguments.page) if arguments.page else Path(cfg.paths.runs_dir) / name
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render_page(shown, f"{cfg.data.name} row {arguments.index}, {cfg.model.name}"), encoding="utf-8")
    console = Console()
    console.print(terminal_view(shown, console.width))
    console.print(f"Page: {page}", soft_wrap=True)
    return 0


def terminal_view(shown: Preview, width: int) -> Group:
    """Frames as half blocks, times below them, then the row with supervised tokens marked."""
    parts: list[Text] = []
    for strip in shown.strips:
        parts.append(Text(strip.path, style="bold"))
        if strip.problem:
            parts.append(Text(f"cannot be read: {strip.problem}; the row would carry no weight", style="bold red"))
        else:
            parts += _strip_lines(strip, max(1, width // (_THUMB_WIDTH + 1)))
    row = Text()
    for run_ in shown.runs:
        row.append(run_.text, style=_STYLES[run_.kind])
    targets = sum(run_.num_tokens for run_ in shown.runs if run_.kind == "target")
    facts = Text(
        f"{shown.encoded.num_tokens} tokens, {len(shown.encoded.visual_positions)} of them visual, {targets} "
        f"supervised (marked)",
        style="dim",
    )
    return Group(*parts, row, facts)


def _strip_lines(strip: Strip, per_line: int) -> list[Text]:
    """Each character shows two pixels: the upper one as its colour, the lower one as its background."""
    lines: list[Text] = []
    for start in range(0, len(strip.frames), per_line):
        thumbs = [_thumbnail(frame) for frame in strip.frames[start : start + per_line]]
        for y in range(0, thumbs[0].shape[0], 2):
            line = Text()
            for thumb in thumbs:
                for x in range(thumb.shape[1]):
                    upper, lower = thumb[y, x], thumb[y + 1, x]
                    line.append("▀", style=f"rgb({_rgb(upper)}) on rgb({_rgb(lower)})")
                line.append(" ")
            lines.append(line)
        labels = [f"{time:.2f} s".ljust(_THUMB_WIDTH + 1) for time in strip.times_s[start : start + per_line]]
        lines.append(Text("".join(labels), style="dim"))
    return lines


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    height = max(2, round(frame.shape[0] / frame.shape[1] * _THUMB_WIDTH / 2) * 2)
    return np.asarray(Image.fromarray(frame).resize((_THUMB_WIDTH, min(height, 2 * _THUMB_WIDTH))))


def _rgb(pixel: np.ndarray) -> str:
    return ",".join(str(int(value)) for value in pixel)
