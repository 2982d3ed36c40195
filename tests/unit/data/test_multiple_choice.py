"""Multiple-choice tables: the answer that is trained is the one the table marks."""

import json

import pytest

from vidtune.contracts import UserError
from vidtune.data.multiple_choice import MultipleChoiceReader

HEADER = "vid,q,right,kind,o1,o2,o3\n"
OPTIONS = {
    "columns": {"video": "vid", "question": "q", "answer": "right", "question_type": "kind"},
    "option_columns": ["o1", "o2", "o3"],
    "video": "videos/{video}.mp4",
}


def read(tmp_path, *lines: str, header: str = HEADER, **options):
    (tmp_path / "q.csv").write_text(header + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return MultipleChoiceReader(str(tmp_path), "q.csv", **(OPTIONS | options))("train")


def test_columns_prompt_and_letters_are_configuration(tmp_path):
    (sample,) = read(
        tmp_path,
        '7,"why, then",2,CW,red, green ,blue',
        prompt="{question}?\n{options}Letter:",
        option="({letter}) {text}\n",
        answer="{letter}. {text}",
    )
    ref, text = sample.messages[0].content
    assert ref.path == str(tmp_path / "videos/7.mp4")
    assert text == "why, then?\n(A) red\n(B) green\n(C) blue\nLetter:"
    assert sample.messages[1].content == ("C. blue",)
    assert (sample.answer, sample.options, sample.question_type) == ("blue", ("red", "green", "blue"), "CW")


@pytest.mark.parametrize(
    ("cell", "one_based", "expected"),
    [("0", False, "red"), ("1", True, "red"), ("b", False, "green"), ("blue", True, "blue")],
)
def test_answers_as_numbers_letters_or_text(tmp_path, cell, one_based, expected):
    (sample,) = read(tmp_path, f"7,q,{cell},,red,green,blue", one_based=one_based)
    assert sample.answer == expected


def test_an_empty_cell_is_no_option(tmp_path):
    assert read(tmp_path, "7,q,1,,red,green,")[0].options == ("red", "green")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7,q,3,,red,green,blue", "answer '3' is none of the 3 options"),
        ("7,q,0,,red,,", "1 options"),
        ("7,q,0,,red,green,blue,more", "expected 7 cells"),
    ],
)
def test_a_broken_row_is_named(tmp_path, line, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, "7,q,0,,red,green,blue", line)
    assert "row 2" in str(error.value)


def test_missing_columns_map_entries_and_doubled_ids_are_named(tmp_path):
    with pytest.raises(UserError, match="no column 'right'"):
        read(tmp_path, "7,q,red,green,blue", header="vid,q,o1,o2,o3\n")
    (tmp_path / "map.json").write_text(json.dumps({"8": "0001/8"}))
    with pytest.raises(UserError, match=r"'7' is not in map\.json"):
        read(tmp_path, "7,q,0,,red,green,blue", video_map="map.json")
    assert read(tmp_path, "8,q,0,,a,b,c", video_map="map.json")[0].media[0].path.endswith("videos/0001/8.mp4")
    columns = OPTIONS["columns"] | {"id": "vid+q"}
    with pytest.raises(UserError, match="rows 1 and 2 have one id, '7_q'"):
        read(tmp_path, "7,q,0,,a,b,c", "7,q,1,,a,b,c", columns=columns)
