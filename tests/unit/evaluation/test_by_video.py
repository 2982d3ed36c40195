"""Questions about one video are asked together: the answers stay, the video is encoded once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers import config
from vidtune.contracts import MediaRef, Message, Sample
from vidtune.data.media_source import MediaSource
from vidtune.data.questions import QuestionsReader
from vidtune.evaluation.answering import generate_answers, most_likely_options, reference_likelihoods
from vidtune.evaluation.by_video import group_by_video, of_one_video, share_by_video
from vidtune.models.base import VideoLLM
from vidtune.run.build import build_network, build_processor, prepare


def about(*videos: str) -> list[Sample]:
    """A question about each named video; text alone for an empty name."""
    return [
        Sample(str(i), (Message("user", ((MediaRef(video), "?") if video else ("?",))),))
        for i, video in enumerate(videos)
    ]


def test_a_video_is_never_in_two_batches_that_could_be_one() -> None:
    samples = about(*"aabbbcaacddddddddddb", "", "")
    groups = group_by_video(samples, 6)
    assert sorted(index for group in groups for index in group) == list(range(len(samples)))
    assert max(map(len, groups)) <= 6
    homes = Counter(video for group in groups for video in {samples[index].media for index in group} if video)
    assert {video[0].path: count for video, count in homes.items()} == {"a": 1, "b": 1, "c": 1, "d": 2}
    assert len(groups) == 4, "22 questions in batches of 6"


def test_questions_about_different_videos_keep_their_order() -> None:
    assert group_by_video(about(*"abcde"), 2) == [[0, 1], [2, 3], [4]]


def test_a_row_of_options_is_about_one_video() -> None:
    assert of_one_video(about("a", "b", "a", "", "a", ""), 2) == [[0, 2], [4], [1], [3], [5]]


def test_each_process_asks_whole_videos_and_about_as_many_questions() -> None:
    """Questions in turn would have every process read, encode and run every video."""
    samples = about(*"abcabcaabdef", "", "")
    shares = [share_by_video(samples, 8, rank, 3) for rank in range(3)]
    assert sorted(int(sample.sample_id) for share in shares for sample in share) == list(range(14))
    homes = Counter(video for share in shares for video in {sample.media for sample in share if sample.media})
    assert set(homes.values()) == {1} and len(homes) == 6
    assert [len(share) for share in shares] == [5, 5, 4]
    assert all(share == sorted(share, key=lambda sample: int(sample.sample_id)) for share in shares)


def test_a_video_with_more_questions_than_are_asked_at_once_keeps_every_process_busy() -> None:
    shares = [share_by_video(about(*"a" * 20), 4, rank, 2) for rank in range(2)]
    assert [len(share) for share in shares] == [12, 8]


class Asked:
    """A tiny model, its questions, and how often its tower ran."""

    def __init__(self, shapes: Path, cache_dir: Path) -> None:
        cfg = config("train", ["model=tiny", "data.prepare=null", f"paths.cache_dir={cache_dir}"])
        prepare(cfg)
        torch.manual_seed(3)
        self.network: VideoLLM = build_network(cfg).eval()
        for parameter in self.network.language.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # answers that differ from question to question
        self.processor = build_processor(cfg)
        self.source = MediaSource(self.processor)
        self.samples = QuestionsReader(str(shapes), "{split}.jsonl")("train")[:12]
        self.frames = 0
        self.network.vision.register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, arguments: tuple) -> None:
        self.frames += len(arguments[0])

    def __call__(self, ask: Callable, batch_size: int, **options) -> tuple[dict[str, str], int]:
        """Answers by question, and the number of frames that the tower encoded for them."""
        self.frames = 0
        answers = ask(
            self.network,
            self.processor,
            self.source,
            self.samples,
            batch_size=batch_size,
            num_workers=0,
            device="cpu",
            **options,
        )
        return {sample.sample_id: text for sample, text, _ in answers}, self.frames


@pytest.fixture(scope="module")
def asked(shapes: Path, cache_dir: Path) -> Asked:
    return Asked(shapes, cache_dir)


OPTIONS = ("red", "a blue circle moves left", "three", "yes", "the green square")
WAYS = {
    "generation": (generate_answers, {"max_new_tokens": 6}),
    "options": (most_likely_options, {"candidates": lambda sample: OPTIONS}),
    "reference": (reference_likelihoods, {}),
}


@pytest.mark.parametrize(("ask", "options"), WAYS.values(), ids=WAYS)
def test_answers_are_those_of_questions_asked_alone_and_each_video_is_encoded_once(
    asked: Asked, ask: Callable, options: dict
) -> None:
    alone, frames_alone = asked(ask, 1, **options)
    together, frames = asked(ask, 8, **options)
    assert len(set(alone.values())) > 1
    if ask is reference_likelihoods:
        assert together.keys() == alone.keys()
        for name, text in alone.items():
            assert len(_numbers(text)) == 3
            assert _numbers(together[name]) == pytest.approx(_numbers(text), rel=1e-5)
    else:
        assert together == alone
    videos = len({sample.media for sample in asked.samples})
    assert len(asked.samples) == 4 * videos
    assert frames * 4 == frames_alone


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"=(\S+)", text)]
