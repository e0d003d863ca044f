"""The outline of a JSON text says what the text says, but for its long strings; and it never takes long."""

from __future__ import annotations

import json
import random
import time

import pytest

from corral.formats import json_outline
from corral.formats.json_outline import STRING_MAX_BYTES, outline


def outlined(text: bytes) -> bytes:
    steps = outline(text)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: bytes = done.value
            return result


def test_a_long_string_is_cut_and_what_stands_around_it_stays() -> None:
    picture = {"url": "data:image/png;base64," + "A" * 1_000_000}
    document = {"messages": [{"content": picture}], "model": "a", "stream": True}
    left = outlined(json.dumps(document).encode())
    assert len(left) < 2000
    read = json.loads(left)
    assert (read["model"], read["stream"]) == ("a", True)
    assert read["messages"][0]["content"]["url"] == picture["url"][:STRING_MAX_BYTES]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"model": "mod\\u0065l"}',
        b'{"a": "\\"", "model": "b"}',
        b'{"a": "\\\\", "model": "b"}',
        b'{"a": "\\\\\\"", "model": "b"}',
        b'{"a": ["", "", {"": ""}], "model": "\xc3\xbc"}',
        b'{"model": "a", "model": "b"}',
        b'{"model": "a',
        b'"',
        b'{"a": "\\',
    ],
)
def test_a_text_without_long_strings_is_its_own_outline(text: bytes) -> None:
    assert outlined(text) == text


def test_a_string_that_cannot_be_cut_anywhere_leaves_a_sign_of_itself() -> None:
    for beginning in ("\\u00e9", "ü", '\\"'):
        text = f'{{"model": "{beginning}{"x" * STRING_MAX_BYTES}"}}'.encode()
        assert json.loads(outlined(text)) == {"model": "..."}


def test_a_text_that_ends_within_a_string_is_no_json_afterwards_either() -> None:
    text = b'{"model": "a", "b": "' + b"x" * 5000
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(outlined(text))


@pytest.mark.parametrize("seed", range(10))
def test_whatever_the_text_the_outline_says_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_outline, "STRING_MAX_BYTES", 4)
    dice = random.Random(seed)

    def value(depth: int) -> object:
        kind = dice.random()
        if kind < 0.5 or depth > 3:
            return "".join(dice.choice('a"\\\n{[é:,') for _ in range(dice.randrange(9)))
        if kind < 0.7:
            return [value(depth + 1) for _ in range(dice.randrange(4))]
        return {str(value(9)): value(depth + 1) for _ in range(dice.randrange(4))}

    def cut(of: object) -> object:
        if isinstance(of, str):
            wire = json.dumps(of)[1:-1]
            if len(wire) < 4:
                return of
            return wire[:4] if "\\" not in wire[:4] else "..."
        if isinstance(of, list):
            return [cut(each) for each in of]
        return {cut(key): cut(each) for key, each in of.items()} if isinstance(of, dict) else of

    for _ in range(300):
        document = value(0)
        assert json.loads(outlined(json.dumps(document).encode())) == cut(document)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": "' + b"A" * 20_000_000 + b'"}',
        b'{"a": "' + b"\\" * 2_000_000 + b'"}',
        b'{"a": "' + b'\\"' * 500_000 + b'"}',
        b"[" + b'"ab",' * 300_000 + b'""]',
    ],
    ids=["a picture", "backslashes", "quotes", "many strings"],
)
def test_no_step_takes_long(text: bytes) -> None:
    longest_s = 1.0
    for _ in range(3):  # the machine may have something else to do
        steps = outline(text)
        slowest_s = 0.0
        while True:
            began_at = time.perf_counter()
            try:
                next(steps)
            except StopIteration:
                break
            finally:
                slowest_s = max(slowest_s, time.perf_counter() - began_at)
        longest_s = min(longest_s, slowest_s)
    assert longest_s < 0.02
