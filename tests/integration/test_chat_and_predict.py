"""`vidtune chat` and `vidtune predict` as a user types them."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from vidtune.commands.main import main
from vidtune.evaluation.records import read_predictions

QUESTION = "which shape is it ?"


@pytest.fixture
def clips(shapes: Path, tmp_path: Path) -> Path:
    """A folder with three readable videos and one that is text."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for video in sorted(shapes.rglob("*.mp4"))[:3]:
        (folder / video.name).write_bytes(video.read_bytes())
    (folder / "zz_broken.mp4").write_text("this is no video")
    return folder


def model(tiny_run: Path) -> list[str]:
    return ["--run", str(tiny_run), "--max-new-tokens", "4", "data.num_workers=0", "hardware=cpu"]


def test_one_question_gets_one_answer_on_stdout(tiny_run, clips, capsys):
    video = sorted(clips.glob("*.mp4"))[0]
    assert main(["chat", "--video", str(video), "--question", QUESTION, *model(tiny_run)]) == 0
    answer = capsys.readouterr().out
    # The same question through predict: both must give the run's answer.
    assert main(["predict", "--videos", str(video), "--question", QUESTION, *model(tiny_run)]) == 0
    [prediction] = read_predictions(tiny_run / "predictions/predictions.jsonl")
    assert answer == prediction.prediction + "\n"


def test_the_prompt_keeps_the_conversation_and_takes_another_video(tiny_run, clips, capsys, monkeypatch):
    videos = sorted(clips.glob("*.mp4"))[:3]
    lines = [
        QUESTION,
        QUESTION,
        f"/video {videos[1]}",
        QUESTION,
        "/video nowhere.mp4",
        "/help",
        "/new",
        QUESTION,
        "/quit",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    assert main(["chat", "--video", str(videos[0]), *model(tiny_run)]) == 0
    out = capsys.readouterr().out
    assert "nowhere.mp4: there is no such video" in out
    assert out.count("> ") == len(lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--video", "nowhere.mp4"], "nowhere.mp4: there is no such video"),
        (["--video", "BROKEN"], "it cannot be read"),
    ],
)
def test_a_video_that_cannot_be_shown_is_one_message(tiny_run, clips, capsys, words, message):
    words = [str(clips / "zz_broken.mp4") if word == "BROKEN" else word for word in words]
    assert main(["chat", *words, "--question", QUESTION, *model(tiny_run)]) == 1
    assert message in capsys.readouterr().err


def test_predictions_go_on_after_a_kill_and_list_the_bad_clips(tiny_run, clips, tmp_path, capsys):
    output = tmp_path / "answers"
    command = ["predict", "--videos", str(clips), "--question", QUESTION, "--output", str(output), *model(tiny_run)]
    assert main(command) == 0
    whole = (output / "predictions.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (output / "predictions.jsonl").write_bytes(lines[0] + lines[1][:20])
    (output / "predictions.csv").unlink()
    assert main(command) == 0
    assert (output / "predictions.jsonl").read_bytes() == whole
    rows = list(csv.DictReader((output / "predictions.csv").open()))
    assert [Path(row["video"]).name for row in rows] == [path.name for path in sorted(clips.iterdir())]
    [bad] = csv.DictReader((output / "bad_media.csv").open())
    assert bad["video"].endswith("zz_broken.mp4") and bad["reason"]
    assert "1 of 4 videos could not be read" in capsys.readouterr().out
    assert json.loads(whole.splitlines()[-1])["status"] == "bad_media"

    command[command.index(QUESTION)] = "another question ?"
    assert main(command) == 1
    assert "begun with other settings" in capsys.readouterr().err


def test_an_untuned_model_answers_a_list_of_videos(clips, cache_dir, tmp_path):
    paths = tmp_path / "clips.txt"
    paths.write_text("".join(f"clips/{path.name}\n" for path in sorted(clips.iterdir())[:3]))
    words = ["--model", "tiny", "--max-new-tokens", "3", "hardware=cpu", f"paths.cache_dir={cache_dir}"]
    words += ["data.num_workers=0", "--output", str(tmp_path / "out")]
    assert main(["predict", "--videos", str(paths), "--question", QUESTION, *words]) == 0
    assert len(read_predictions(tmp_path / "out/predictions.jsonl")) == 3


def test_a_folder_without_videos_is_refused(tiny_run, tmp_path, capsys):
    assert main(["predict", "--videos", str(tmp_path), "--question", QUESTION, *model(tiny_run)]) == 1
    assert "found no video" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["aria", "nvila", "video_chatgpt", "internvideo25", "video_llama"])
def test_every_family_talks_about_a_video_and_answers_a_folder(family, clips, cache_dir, tmp_path, capsys):
    words = ["--model", f"{family}_tiny", "--max-new-tokens", "3", "hardware=cpu", f"paths.cache_dir={cache_dir}"]
    output = tmp_path / "out"
    command = ["predict", "--videos", str(clips), "--question", QUESTION, "--output", str(output), *words]
    assert main([*command, "data.num_workers=0"]) == 0
    predictions = read_predictions(output / "predictions.jsonl")
    assert [p.status for p in predictions] == ["ok", "ok", "ok", "bad_media"]
    capsys.readouterr()
    assert main(["chat", "--video", predictions[0].sample_id, "--question", QUESTION, *words]) == 0
    assert capsys.readouterr().out == predictions[0].prediction + "\n"
