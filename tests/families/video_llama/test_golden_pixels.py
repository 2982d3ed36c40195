"""Frames reach the network as the original's reader and transforms made them."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from tests.families.video_llama.case import TEMPLATES, OriginalDraws, grey_levels
from vidtune.contracts import MediaRef
from vidtune.media import probe, read_frames
from vidtune.models.video_llama.pixels import crop_frames, draw_crop


def compare_pixels(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """At most 0.1 % of the values may differ, by one grey level (README of the goldens)."""
    assert ours.shape == theirs.shape
    off = (ours - theirs).abs() > 1e-5
    assert off.float().mean() <= 1e-3
    assert (grey_levels(ours) - grey_levels(theirs)).abs().max() <= 1.01


def write_lossless(path, frames: torch.Tensor, fps: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        for frame in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_frames_are_scaled_bit_for_bit_as_by_the_originals_reader(case, tmp_path):
    processor = case.processor()
    for name, frames in case.raw_frames.items():
        path = tmp_path / name
        write_lossless(path, frames, case.config["clips"][name]["fps"])
        info = probe(MediaRef(str(path)))
        expected = case.video_info(name)
        assert (info.num_frames, info.height, info.width) == (expected.num_frames, expected.height, expected.width)
        plan = processor.plan_media(info, np.random.default_rng(0), "infer")
        every = range(info.num_frames)
        read = list(read_frames(info.ref, every, size=plan.frame_size, frame_filter=plan.frame_filter))
        assert np.array_equal(np.stack(read), case.stages[f"decode_resized/{name}"].numpy())


def test_crops_are_drawn_as_by_the_original(case):
    side = case.config["data"]["image_size"]
    for name, batch in case.json("expected/crops.json").items():
        for row, box in zip(batch["rows"], batch["crop_i_j_h_w"], strict=True):
            assert list(draw_crop(OriginalDraws(case.crop_seed(row)), side, side)) == box, (name, row)


@pytest.mark.parametrize("wrap", [True, False], ids=["wrapped", "clamped"])
def test_training_pixels_are_the_originals(case, wrap):
    key = "pixels" if wrap else "pixels_clamped"
    specs = [
        spec for spec in case.config["batches"] if spec["kind"] != "image" and f"{spec['name']}/{key}" in case.stages
    ]
    for spec in specs:
        _, media = case.batch_of(spec)
        if not wrap:
            processor = case.processor(train_template=TEMPLATES[spec["model_type"]])
            plans = [row.plans[0] for row in case.batch_of(spec)[0]]
            media = [processor.load_media(plan, case.decoded(plan)) for plan in plans]
        theirs = case.stages[f"{spec['name']}/{key}"]
        for item, clip in zip(media, theirs, strict=True):
            compare_pixels(item.tensors["pixel_values"], clip.transpose(0, 1))


def test_as_many_grey_levels_leave_the_range_as_in_the_original(case):
    """Proves that the case with hard edges is one where clamping matters, and the smooth one is not."""
    for name, batch in case.json("expected/crops.json").items():
        spec = next(spec for spec in case.config["batches"] if spec["name"] == name)
        encoded, _ = case.batch_of(spec)
        differing = 0
        for row in encoded:
            plan = row.plans[0]
            if "crop" not in plan.extra:
                continue
            frames = torch.from_numpy(np.stack(case.decoded(plan)))
            side = case.config["data"]["image_size"]
            wrapped, clamped = (crop_frames(frames, plan.extra["crop"], side, wrap) for wrap in (True, False))
            differing += int((wrapped != clamped).sum())
        if "values_outside_0_255" in batch:
            assert 0 < differing <= batch["values_outside_0_255"]
        elif name == "A":
            assert differing == 0


def test_images_are_resized_as_in_the_original(case):
    for spec in case.config["batches"]:
        if spec["kind"] != "image":
            continue
        processor = case.processor()
        rows = case.json("inputs/image_annotations.json")
        for row, theirs in zip(spec["rows"], case.stages[f"{spec['name']}/pixels"], strict=True):
            info = probe(case.image_info(rows[row]["image"]).ref)
            plan = processor.plan_media(info, np.random.default_rng(0), "infer")
            item = processor.load_media(plan, read_frames(info.ref, plan.frame_indices))
            compare_pixels(item.tensors["pixel_values"], theirs[None])


def test_one_crop_serves_all_frames_and_only_training_is_cropped(case):
    processor = case.processor()
    info = case.video_info(next(iter(case.config["clips"])))
    assert "crop" in processor.plan_media(info, np.random.default_rng(0), "train").extra
    assert "crop" not in processor.plan_media(info, np.random.default_rng(0), "infer").extra
    assert "crop" not in case.processor(random_crop=False).plan_media(info, np.random.default_rng(0), "train").extra
