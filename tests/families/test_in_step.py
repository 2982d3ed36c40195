"""Rows of different content run the same layers in the same order.

Under ZeRO-3 and FSDP every call of a layer is a collective: a process whose row shows nothing, or shows an image where
another shows two videos, would otherwise wait for ever.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers import ROOT, config
from vidtune.contracts import Batch, MediaRef, Message, Sample, UserError
from vidtune.data.media_source import MediaSource
from vidtune.data.planner import RowPlan
from vidtune.data.rows import Encoder, RowBuilder
from vidtune.models.base import VideoLLM
from vidtune.run.build import build_network, build_processor, prepare

TINY = sorted(path.stem for path in (ROOT / "conf/model").glob("*tiny.yaml"))


def layers_run(network: VideoLLM, batch: Batch) -> list[str]:
    """Modules with parameters of their own, in the order in which a forward calls them; the head once, since every
    strategy keeps it gathered."""
    called: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, arguments, name=name: called.append(name))
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    with torch.no_grad():
        network(batch)
    for hook in hooks:
        hook.remove()
    return [name for name in called if not name.startswith("language.lm_head")]


@pytest.mark.parametrize("name", TINY)
def test_no_process_waits_for_one_whose_row_shows_something_else(
    name: str, shapes: Path, cache_dir: Path, tmp_path: Path
) -> None:
    cfg = config("train", [f"model={name}", "model.dtype=float32", "data.prepare=null", f"paths.cache_dir={cache_dir}"])
    prepare(cfg)
    network, source = build_network(cfg).eval(), MediaSource(build_processor(cfg))
    Image.new("RGB", (90, 50), "red").save(tmp_path / "image.png")
    videos = sorted(shapes.rglob("*.mp4"))[:2]
    media = [
        (),
        (MediaRef(str(videos[0])),),
        (MediaRef(str(videos[1])),),
        (MediaRef(str(tmp_path / "image.png"), "image"),),
    ]
    samples = [
        Sample(str(number), (Message("user", (*refs, "what ?")), Message("assistant", ("nothing",))))
        for number, refs in enumerate(media)
    ]
    builder = RowBuilder(samples, Encoder(source.processor, source, "train"), source, "token")
    contents = [((0,),), ((1,),), ((1,), (2,))]
    # A model that merges consecutive frames takes videos only, and says so while it plans.
    with suppress(UserError):
        source.plan_all(media[3], 0, "train")
        contents.append(((3,), (1,), (0,)))
    rows = [builder[RowPlan(segments, 1.0, 0, 0)] for segments in contents]
    orders = [layers_run(network, row) for row in rows]
    assert orders[0], "a row of text alone runs the tower on a dummy"
    assert all(order == orders[0] for order in orders[1:])
