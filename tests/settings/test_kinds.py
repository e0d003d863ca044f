"""Every kind of value, from text and from JSON: what it takes, what it makes of it, what it refuses."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Any

import pytest

from corral.settings import kinds
from corral.settings.kinds import Boolean, Choice, Items, Kind, Location, Misfit, Number, Text, Whole


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


BOOLEAN = Boolean()
PORT = Whole(0, 65_535)
LAYERS = Whole(-1, 99)
SECONDS = Number(0, 1000)
COLOUR = Choice(Colour)
SWITCH = Choice(("on", "off", "auto"))
WORD = Text(re.compile(r"[a-z]{1,5}"), "a word")
ANYTHING = Text(kinds.ANYTHING, "text")
PATH = Location()
NUMBERS = Items(Whole(0, 9), "digits")
WORDS = Items(ANYTHING, "words", kinds.by_shell)

FROM_TEXT: list[tuple[Kind, str, Any]] = [
    *((BOOLEAN, text, True) for text in ("1", "true", "yes", "on", "TRUE", "On")),
    *((BOOLEAN, text, False) for text in ("0", "false", "no", "off", "False", "OFF")),
    (PORT, "0", 0),
    (PORT, "65535", 65_535),
    (PORT, "+8000", 8000),
    (PORT, "0080", 80),
    (LAYERS, "-1", -1),
    (SECONDS, "30", 30.0),
    (SECONDS, "0.5", 0.5),
    (SECONDS, ".5", 0.5),
    (SECONDS, "1e2", 100.0),
    (COLOUR, "red", Colour.RED),
    (COLOUR, "BLUE", Colour.BLUE),
    (SWITCH, "Auto", "auto"),
    (WORD, "abc", "abc"),
    (PATH, "/a/b c/ü", Path("/a/b c/ü")),
    (NUMBERS, "1, 2,3,", (1, 2, 3)),
    (NUMBERS, "", ()),
    (WORDS, "--temp 0.7 --prompt 'two words'", ("--temp", "0.7", "--prompt", "two words")),
]

BAD_TEXT: list[tuple[Kind, str]] = [
    *((BOOLEAN, text) for text in ("", "2", "y", "enable", "true false", "truе")),  # the last е is Cyrillic
    *((PORT, text) for text in ("", "-1", "65536", "8000.0", "8_000", "0x10", "٨٠", "eight", "9" * 5000)),
    *(
        (SECONDS, text)
        for text in ("0", "-1", "1001", "nan", "inf", "-inf", "1e999", "1,5", "5s", ".", "1_0")
    ),
    (COLOUR, "green"),
    (COLOUR, "RED "),
    (WORD, "toolong"),
    (WORD, "a\n"),
    (PATH, ""),
    (PATH, "a\nb"),
    (PATH, "a\x7fb"),
    (PATH, "a\u2028b"),
    (PATH, "a" * 65_537),
    (ANYTHING, "a\0b"),
    (ANYTHING, "\ud800"),
    (NUMBERS, "1,x"),
    (NUMBERS, ",".join("1" * 1001)),
    (WORDS, "an 'open quote"),
]

FROM_JSON: list[tuple[Kind, object, Any]] = [
    (BOOLEAN, True, True),
    (BOOLEAN, False, False),
    (PORT, 8000, 8000),
    (SECONDS, 30, 30.0),
    (SECONDS, 0.25, 0.25),
    (SECONDS, 1000, 1000.0),
    (COLOUR, "blue", Colour.BLUE),
    (ANYTHING, "two\nlines", "two\nlines"),
    (PATH, "~/models", Path("~/models")),
    (NUMBERS, [3, 4], (3, 4)),
    (NUMBERS, [], ()),
]

NO_BOOLEANS: list[object] = [1, 0, "true", None, [], {}]
NO_PORTS: list[object] = ["8000", 8000.0, True, None, 65_536, -1, 10**400, []]
NO_SECONDS: list[object] = [0, 1000.5, "30", True, None, float("nan"), float("inf"), 10**400, -(10**400)]
NO_COLOURS: list[object] = ["BLUE", 1, None, ["red"]]
NO_WORDS: list[object] = [1, None, ["abc"], ""]
NO_PATHS: list[object] = [1, None, ""]
NO_NUMBERS: list[object] = ["1,2", {"1": 2}, None, [1, "2"], [[1]], [1] * 1001]

BAD_JSON: list[tuple[Kind, object]] = [
    *((BOOLEAN, value) for value in NO_BOOLEANS),
    *((PORT, value) for value in NO_PORTS),
    *((SECONDS, value) for value in NO_SECONDS),
    *((COLOUR, value) for value in NO_COLOURS),
    *((WORD, value) for value in NO_WORDS),
    *((PATH, value) for value in NO_PATHS),
    *((NUMBERS, value) for value in NO_NUMBERS),
]


def show(value: object) -> str:
    return ascii(value)[:30]


@pytest.mark.parametrize(("kind", "text", "value"), FROM_TEXT, ids=show)
def test_text_is_read(kind: Kind, text: str, value: Any) -> None:
    read = kind.from_text(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(("kind", "text"), BAD_TEXT, ids=show)
def test_text_that_does_not_fit_is_refused(kind: Kind, text: str) -> None:
    with pytest.raises(Misfit):
        kind.from_text(text)


@pytest.mark.parametrize(("kind", "value", "expected"), FROM_JSON, ids=show)
def test_json_is_read(kind: Kind, value: object, expected: Any) -> None:
    read = kind.from_json(value)
    assert read == expected
    assert type(read) is type(expected)


@pytest.mark.parametrize(("kind", "value"), BAD_JSON, ids=show)
def test_json_that_does_not_fit_is_refused(kind: Kind, value: object) -> None:
    with pytest.raises(Misfit):
        kind.from_json(value)


@pytest.mark.parametrize(
    ("kind", "expects"),
    [
        (BOOLEAN, "true or false"),
        (PORT, "a whole number from 0 to 65535"),
        (Number(0, 604_800, " of seconds"), "a number of seconds above 0 and up to 604800"),
        (COLOUR, "one of red, blue"),
        (SWITCH, "one of on, off, auto"),
        (WORD, "a word"),
    ],
    ids=show,
)
def test_a_kind_says_what_it_expects(kind: Kind, expects: str) -> None:
    assert kind.expects == expects
