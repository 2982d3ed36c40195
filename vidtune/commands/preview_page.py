"""A preview as one HTML page that opens from disk: no script, no file beside it."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from vidtune.run.preview import Preview, Strip

_LARGEST = 240
"""Pixels of a frame's longer side on the page."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1b1b1b; }
h1 { font-size: 1.25rem; } h2 { font-size: 1rem; word-break: break-all; }
.strip { display: flex; flex-wrap: wrap; gap: .5rem; }
figure { margin: 0; } figure img { display: block; } figcaption { font-size: .8rem; color: #555; }
.row { white-space: pre-wrap; word-break: break-word; border: 1px solid #ccc; padding: 1rem;
       font-family: ui-monospace, monospace; }
.target { background: #b7f0c0; outline: 1px solid #4caf50; } .visual { color: #00688b; } .bad { color: #b00020; }
"""


def render_page(shown: Preview, title: str) -> str:
    """The page as text."""
    targets = sum(run.num_tokens for run in shown.runs if run.kind == "target")
    strips = "".join(_strip(strip) for strip in shown.strips)
    row = "".join(f'<span class="{run.kind}">{escape(run.text)}</span>' for run in shown.runs)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        f"<p>Row {escape(shown.sample.sample_id)} of {escape(shown.sample.source)}: {shown.encoded.num_tokens} tokens, "
        f'{len(shown.encoded.visual_positions)} of them <span class="visual">visual</span>, {targets} '
        f'<span class="target">supervised</span>.</p>\n{strips}<h2>Tokens</h2>\n<div class="row">{row}</div>\n'
        f"</body></html>\n"
    )


def _strip(strip: Strip) -> str:
    head = f"<h2>{escape(strip.path)}</h2>\n"
    if strip.problem:
        return f'{head}<p class="bad">Cannot be read: {escape(strip.problem)}. The row would carry no weight.</p>\n'
    figures = "".join(
        f'<figure><img src="{_data_uri(frame)}" alt="frame {index}"><figcaption>{time:.2f} s, frame {index}'
        f"</figcaption></figure>"
        for frame, time, index in zip(strip.frames, strip.times_s, strip.indices, strict=True)
    )
    return f'{head}<div class="strip">{figures}</div>\n'


def _data_uri(frame: np.ndarray) -> str:
    picture = Image.fromarray(frame)
    picture.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
