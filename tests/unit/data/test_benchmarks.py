"""Benchmark files are read as published; what they lack is named, and a missing video never borrows another one."""

import json
from pathlib import Path

import pytest

from tests.helpers import config
from vidtune.contracts import MediaRef, UserError
from vidtune.data.benchmarks import GenerativeReader, ZeroShotReader

GENERIC = [
    {"video_name": "v_a", "Q": "What is it?", "A": "A dog."},
    {"video_name": "v_b.1", "Q": "Where?", "A": "Here."},
]
PAIRS = [{"video_name": "v_a", "Q1": "Who waves?", "Q2": "Which person greets?", "A": "A child."}]
QUESTIONS = [
    {"video_name": "a", "question": "is it a dog", "question_id": "q1"},
    {"video_name": "gone", "question": "how many", "question_id": "q2"},
]
ANSWERS = [{"answer": "4", "type": 7, "question_id": "q2"}, {"answer": "yes", "type": 3, "question_id": "q1"}]


def write(root: Path, videos: str = "videos", **files: list) -> str:
    (root / videos).mkdir(exist_ok=True)
    for name in ("v_a.mkv", "v_b.1.mp4", "notes.txt"):
        (root / videos / name).touch()
    for name, rows in files.items():
        (root / f"{name}.json").write_text(json.dumps(rows))
    return str(root)


def generative(root: Path, **options):
    files = {"generic": "generic.json", "temporal": None, "consistency": "pairs.json"}
    return GenerativeReader(write(root, "Test_Videos", generic=GENERIC, pairs=PAIRS), files, **options)("test")


def zero_shot(root: Path, questions=QUESTIONS, answers=ANSWERS, **options):
    return ZeroShotReader(write(root, test_q=questions, test_a=answers), **options)("test")


def test_a_pair_of_questions_is_asked_twice_and_files_are_question_types(tmp_path):
    samples = generative(tmp_path)
    assert [(s.sample_id, s.question_type, s.answer) for s in samples] == [
        ("generic:1", "generic", "A dog."),
        ("generic:2", "generic", "Here."),
        ("consistency:1:Q1", "consistency", "A child."),
        ("consistency:1:Q2", "consistency", "A child."),
    ]
    assert [Path(s.media[0].path).name for s in samples] == ["v_a.mkv", "v_b.1.mp4", "v_a.mkv", "v_a.mkv"]
    assert samples[3].messages[0].text == "Which person greets?"


@pytest.mark.parametrize(
    ("placement", "text", "place"), [("video_first", "Look. What is it?", 0), ("original", "Look. What is it?\n", 1)]
)
def test_the_video_stands_before_the_question_or_after_it_as_in_the_originals_inference(
    tmp_path, placement, text, place
):
    sample = generative(tmp_path, prompt="Look. {question}", media_placement=placement)[0]
    assert isinstance(sample.messages[0].content[place], MediaRef) and sample.messages[0].text == text


def test_answers_are_matched_by_id_and_a_missing_video_stays_missing(tmp_path):
    one, other = zero_shot(tmp_path, types={3: "yes/no", 7: "number"})
    assert (one.sample_id, one.answer, one.question_type) == ("q1", "yes", "yes/no")
    assert Path(one.media[0].path).name == "v_a.mkv", "ActivityNet-QA leaves out the v_"
    assert (other.answer, other.question_type) == ("4", "number")
    assert not Path(other.media[0].path).exists()


def test_the_sets_own_file_holds_questions_and_answers_in_one(tmp_path):
    rows = [{"id": 5, "video_id": 7, "question": "what", "answer": "dog"}]
    root = write(tmp_path, test_qa=rows)
    (tmp_path / "videos/vid7.avi").touch()
    [sample] = ZeroShotReader(root, questions="{split}_qa.json", answers=None, video="vid{video_id}")("test")
    assert (sample.sample_id, sample.answer) == ("5", "dog") and sample.media[0].path.endswith("vid7.avi")
    with pytest.raises(UserError, match=r"row 1: data.reader.video='\{video_name\}' names 'video_name'"):
        ZeroShotReader(root, questions="{split}_qa.json", answers=None)("test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": ANSWERS[:1]}, "row 1: .*has no answer to question_id 'q1'"),
        ({"questions": QUESTIONS[:1] * 2}, "row 2: question_id 'q1' stands in an earlier row"),
        ({"questions": [{"question": "q"}]}, "row 1: no 'question_id'"),
        ({"types": {3: "yes/no"}}, "row 2: type '7'; data.reader.types has 3"),
        ({"prompt": "Answer."}, "must hold {question}"),
        ({"media_placement": "first"}, "media_placement='first'; expected one of original, video_first"),
        ({"videos": "clips"}, "clips: no video or feature file lies there"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        zero_shot(tmp_path, **options)


def test_a_generative_row_without_its_question_is_named(tmp_path):
    root = write(tmp_path, "Test_Videos", generic=[{"video_name": "v_a", "A": "x"}])
    with pytest.raises(UserError, match="row 1: no 'Q'"):
        GenerativeReader(root, {"generic": "generic.json"})("test")
    with pytest.raises(UserError, match="names no file"):
        GenerativeReader(root, {"generic": None})
    with pytest.raises(UserError, match=r"Set data\.reader\.files\.generic"):
        GenerativeReader(root, {"generic": "other.json"})("test")


@pytest.mark.parametrize("name", ["msvd_qa", "msrvtt_qa", "tgif_qa", "activitynet_qa"])
def test_every_zero_shot_set_has_its_name_and_folder(name):
    cfg = config("evaluate", [f"data={name}"])
    assert (cfg.data.name, cfg.data.reader.name, cfg.data.root) == (name, name, f"data/{name}")
    assert cfg.data.task.name == "judged_answer"
