"""The outline of a JSON text says what the text says of its outermost members; and it never takes long."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import pytest

from corral import errors
from corral.formats import json_outline, openai
from corral.formats.json_outline import LARGE_BYTES, STRING_MAX_BYTES, outline

JSON = "application/json"
# Where pieces end, and turns: as it is, and so that all of it happens in texts of a few bytes.
SIZES = ("PIECE_MIN_BYTES", "PIECE_MAX_BYTES", "SEARCH_MAX_BYTES", "STEP_BYTES")
TINY = [(1, 1, 1, 1), (1, 8, 3, 1), (2, 2, 100, 9), (3, 48, 7, 200), (8, 16, 4, 1)]


def outlined(text: bytes) -> bytes:
    steps = outline(text)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: bytes = done.value
            return result


def members(text: bytes) -> tuple[tuple[str, object], ...]:
    """A document with its objects as tuples of pairs: names that come twice are there twice."""
    document: tuple[tuple[str, object], ...] = json.loads(text, object_pairs_hook=tuple)
    return document


def test_of_a_long_string_the_beginning_stays_and_of_what_is_nested_its_brackets() -> None:
    picture = "data:image/png;base64," + "A" * 1_000_000
    messages = [{"content": [{"image_url": {"url": picture}}, {"text": 'a ] and a \\ and a "'}]}]
    document = {"messages": messages, "model": "a", "tools": {"a": [1]}, "prompt": picture, "stream": True}
    assert json.loads(outlined(json.dumps(document).encode())) == {
        "messages": [],
        "model": "a",
        "tools": {},
        "prompt": picture[:STRING_MAX_BYTES],
        "stream": True,
    }


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[[]]",
        b" 1 ",
        b'\xef\xbb\xbf{"model": "a"}',
        b'{"model": "mod\\u0065l"}',
        b'{"a": "\\"", "model": "b"}',
        b'{"a": "\\\\", "model": "b"}',
        b'{"a": "\\\\\\"", "model": "b"}',
        b'{"a": [], "b": {}, "model": "\xc3\xbc"}',
        b'{"model": "a", "model": "b"}',
        b'{"a": 1,}',
        b'{"a": 1}}',
        b'{"a": 1} {"model": "b"}',
        b'}]{"a": "b", []',
        b"\xff\x00",
    ],
)
def test_a_text_with_nothing_long_and_nothing_nested_is_its_own_outline_be_it_json_or_not(
    text: bytes,
) -> None:
    assert outlined(text) == text


@pytest.mark.parametrize("nested", [b"[1}", b"{]", b"[[1]}", b'["]"}', b"[{}"])
def test_a_bracket_of_another_kind_at_the_end_stays_wrong(nested: bytes) -> None:
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(outlined(b'{"model": "a", "b": ' + nested + b', "model": "c"}'))


def test_a_string_that_cannot_be_cut_anywhere_leaves_a_sign_of_itself() -> None:
    for beginning in ("\\u00e9", "ü", '\\"'):
        text = f'{{"model": "{beginning}{"x" * STRING_MAX_BYTES}"}}'.encode()
        assert json.loads(outlined(text)) == {"model": "..."}


@pytest.mark.parametrize(
    "end", [b'"', b'"x', b'"' + b"x" * 5000, b'"\\', b"[", b'["', b'{"a": "]}', b"[[], 1"]
)
def test_a_text_that_ends_too_soon_is_no_json_afterwards_either(end: bytes) -> None:
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(outlined(b'{"model": "a", "b": ' + end))


class Texts:
    """Texts by chance: documents, and what looks a little like one."""

    NAMES = ("model", "stream", "max_tokens", "n_predict", "a", "mod\\u0065l", "", 'a\\"]', "\\\\")
    SCALARS = ("true", "false", "null", "0", "17", "-1.5e-3", '"a"', '""')
    PIECES = ('"', "\\", "[", "]", "{", "}", "a", ":", ",", " ", '\\"', '""', '"model":', "é")

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)

    def document(self, depth: int = 0) -> str:
        dice = self._dice
        kind = dice.random() if depth else 1.0
        if kind < 0.3 or depth > 4:
            return dice.choice(self.SCALARS)
        if kind < 0.5:
            return self._string()
        many = range(dice.randrange(6))
        values = [self.document(depth + 1) for _ in many]
        if kind < 0.7:
            return f"[{self._space()}{f'{self._space()},'.join(values)}{self._space()}]"
        pairs = [f'"{dice.choice(self.NAMES)}"{self._space()}:{self._space()}{value}' for value in values]
        return f"{{{self._space()}{','.join(pairs)}}}"

    def anything(self) -> str:
        return "".join(self._dice.choices(self.PIECES, k=self._dice.randrange(40)))

    def damaged(self, text: str) -> str:
        at = self._dice.randrange(len(text))
        return text[:at] + self._dice.choice(("", *self.PIECES)) + text[at + self._dice.randrange(3) :]

    def _string(self) -> str:
        return json.dumps("".join(self._dice.choices('a"\\\n{}[]é:,', k=self._dice.randrange(9))))

    def _space(self) -> str:
        return self._dice.choice(("", "", " ", "\n\t"))


def emptied(value: object) -> object:
    """What is left of a member's value."""
    return type(value)() if isinstance(value, list | tuple) else value


