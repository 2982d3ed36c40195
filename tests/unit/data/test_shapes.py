"""The embedded data set: what is drawn is what a decoder sees, and writing survives interruptions."""

import dataclasses
import json
import threading
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from vidtune.contracts import UserError
from vidtune.data import shapes
from vidtune.data.shapes import prepare_shapes
from vidtune.data.shapes_drawing import COLORS, NUM_FRAMES, SPLITS, draw_frames, draw_video

SMALL = {"num_train": 12, "num_val": 2, "num_test": 6, "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    prepare_shapes(root, **SMALL)
    return root


def read_rows(root: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (root / f"{split}.jsonl").read_text().splitlines()]


def answers_by_video(root: Path) -> dict[str, dict[str, dict]]:
    videos: dict[str, dict[str, dict]] = {}
    for split in SPLITS:
        for row in read_rows(root, split):
            videos.setdefault(row["video"], {})[row["question_type"]] = row
    return videos


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(float) / 255


def shape_mask(frame: np.ndarray) -> np.ndarray:
    """Pixels with a hue: neither the dark background nor the grey dots."""
    return frame.max(axis=-1) - frame.min(axis=-1) > 0.4


def seen_shape(frame: np.ndarray) -> str:
    rows, columns = np.where(shape_mask(frame))
    box = shape_mask(frame)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    third = [len(box) // 3, box.shape[1] // 3]
    top_corner, bottom_corner = box[: third[0], : third[1]].mean(), box[-third[0] :, : third[1]].mean()
    if box.mean() > 0.9:
        return "square"
    if bottom_corner - top_corner > 0.3:
        return "triangle"
    return "circle" if box.mean() > 0.65 else "cross"


def test_a_decoder_sees_in_every_file_what_the_answers_say(written):
    videos = answers_by_video(written)
    assert len(videos) == 20
    for name, rows in videos.items():
        frames = decode(written / name)
        assert frames.shape == (NUM_FRAMES, 64, 64, 3)

        assert seen_shape(frames[NUM_FRAMES // 2]) == rows["shape"]["answer"], name

        x_first, x_last = (np.where(shape_mask(frames[i]))[1].mean() for i in (0, -1))
        y_first, y_last = (np.where(shape_mask(frames[i]))[0].mean() for i in (0, -1))
        dx, dy = x_last - x_first, y_last - y_first
        seen = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
        assert seen == rows["direction"]["answer"], name
        assert max(abs(dx), abs(dy)) > 25 and min(abs(dx), abs(dy)) < 4, name

        corners = [frames[:, y, x].mean() > 0.4 for y in (6, 57) for x in (6, 57)]
        assert str(sum(corners)) == rows["count"]["answer"], name

        ends = []
        for i in (0, -1):
            mean = frames[i][shape_mask(frames[i])].mean(axis=0)
            ends.append(min(COLORS, key=lambda color: np.abs(mean - COLORS[color]).sum()))
        assert ends[0] == rows["order"]["answer"] and set(ends) == set(rows["order"]["options"]), name
        assert rows["order"]["question"] == "{} or {} first ?".format(*rows["order"]["options"])


def test_the_annotation_has_four_adjacent_questions_a_video_and_names_files_that_exist(written):
    for split, count in (("train", 12), ("val", 2), ("test", 6)):
        rows = read_rows(written, split)
        assert len(rows) == 4 * count and len({row["id"] for row in rows}) == len(rows)
        for start in range(0, len(rows), 4):
            four = rows[start : start + 4]
            assert len({row["video"] for row in four}) == 1
            assert [row["question_type"] for row in four] == ["shape", "direction", "count", "order"]
        for row in rows:
            assert set(row) == {"id", "video", "question", "answer", "options", "question_type"}
            assert row["answer"] in row["options"] and (written / row["video"]).is_file()


def test_no_answer_can_be_guessed_better_than_by_chance():
    videos = [draw_video(5, "test", index) for index in range(600)]
    for attribute in ("shape", "direction", "count"):
        assert set(Counter(getattr(video, attribute) for video in videos).values()) == {150}
    assert set(Counter(video.colors for video in videos).values()) == {20}
    assert sum(video.colors == video.options for video in videos) == 300
    # Pairs of attributes are independent: expected 37.5 per cell of 16 with a deviation of about 6.
    pairs = Counter((video.shape, video.direction) for video in videos)
    assert len(pairs) == 16 and min(pairs.values()) > 15 and max(pairs.values()) < 62


def test_the_middle_frame_alone_tells_neither_direction_nor_order():
    middle = NUM_FRAMES // 2
    video = draw_video(1, "train", 0)
    turned = [dataclasses.replace(video, direction=d) for d in ("left", "right", "up", "down")]
    images = [draw_frames(other, 1, "train", 0)[middle] for other in turned]
    assert all((image == images[0]).all() for image in images)

    late = sum(draw_video(1, "train", index).change_frame <= middle for index in range(800))
    assert late == 400
    options_agree = [
        (video.change_frame <= middle) == (video.options == video.colors)
        for video in (draw_video(1, "train", index) for index in range(800))
    ]
    assert 330 < sum(options_agree) < 470


def test_a_video_depends_only_on_seed_split_and_index(written, tmp_path):
    prepare_shapes(tmp_path, **(SMALL | {"num_train": 3, "num_test": 1}))
    for name in ("videos/train/000002.mp4", "videos/test/000000.mp4"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()
    other_seed = draw_video(4, "train", 2)
    assert other_seed != draw_video(3, "train", 2) != draw_video(3, "test", 2)


def test_splits_share_no_video(written):
    contents = [path.read_bytes() for path in written.glob("videos/*/*.mp4")]
    assert len(contents) == 20 == len(set(contents))
    signatures = {draw_video(0, split, index).signature for split in SPLITS for index in range(1000)}
    assert len(signatures) == 3000


def test_an_interrupted_run_leaves_whole_files_and_resumes_to_the_same_data(written, tmp_path, monkeypatch):
    encode, lock, left = shapes.encode_mp4, threading.Lock(), [7]

    def interrupted(frames, *, fps):
        with lock:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return encode(frames, fps=fps)

    monkeypatch.setattr(shapes, "encode_mp4", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_shapes(tmp_path, **SMALL)
    partial = sorted(tmp_path.glob("videos/*/*"))
    assert 0 < len(partial) <= 7
    assert all(len(decode(path)) == NUM_FRAMES for path in partial)
    assert not list(tmp_path.glob("*.jsonl"))
    times = {path: path.stat().st_mtime_ns for path in partial}
    (tmp_path / "videos/train/000011.mp4.part").write_bytes(b"killed while writing")

    monkeypatch.setattr(shapes, "encode_mp4", encode)
    prepare_shapes(tmp_path, **SMALL)
    names = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file() and path.suffix)
    assert names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file() and path.suffix)
    assert all((written / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    assert times == {path: path.stat().st_mtime_ns for path in partial}, "finished videos were written again"


def test_a_complete_folder_is_left_alone_and_a_lost_video_comes_back(written, tmp_path, monkeypatch):
    prepare_shapes(tmp_path, **SMALL)
    lost = tmp_path / "videos/test/000003.mp4"
    lost.unlink()
    prepare_shapes(tmp_path, **SMALL)
    assert lost.read_bytes() == (written / "videos/test/000003.mp4").read_bytes()

    monkeypatch.setattr(shapes, "encode_mp4", lambda *args, **kwargs: pytest.fail("encoded again"))
    prepare_shapes(tmp_path, **SMALL)


@pytest.mark.parametrize("change", [{"seed": 4}, {"num_train": 13}])
def test_a_folder_with_other_settings_is_refused_by_name(written, change):
    (name, value), before = *change.items(), SMALL[next(iter(change))]
    with pytest.raises(UserError, match=rf"{written}.*{name} is {before}, asked {value}.*data.root"):
        prepare_shapes(written, **(SMALL | change))


def test_a_folder_with_other_data_is_refused_and_untouched(tmp_path):
    (tmp_path / "train.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match=r"train\.jsonl.*data\.root"):
        prepare_shapes(tmp_path, **SMALL)
    assert (tmp_path / "train.jsonl").read_text() == "mine\n"
    assert not (tmp_path / "shapes.json").exists()


@pytest.mark.parametrize("text", ["{", "[1]", "{}"])
def test_a_damaged_manifest_is_one_clear_message(tmp_path, text):
    (tmp_path / "shapes.json").write_text(text)
    with pytest.raises(UserError, match=r"shapes\.json.*data\.root"):
        prepare_shapes(tmp_path, **SMALL)


def test_settings_out_of_range_name_the_setting(tmp_path):
    with pytest.raises(UserError, match="num_val is -1"):
        prepare_shapes(tmp_path / "new", **(SMALL | {"num_val": -1}))
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare_shapes(tmp_path / "file", **SMALL)
