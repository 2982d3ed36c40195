"""Conversation files of users: where media end up, which spellings are understood, which mistakes are named."""

import json
from pathlib import Path

import pytest

from vidtune.contracts import MediaRef, UserError
from vidtune.data.conversations import ConversationsReader


def write(root: Path, rows: list[dict], name: str = "rows.json") -> Path:
    path = root / name
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(lines if name.endswith("l") else json.dumps(rows))
    return path


def talk(*texts: str) -> list[dict]:
    return [{"from": "human" if i % 2 == 0 else "gpt", "value": text} for i, text in enumerate(texts)]


def read(tmp_path: Path, *rows: dict, name: str = "rows.json", **options) -> list:
    write(tmp_path, list(rows), name)
    return ConversationsReader(str(tmp_path), name, **options)("train")


def shape(sample) -> list[tuple[str, list[str]]]:
    """Roles and contents with media as their file names in brackets."""
    return [
        (message.role, [f"[{Path(p.path).name}]" if isinstance(p, MediaRef) else p for p in message.content])
        for message in sample.messages
    ]


def test_a_tag_stays_where_it_stands_and_a_missing_one_is_inserted(tmp_path):
    kept, inserted = read(
        tmp_path,
        {"video": "a.mp4", "conversations": talk("Look: <video>\nwhat?", "a dog")},
        {"video": "a.mp4", "conversations": talk("what?", "a dog", "really?", "yes")},
    )
    assert shape(kept) == [("user", ["Look: ", "[a.mp4]", "\nwhat?"]), ("assistant", ["a dog"])]
    assert shape(inserted) == [
        ("user", ["[a.mp4]", "\nwhat?"]),
        ("assistant", ["a dog"]),
        ("user", ["really?"]),
        ("assistant", ["yes"]),
    ]
    assert inserted.answer == "yes"


def test_first_moves_media_to_the_front_as_vila_does(tmp_path):
    # The expected text is the one measured from the original for its spec.
    (sample,) = read(
        tmp_path,
        {"image": ["1.png", "2.png"], "video": "3.mp4", "conversations": talk("A <image> B <image> differ?", "yes")},
        media_position="first",
    )
    assert shape(sample)[0] == ("user", ["[1.png]", "[2.png]", "[3.mp4]", "A  B  differ?"])
    (sample,) = read(tmp_path, {"video": "3.mp4", "conversations": talk("<video>\nwhat?", "a")}, media_position="first")
    assert shape(sample)[0] == ("user", ["[3.mp4]", "what?"])


def test_both_spellings_of_roles_turns_and_media_read_alike(tmp_path):
    llava, messages, typed = read(
        tmp_path,
        {"images": ["a.png"], "conversations": talk("<image>\nwhat?", "x")},
        {
            "image": "a.png",
            "messages": [{"role": "user", "content": "<image>\nwhat?"}, {"role": "assistant", "content": "x"}],
        },
        {
            "image": "a.png",
            "messages": [
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "\nwhat?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "x"}]},
            ],
        },
    )
    assert llava.messages == messages.messages == typed.messages


def test_a_video_set_may_write_image_tags(tmp_path):
    (sample,) = read(tmp_path, {"video": "a.mp4", "conversations": talk("<image>\nwhat?", "x")})
    assert shape(sample)[0] == ("user", ["[a.mp4]", "\nwhat?"]) and sample.media[0].kind == "video"


def test_mixed_kinds_follow_their_own_tags(tmp_path):
    (sample,) = read(tmp_path, {"image": "i.png", "video": "v.mp4", "conversations": talk("<video> or <image>?", "x")})
    assert shape(sample)[0] == ("user", ["[v.mp4]", " or ", "[i.png]", "?"])


def test_text_only_rows_segments_absolute_paths_and_prompts(tmp_path):
    text, segment = read(
        tmp_path,
        {"conversations": talk("Name a dog.", "Rex")},
        {"video": "/elsewhere/a.mp4", "start": 1.5, "end": 4, "conversations": talk("what?", "x")},
        system_prompt="",
    )
    assert shape(text) == [("system", [""]), ("user", ["Name a dog."]), ("assistant", ["Rex"])]
    assert segment.media == (MediaRef("/elsewhere/a.mp4", "video", 1.5, 4),)


def test_images_of_a_set_with_videos_are_not_tiled(tmp_path):
    image = {"image": "a.png", "conversations": talk("what?", "x")}
    video = {"video": "a.mp4", "conversations": talk("what?", "x")}
    assert read(tmp_path, image)[0].media[0].tiled
    assert not read(tmp_path, image, video)[0].media[0].tiled
    assert not read(tmp_path, image, is_video=True)[0].media[0].tiled


def test_rows_about_one_video_share_a_split_and_no_row_is_lost(tmp_path):
    rows = [{"video": f"{i // 3}.mp4", "conversations": talk(f"q{i}", "x")} for i in range(300)]
    write(tmp_path, rows)
    reader = ConversationsReader(str(tmp_path), "rows.json", val_fraction=0.2, test_fraction=0.2)
    splits = {split: reader(split) for split in ("train", "val", "test")}
    videos = {split: {sample.media[0].path for sample in samples} for split, samples in splits.items()}
    assert sum(map(len, splits.values())) == 300
    assert len(videos["train"] | videos["val"] | videos["test"]) == sum(map(len, videos.values()))
    assert all(10 <= len(videos[split]) <= 30 for split in ("val", "test"))


def test_jsonl_with_unicode_line_separators_keeps_its_rows(tmp_path):
    rows = [{"conversations": talk("a\u2028b", "x")}, {"conversations": talk("c", "y")}]
    assert len(read(tmp_path, *rows, name="rows.jsonl")) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a"}, "no 'conversations'"),
        ({"conversations": []}, "no turns"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "role 'bot'"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "expected a user turn"),
        ({"image": "a", "conversations": talk("<image><image>", "x")}, "2 <image> or <video> tags but 1 media"),
        ({"image": [3], "conversations": talk("a", "x")}, "image=3"),
        ({"image": "a", "video": "b", "conversations": talk("<image> <image>", "x")}, "do not name the kinds"),
    ],
)
def test_a_broken_row_is_named_with_what_is_wrong(tmp_path, row, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, {"conversations": talk("a", "b")}, row)
    assert "row 2" in str(error.value)
