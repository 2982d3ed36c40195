"""Media that cannot be read end in one error with a reason, never in a crash, a hang or wrong frames."""

import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.unit.media.clips import CLIPS, read_number
from vidtune.contracts import MediaRef, UserError
from vidtune.media import MediaError, deadline, probe, read_frames, read_with_deadline


def cut(source: str, path: Path, share: float) -> None:
    data = Path(source).read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def no_frames(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 160, "yuv420p"
        container.start_encoding()


def fast_start(clip) -> str:
    return clip("faststart.mov")


DAMAGE = {
    "missing.mp4": (lambda path, clip: None, "does not exist"),
    "empty.mp4": (lambda path, clip: path.write_bytes(b""), "empty"),
    "text.mp4": (lambda path, clip: path.write_text("<html>404 not found</html>"), "cannot be read as a video"),
    "image_text.png": (lambda path, clip: path.write_text("not a picture"), "not an image"),
    "no_table.mp4": (lambda path, clip: cut(clip("short_groups.mp4"), path, 0.5), "cannot be read as a video"),
    "truncated.mov": (lambda path, clip: cut(fast_start(clip), path, 0.6), "truncated"),
    "audio.mp4": (lambda path, clip: audio_only(path), "no video stream"),
    "no_frames.mp4": (lambda path, clip: no_frames(path), "video"),
    "folder": (lambda path, clip: path.mkdir(), "no images"),
    "pipe.mp4": (lambda path, clip: os.mkfifo(path), "regular file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_unreadable_media_give_one_error_with_path_and_reason(name, clip, tmp_path):
    path = tmp_path / name
    make, reason = DAMAGE[name]
    make(path, clip)
    for attempt in (probe, lambda ref: list(read_frames(ref, [0]))):
        with pytest.raises(MediaError, match=reason) as caught:
            attempt(MediaRef(str(path)))
        assert caught.value.path == str(path)


def test_the_error_survives_the_trip_from_a_worker():
    error = pickle.loads(pickle.dumps(MediaError("a.mp4", "is broken")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "is broken", "a.mp4: is broken")


def test_a_truncated_mkv_gives_the_frames_that_are_there(clip, tmp_path):
    path = tmp_path / "cut.mkv"
    cut(clip("short_groups.mkv"), path, 0.6)
    count = probe(MediaRef(str(path))).num_frames
    assert 60 < count < 120
    numbers = [read_number(frame) for frame in read_frames(MediaRef(str(path)), range(count - 2))]
    assert numbers == list(range(count - 2))


def test_damage_in_the_middle_does_not_shift_later_frames(clip, tmp_path):
    path = tmp_path / "damaged.mp4"
    data = bytearray(Path(clip("short_groups.mp4")).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = np.random.default_rng(0).bytes(300)
    path.write_bytes(data)
    numbers = [read_number(frame) for frame in read_frames(MediaRef(str(path)), [0, 10, 140, 149])]
    assert numbers == [0, 10, 140, 149]


# ------------------------------------------------------------------------------------------------------ deadlines


def hanging():
    yield np.zeros((2, 3, 3), np.uint8)
    time.sleep(600)
    yield np.zeros((2, 3, 3), np.uint8)


def failing(error):
    yield np.zeros((2, 3, 3), np.uint8)
    raise error


@pytest.fixture
def forks(monkeypatch):
    """Process ids of the children forked in a test."""
    children, fork = [], os.fork

    def remember():
        children.append(fork())
        return children[-1]

    monkeypatch.setattr(os, "fork", remember)
    return children


@pytest.fixture(autouse=True)
def no_reader_left_over(monkeypatch):
    """Every test forks its own."""
    monkeypatch.setattr(deadline, "_idle", [])


def counting(seconds_between=0.0):
    for number in range(3):
        yield np.full((1, 1, 3), number, np.uint8)
        time.sleep(seconds_between)


def crashing():
    yield np.zeros((1, 1, 3), np.uint8)
    os.kill(os.getpid(), signal.SIGKILL)


def huge():
    yield np.arange(5000 * 5000 * 3, dtype=np.uint32).astype(np.uint8).reshape(5000, 5000, 3)


def test_a_hanging_decode_is_killed(forks):
    began = time.monotonic()
    frames = read_with_deadline(hanging, seconds=3, path="hangs.ts")
    with pytest.raises(MediaError, match=r"hangs\.ts.*within 3 s"):
        next(frames)
    assert time.monotonic() - began < 60
    with pytest.raises(ChildProcessError):
        os.waitpid(forks[0], os.WNOHANG)  # dead and reaped


def test_the_callers_own_work_does_not_count():
    frames = read_with_deadline(counting, seconds=2, path="x")
    values = []
    for frame in frames:
        values.append(int(frame[0, 0, 0]))
        time.sleep(0.9)
    assert values == [0, 1, 2]


@pytest.mark.parametrize("error", [MediaError("a.mp4", "broken"), UserError("media.backend=x"), RuntimeError("what")])
def test_errors_come_through_from_the_child(error):
    expected = UserError if isinstance(error, UserError) else MediaError
    with pytest.raises(expected, match=str(error.args[-1])):
        list(read_with_deadline(failing, error, seconds=5, path="a.mp4"))


def test_a_crashing_decoder_is_an_unreadable_medium():
    with pytest.raises(MediaError, match="crashed"):
        list(read_with_deadline(crashing, seconds=5, path="x"))


def test_one_child_reads_one_medium_after_another(clip, forks):
    """Bad ones included: a fork for each would cost more than a short clip."""
    for _ in range(3):
        frames = read_frames(MediaRef(clip("short_groups.mp4")), [3, 100], deadline_s=30)
        assert [read_number(frame) for frame in frames] == [3, 100]
        with pytest.raises(MediaError, match="does not exist"):
            list(read_frames(MediaRef("nowhere.mp4"), [0], deadline_s=30))
        assert probe(MediaRef(clip("short_groups.mp4")), deadline_s=30).num_frames == 150
    assert len(forks) == 1


def test_two_media_may_be_read_by_turns():
    pairs = zip(read_with_deadline(counting, seconds=9, path="x"), read_with_deadline(counting, seconds=9, path="y"))
    assert [(int(a[0, 0, 0]), int(b[0, 0, 0])) for a, b in pairs] == [(0, 0), (1, 1), (2, 2)]


def test_a_reader_left_early_serves_nobody_elses_frames():
    next(iter(read_with_deadline(counting, 0.2, seconds=9, path="x")))
    assert [int(frame[0, 0, 0]) for frame in read_with_deadline(counting, seconds=9, path="y")] == [0, 1, 2]


def test_frames_larger_than_the_shared_memory_arrive_whole():
    (frame,) = read_with_deadline(huge, seconds=60, path="x")
    assert np.array_equal(frame, next(huge()))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_to_the_whole_group_makes_no_medium_look_broken(forks, name):
    frames = read_with_deadline(counting, 0.3, seconds=9, path="x")
    next(frames)
    os.kill(forks[0], getattr(signal, name))
    assert len(list(frames)) == 2


def test_a_reader_keeps_no_lock_or_socket_of_its_parent_alive(tmp_path):
    with (tmp_path / "file").open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        deadline.start_reader()
    with (tmp_path / "file").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert list(read_with_deadline(counting, seconds=9, path="x"))


def test_a_child_does_not_outlive_its_parent():
    code = (
        "import os, signal; from vidtune.media import deadline; deadline.start_reader();"
        "print(deadline.idle_readers()[0].pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=60
    )
    child, end = int(done.stdout), time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()


def test_slow_files_are_given_up(clip):
    with pytest.raises(MediaError, match="within 0 s"):
        list(read_frames(MediaRef(clip("long_groups.mp4")), range(150), deadline_s=0.0))


# -------------------------------------------------------------------------------------------------------- workers


class Numbers(Dataset):
    """Bar codes read in a data worker; the last item hangs."""

    def __init__(self, paths: list[str], backend: str) -> None:
        self.paths, self.backend = paths, backend

    def __len__(self) -> int:
        return len(self.paths) + 1

    def __getitem__(self, item: int) -> torch.Tensor:
        if item == len(self.paths):
            try:
                list(read_with_deadline(hanging, seconds=2, path="hangs"))
            except MediaError:
                return torch.tensor([-1, -1, -1])
        frames = read_frames(MediaRef(self.paths[item]), [0, 149, 60], backend=self.backend, deadline_s=60)
        return torch.tensor([read_number(frame) for frame in frames])


@pytest.mark.parametrize(
    "start, backend, workers",
    [
        ("fork", "auto", 0),
        ("fork", "auto", 4),
        ("fork", "decord", 1),
        ("spawn", "decord", 1),
        ("spawn", "auto", 4),
        ("forkserver", "auto", 2),
    ],
)
def test_workers_of_every_kind_read_and_survive_a_hang(clip, start, backend, workers):
    if backend == "decord":
        pytest.importorskip("decord", reason="no decord on this platform")
    paths = [clip(name) for name in ("short_groups.mp4", "long_groups.mp4", "short_groups.mkv")]
    list(read_frames(MediaRef(paths[0]), [0], backend=backend))  # the parent has used the decoder
    processes = {"num_workers": workers, "multiprocessing_context": start, "timeout": 120} if workers else {}
    loader = DataLoader(Numbers(paths, backend), **processes)
    assert [row[0].tolist() for row in loader] == [[0, 149, 60]] * 3 + [[-1, -1, -1]]


SOAK = """
import json, sys
from vidtune.contracts import MediaRef
from vidtune.media import read_frames
rss = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
paths, backend, opens = json.loads(sys.argv[1])
sizes = []
for number in range(opens):
    for frame in read_frames(MediaRef(paths[number % len(paths)]), [0, 20, 49], backend=backend):
        pass
    if number in (opens // 5, opens - 1):
        sizes.append(rss())
print(json.dumps(sizes))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "decord"])
def test_memory_stays_flat_over_two_thousand_opens(clip, backend):
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident size is read from /proc")
    names = [name for name, spec in CLIPS.items() if spec.decord or backend == "auto"]
    request = json.dumps([[clip(name) for name in names], backend, 2000])
    done = subprocess.run(
        [sys.executable, "-c", SOAK, request], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    first, last = json.loads(done.stdout.splitlines()[-1])
    print(f"{backend}: {first:.0f} MB after 400 opens, {last:.0f} MB after 2000")
    assert last - first < 25, f"resident size grew from {first:.0f} to {last:.0f} MB"
