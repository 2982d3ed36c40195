"""Reading answers out of generated text: pure functions on strings.

Nothing here guesses. A text that holds no answer, or holds several that contradict each other, reads as ``None``;
the caller counts it as wrong and as unparsed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBERS = {word: value for value, word in enumerate(_UNITS)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_REPLY_LETTER = re.compile(r"\(?([A-Z])\)?(?:[.:)].*)?", re.DOTALL)
_ARTICLES = frozenset({"a", "an", "the"})


def normalise(text: str) -> str:
    """Lower-case words with single spaces: what "the same answer" means everywhere in vidtune.

    Unicode is composed (NFKC), apostrophes vanish (``don't`` = ``dont``), any other punctuation separates words, save
    a point or comma between digits (``3.5`` stays one word, ``1,000`` = ``1000``). Only characters that Unicode calls
    punctuation go, so that scripts with combining vowel signs and symbols such as ``+`` survive.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"['’`]", "", text)
    decimal_points = {match.start() for match in re.finditer(r"(?<=\d)\.(?=\d)", text)}
    kept = (
        " " if unicodedata.category(char).startswith("P") and i not in decimal_points else char
        for i, char in enumerate(text)
    )
    return " ".join("".join(kept).split())


def digits_for_number_words(text: str) -> str:
    """Normalised text with English number words below one hundred as digits: ``Twenty-one dogs`` -> ``21 dogs``."""
    words: list[str] = []
    ten_before = False  # whether the previous word was a ten that a unit may still join: "twenty" + "one"
    for word in normalise(text).split():
        value = _NUMBERS.get(word)
        if value is None:
            words.append(word)
        elif ten_before and 1 <= value <= 9:
            words[-1] = str(int(words[-1]) + value)
        else:
            words.append(str(value))
        ten_before = word in _TENS
    return " ".join(words)


def named_option(reply: str, options: Sequence[str]) -> str:
    """The option that a data set's own reply names by its letter (``B``, ``(B)``, ``B. a dog``), else the reply."""
    letter = _REPLY_LETTER.fullmatch(reply.strip())
    if letter is None or reply in options or LETTERS.index(letter[1]) >= len(options):
        return reply
    return options[LETTERS.index(letter[1])]


def parse_choice_letter(response: str, options: Sequence[str]) -> str | None:
    """The letter that a multiple-choice answer names, by the rules of the MMMU benchmark's parser.

    First hit of: capital letters in brackets ``(X)``; letters before a space (``X `` without a left boundary, so that
    the article in ``A dog`` counts as the letter A); letters before a point; and, for answers of more than five words,
    options whose text occurs in the answer. Among several hits the one that occurs last wins.

    The original draws a random letter where nothing is found; that is ``None`` here.

    Args:
        response: generated text.
        options: texts of the options in the order of their letters; at most 26.

    Source: parser of the MMMU benchmark as the Aria recipe uses it.
    """
    letters = LETTERS[: len(options)]
    for char in ",.!?;:'":  # one pass in this order, as the original does: "B.'" keeps its point
        response = response.strip(char)
    response = f" {response} "

    for pattern, position in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in letters if pattern.format(letter) in response]
        if found:
            # max() keeps the first of equals: the original falls back to it when no hit stands between spaces.
            return max(found, key=lambda letter: response.rfind(position.format(letter)))

    if len(response.split()) > 5:
        lowered = response.lower()
        places = [lowered.rfind(option.lower()) for option in options]
        if max(places, default=-1) >= 0:
            return letters[places.index(max(places))]
    return None


def match_option(answer: str, options: Sequence[str]) -> str | None:
    """The one option of a closed list that a free answer names, or ``None``.

    An option that equals the answer wins; else an option that occurs in it as whole words. An option inside a longer
    one that occurs too (``left`` in ``upper left``) does not count; two that remain (``not red but blue``) are no
    answer. Number words equal digits.
    """
    for simplify in (str.strip, normalise, digits_for_number_words):
        wanted = simplify(answer)
        equal = [option for option in options if simplify(option) == wanted]
        if len(equal) == 1 and wanted:
            return equal[0]
    simplified = {option: digits_for_number_words(option) for option in options}
    rest = f" {digits_for_number_words(answer)} "
    found = []
    for option in sorted(simplified, key=lambda option: -len(simplified[option])):
        phrase = f" {simplified[option]} "
        if phrase.strip() and phrase in rest:
            found.append(option)
            rest = rest.replace(phrase, " | ")  # taken out: a shorter option must occur elsewhere to count
    return found[0] if len(found) == 1 else None


def parse_yes_no(answer: str) -> str | None:
    """``yes`` or ``no``, whichever word comes first in the answer."""
    return next((word for word in normalise(answer).split() if word in ("yes", "no")), None)


def exact_match(answer: str, reference: str) -> bool:
    """Equal after lower-casing and stripping punctuation (the exact match of ActivityNet-QA)."""
    return normalise(answer) == normalise(reference)


def contains_answer(answer: str, reference: str) -> bool:
    """Whether the reference occurs in the answer as whole words, number words counting as digits.

    Fairer than an exact match to models that were trained to write sentences.
    """
    wanted = digits_for_number_words(reference)
    return bool(wanted) and f" {wanted} " in f" {digits_for_number_words(answer)} "


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the bag of words, in [0, 1]; articles do not count.

    Two texts without words are equal (1); one without is wrong (0). Source: SQuAD v1.1 evaluation, with number words
    as digits.
    """
    bags = [
        Counter(word for word in digits_for_number_words(text).split() if word not in _ARTICLES)
        for text in (answer, reference)
    ]
    totals = [bag.total() for bag in bags]
    if not all(totals):
        return float(totals[0] == totals[1])
    shared = (bags[0] & bags[1]).total()
    return 2 * shared / sum(totals)
