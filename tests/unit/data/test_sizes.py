"""Token lengths kept on disk: the same as measured anew, and never those of other rows or another recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.broken_clips import write_clip
from vidtune.contracts import Encoded, MediaPlan, MediaRef, Message, Sample, VisualSpan
from vidtune.data.media_source import MediaSource
from vidtune.data.rows import Encoder
from vidtune.data.sizes import measure, processor_digest


class WordProcessor:
    """A token per word, one per medium frame asked for."""

    tokenizer = "words"

    def __init__(self, frames: int = 2) -> None:
        self.frames, self.calls = frames, 0

    def plan_media(self, info, rng, preset):
        return MediaPlan(info, tuple(range(self.frames)), (0.0,) * self.frames, (VisualSpan(self.frames),))

    def encode(self, messages, plans, **kwargs) -> Encoded:
        self.calls += 1
        words = sum(len(message.text.split()) for message in messages)
        visual = sum(plan.num_placeholders for plan in plans)
        return Encoded([1] * (words + visual), [1] * (words + visual), [], tuple(plans), visual)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    write_clip(tmp_path / "a.mp4", 0)
    turns = (Message("user", (MediaRef(str(tmp_path / "a.mp4")), "what is it")), Message("assistant", ("red",)))
    return [Sample("1", turns), Sample("2", (Message("user", ("hello you",)), Message("assistant", ("yes",))))]


def encoder(processor: WordProcessor, cache: Path, variant=None) -> Encoder:
    return Encoder(processor, MediaSource(processor, cache_dir=str(cache), variant=variant), "train")


def test_lengths_are_measured_once_and_again_when_anything_changes(samples, tmp_path):
    first, second = WordProcessor(), WordProcessor()
    digest = processor_digest(first, {"num_frames": 2})
    sizes = measure(samples, encoder(first, tmp_path), tmp_path / "sizes", digest)
    assert [size.num_tokens for size in sizes] == [2 + 4, 3] and first.calls == 2
    assert measure(samples, encoder(second, tmp_path), tmp_path / "sizes", digest) == sizes and second.calls == 0

    other = processor_digest(second, {"num_frames": 3})
    assert other != digest
    measure(samples, encoder(second, tmp_path), tmp_path / "sizes", other)
    measure(samples[:1], encoder(second, tmp_path), tmp_path / "sizes", digest)
    write_clip(Path(samples[0].media[0].path), 5)
    measure(samples, encoder(second, tmp_path), tmp_path / "sizes", digest)
    assert second.calls == 2 + 1, "a clip of the same header needs no new lengths; other rows and recipes do"


def test_a_set_of_a_mixture_brings_its_own_frame_count(samples, tmp_path):
    built = []

    def variant(num_frames, sampling):
        built.append((num_frames, sampling))
        return WordProcessor(num_frames)

    ref = replace(samples[0].media[0], num_frames=7)
    row = Sample("3", (Message("user", (ref, "what")), Message("assistant", ("red",))))
    sizes = measure([samples[0], row, row], encoder(WordProcessor(), tmp_path, variant))
    assert [size.num_tokens for size in sizes] == [6, 9, 9] and built == [(7, None)]
