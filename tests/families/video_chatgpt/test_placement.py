"""Whoever asks, the prompt is the original's: the question, then the video; keys are shared only where it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers import config
from vidtune.commands.chat import Conversation
from vidtune.contracts import Message, Sample
from vidtune.data.benchmarks import GenerativeReader, ZeroShotReader
from vidtune.data.media_source import MediaSource
from vidtune.data.prompts import build_prompts
from vidtune.data.questions import QuestionsReader
from vidtune.data.rows import Encoder
from vidtune.data.video_instruct import VideoInstructReader
from vidtune.models.video_chatgpt.processor import INFER_SYSTEM, VideoChatGPTProcessor
from vidtune.models.video_chatgpt.tiny import write_tiny_checkpoint
from vidtune.run.predict import predict
from vidtune.text.encode import render_conversation

QUESTION = "What is shown?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def root(shapes: Path, tmp_path_factory) -> Path:
    """A video under the names of every data set, and the question in each set's form."""
    root = tmp_path_factory.mktemp("data")
    (root / "videos").mkdir()
    shutil.copy(next(shapes.rglob("*.mp4")), root / "videos/v_a.mp4")
    texts = {
        "generic": [{"video_name": "v_a", "Q": QUESTION, "A": "A circle."}],
        "test_q": [{"video_name": "a", "question": QUESTION, "question_id": "v_a_1"}],
        "test_a": [{"answer": "circle", "question_id": "v_a_1"}],
        "own": [{"video": "videos/v_a.mp4", "question": QUESTION, "answer": "A circle."}],
        "instruct": [
            {
                "id": "v_a",
                "video": "v_a.pkl",
                "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "A circle."}],
            }
            for asked in (f"{QUESTION}\n<video>", f"<video>\n{QUESTION}")
        ],
    }
    for name, rows in texts.items():
        (root / f"{name}.json").write_text(json.dumps(rows))
    return root


class Recorder:
    """Stands for a model, and keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Sample] = []

    def generate(self, samples):
        self.asked += samples
        return iter([(sample, "A circle.", "") for sample in samples])


def samples_of(what: str, root: Path, out: Path) -> list[Sample]:
    video = root / "videos/v_a.mp4"
    if what == "chat":
        chat = Conversation(recorder := Recorder(), str(video))
        chat.ask(QUESTION)
        return recorder.asked
    if what == "predict":
        recorder = Recorder()
        predict(lambda: recorder, [video], QUESTION, out, {})
        return recorder.asked
    readers = {
        "generative benchmark": lambda: GenerativeReader(str(root), {"generic": "generic.json"}, videos="videos"),
        "zero-shot questions": lambda: ZeroShotReader(str(root)),
        "own questions": lambda: QuestionsReader(str(root), "own.json"),
        "instructions": lambda: VideoInstructReader(str(root), "instruct.json"),
    }
    return readers[what]()("train" if what == "instructions" else "test")


def encoder(folder: Path, **options) -> Encoder:
    sizes = {"num_frames": 8, "image_size": 112, "num_temporal": 8, "feature_width": 32, "max_length": 512}
    processor = VideoChatGPTProcessor(str(folder), **sizes, **options)
    return Encoder(processor, MediaSource(processor), "infer")


@pytest.mark.parametrize(
    "what", ["chat", "predict", "generative benchmark", "zero-shot questions", "own questions", "instructions"]
)
def test_the_video_stands_behind_the_question_whoever_asks(what, folder, root, tmp_path):
    encode = encoder(folder)
    asked = samples_of(what, root, tmp_path / "out")
    assert asked
    for sample in asked:
        plans = encode.source.plan_all(sample.media, 0, "infer")
        text = render_conversation(sample.messages, plans, encode.processor.presets["infer"], generation=True)
        assert text == f"{INFER_SYSTEM} USER: {QUESTION}\n<visual×72> ASSISTANT:"
        encoded = encode(sample, generation=True)
        assert encoded.prefix_length > encoded.num_tokens - 8, "only the words for the answer follow"


def test_a_conversation_keeps_its_video_behind_the_first_question(folder, root):
    chat = Conversation(recorder := Recorder(), str(root / "videos/v_a.mp4"))
    chat.ask(QUESTION)
    chat.ask("And now?")
    encode = encoder(folder)
    [_, later] = recorder.asked
    plans = encode.source.plan_all(later.media, 0, "infer")
    text = render_conversation(later.messages, plans, encode.processor.presets["infer"], generation=True)
    assert text.endswith(f"USER: {QUESTION}\n<visual×72> ASSISTANT: A circle.</s>USER: And now? ASSISTANT:")


def test_questions_share_a_video_only_where_it_precedes_them(folder, root):
    [ref] = samples_of("own questions", root, root)[0].media
    samples = [Sample(text, (Message("user", (ref, text)),)) for text in (QUESTION, "Where is it?")]
    for template, shares in (("video-chatgpt_v1", False), ("video-chatgpt_v1_as_given", True)):
        encode = encoder(folder, infer_template=template)
        batch = build_prompts([encode(sample, generation=True) for sample in samples], encode.source, ["a", "b"])
        assert (batch.prefixes is not None) == shares
        media = batch.prompts.media if batch.prefixes is None else batch.prefixes.media
        assert len(media) == (1 if shares else 2)


@pytest.mark.parametrize("model", ["video_chatgpt", "video_chatgpt_tiny"])
def test_a_run_is_asked_as_it_was_trained(model):
    """The recipe has half of its questions before the video, users' own data has none."""
    own = config("train", [f"model={model}", "data=questions"])
    recipe = config("train", ["experiment=video_chatgpt_100k_connector", f"model={model}"])
    released = config("evaluate", [f"model={model}", "data=activitynet_qa"])
    templates = [cfg.model.processor.infer_template for cfg in (own, recipe, released)]
    assert templates == ["video-chatgpt_v1_as_given", "video-chatgpt_v1", "video-chatgpt_v1"]
