import json

import pytest

from tests.families.golden import golden_root
from vidtune.text.answers import (
    contains_answer,
    digits_for_number_words,
    exact_match,
    match_option,
    normalise,
    parse_choice_letter,
    parse_yes_no,
    token_f1,
)

PARSED = [
    pytest.param(list(table["index2ans"].values()), row, id=f"{path.parts[-3]}-{row['response'][:30]!r}")
    for path in sorted(golden_root().glob("*/case_*/tables/answers.json"))
    for table in [json.loads(path.read_text())]
    for row in table["table"]
]


def test_parser_goldens_are_there():
    assert PARSED


@pytest.mark.parametrize(("options", "row"), PARSED)
def test_letters_read_as_the_published_numbers_read_them(options, row):
    """Where the original draws a random letter, there is no answer."""
    expected = None if row["prediction"] == "<random>" else row["prediction"]
    assert parse_choice_letter(row["response"], options) == expected


def test_letters_beyond_the_options_are_no_answer():
    assert parse_choice_letter("E", ["x", "y"]) is None
    assert parse_choice_letter("B", []) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Cat, sat! ", "the cat sat"),
        ("don't", "dont"),
        ("mountain-climbers", "mountain climbers"),
        ("3.5 of 1,000.", "3.5 of 1000"),
        ("C++", "c++"),
        ("ＡＢＣ", "abc"),
        ("हिन्दी।", "हिन्दी"),
        ("?!", ""),
    ],
)
def test_same_answers_are_spelled_the_same(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Twenty-one dogs", "21 dogs"),
        ("ninety nine", "99"),
        ("two three", "2 3"),
        ("twenty eleven", "20 11"),
        ("thirty", "30"),
        ("someone", "someone"),
    ],
)
def test_number_words_equal_digits(text, expected):
    assert digits_for_number_words(text) == expected


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("Left", ["left", "right"], "left"),
        ("It moves to the LEFT.", ["left", "right"], "left"),
        ("upper left", ["left", "upper left"], "upper left"),
        ("in the upper left corner", ["left", "upper left"], "upper left"),
        ("left, no, upper left", ["left", "upper left"], None),
        ("not red but blue", ["red", "blue"], None),
        ("three", ["2", "3"], "3"),
        ("there are 3 of them", ["two", "three"], "three"),
        ("leftover", ["left", "right"], None),
        ("", ["left", ""], None),
        ("b", ["B", "b"], "b"),
        ("c++", ["C", "C++"], "C++"),
    ],
)
def test_free_answer_names_one_option_or_none(answer, options, expected):
    assert match_option(answer, options) == expected


def test_first_yes_or_no_counts():
    assert parse_yes_no("Yes, there is no dog.") == "yes"
    assert parse_yes_no("No.") == "no"
    assert parse_yes_no("I know nothing") is None


def test_exact_match_is_strict_and_containment_is_whole_words():
    assert exact_match("Play guitar.", "play guitar")
    assert not exact_match("he plays guitar", "guitar")
    assert contains_answer("There are two dogs.", "2")
    assert not contains_answer("There are 12 dogs.", "2")
    assert not contains_answer("anything", "")


def test_token_f1_by_hand():
    # answer {man, plays, guitar}, reference {guitar, man}: shared 2, P = 2/3, R = 1, F = 0.8
    assert token_f1("The man plays guitar", "a guitar man") == pytest.approx(0.8)
    assert token_f1("dog dog", "dog") == pytest.approx(2 / 3)
    assert token_f1("", "the") == 1.0
    assert token_f1("", "dog") == 0.0