def reading(text: bytes) -> object:
    try:
        return openai.read_intent(text, JSON)
    except errors.InvalidRequest as error:
        return error.message


def resize(monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]) -> None:
    for name, size in zip(SIZES, sizes, strict=True):
        monkeypatch.setattr(json_outline, name, size)


@pytest.mark.parametrize("sizes", TINY)
def test_wherever_pieces_end_the_outermost_members_say_the_same(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    resize(monkeypatch, sizes)
    texts = Texts(seed=sum(sizes))
    for _ in range(1500):
        text = texts.document().encode()
        left = outlined(text)
        assert members(left) == tuple((name, emptied(value)) for name, value in members(text)), text
        assert reading(left) == reading(text), text


@pytest.mark.parametrize("sizes", TINY)
def test_wherever_pieces_end_a_text_has_one_outline_be_it_json_or_not(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = Texts(seed=100 + sum(sizes))
    chosen = [texts.anything().encode() for _ in range(1500)]
    chosen += [texts.damaged(texts.document()).encode() for _ in range(1500)]
    at_once = [outlined(text) for text in chosen]
    resize(monkeypatch, sizes)
    for text, left in zip(chosen, at_once, strict=True):
        assert outlined(text) == left, text


def test_what_is_damaged_and_still_json_is_read_as_it_is() -> None:
    texts, valid = Texts(seed=1), 0
    while valid < 1000:
        text = texts.damaged(texts.document()).encode()
        try:
            json.loads(text)
        except ValueError:
            continue
        valid += 1
        if text.lstrip().startswith(b"{"):
            assert reading(outlined(text)) == reading(text), text


@pytest.mark.parametrize("member", [b'"a":1,', b'"a":[1],', b'"a":"' + b"x" * 1000 + b'",', b" ", b'"a":[],'])
def test_an_object_of_too_many_members_is_refused(member: bytes) -> None:
    few, many = (
        b'{"model":"a",' + member * (size // len(member)) + b'"b":1}'
        for size in (LARGE_BYTES // 3, 2 * LARGE_BYTES)
    )
    assert json.loads(outlined(few))["model"] == "a"
    with pytest.raises(errors.InvalidRequest, match="too many members"):
        outlined(many)


def fastest_s(act: Callable[[], object]) -> float:
    """What it costs the processor, undisturbed: the machine may have something else to do meanwhile."""
    times_s = []
    for _ in range(5):
        began_at = time.thread_time()
        act()
        times_s.append(time.thread_time() - began_at)
    return min(times_s)


def slowest_step_s(text: bytes) -> float:
    """The longest that others wait while a body is read: the last step is to parse what is left of it."""
    steps, slowest_s, left = outline(text), 0.0, None
    while left is None:
        began_at = time.thread_time()
        try:
            next(steps)
        except StopIteration as done:
            left = done.value
            reading(left)
        slowest_s = max(slowest_s, time.thread_time() - began_at)
    return slowest_s


SIZE_BYTES = 4_000_000
TOKENS = b'{"model":"m","prompt":['
COSTLY = {
    "a picture": (b'{"a":"', b"A", b'"}'),
    "backslashes": (b'{"a":"', b"\\\\", b'"}'),
    "backslashes within": (b'{"a":["', b"\\\\", b'"]}'),
    "escaped quotes": (b'{"a":"', b'\\"', b'"}'),
    "token ids": (TOKENS, b"12345,", b"1]}"),
    "floats": (TOKENS, b"1.2345678901234567e-300,", b"1]}"),
    "empty arrays": (TOKENS, b"[],", b"1]}"),
    "small objects": (TOKENS, b'{"a":1},', b"1]}"),
    "short strings": (TOKENS, b'"ab",', b"1]}"),
    "strings of brackets": (TOKENS, b'"[",', b"1]}"),
    "pictures": (TOKENS, b'"' + b"A" * 50_000 + b'",', b"1]}"),
    "nested": (TOKENS, b"[" * 300 + b"]" * 300 + b",", b"1]}"),
    "nested without end": (TOKENS, b"[", b""),
    "members": (b'{"a":1,', b'"b":[' + b"[]," * 500 + b"0],", b'"c":1}'),
}


@pytest.mark.parametrize(("before", "unit", "behind"), COSTLY.values(), ids=COSTLY)
def test_no_step_takes_longer_than_a_small_part_of_the_whole(
    before: bytes, unit: bytes, behind: bytes
) -> None:
    small = b'{"a":[' + b"[]," * (LARGE_BYTES // 3) + b"0]}"
    text = before + unit * (SIZE_BYTES // len(unit)) + behind
    # A body that is just not large is parsed in one piece; that long others have to wait anyway.
    allowed_s = fastest_s(lambda: json.loads(small))
    assert min(slowest_step_s(text) for _ in range(3)) < allowed_s


def test_the_outline_of_a_picture_costs_little_more_than_a_search_for_its_end() -> None:
    text = (
        b'{"messages":[{"content":[{"image_url":{"url":"' + b"A" * (10 * SIZE_BYTES) + b'"}}]}],"model":"a"}'
    )
    search_s = fastest_s(lambda: text.find(b'"', 100))
    assert fastest_s(lambda: outlined(text)) < 3 * search_s
