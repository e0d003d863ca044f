"""The outline of a large JSON text: the same text with its long strings cut short.

A question about a picture is ten megabytes in one string, and the gate wants to know the name of a model.
To parse all of it would hold everybody else up for as long as that takes (measured: 25 ms for 10 MB; the
parser lets nobody in between), so its long strings are stepped over first, which is a search for their
closing quote, and what is left is small enough to be parsed. Quotes tell all that is needed: outside of
its strings JSON has none, and no backslash either.

What a long string holds is not looked at. If it is no JSON, the engine says so, as it says of everything
else that the gate has no need to understand. A string that is short stays as it is.
"""

from __future__ import annotations

from collections.abc import Generator

# From this size on a text is read by its outline.
LARGE_BYTES = 64 * 1024
# No name that the gate looks for is as long.
STRING_MAX_BYTES = 1024
# How much is done at a time: less than a millisecond's work (measured).
QUOTES_AT_A_TIME = 2000
BYTES_AT_A_TIME = 4 * 1024 * 1024

_BACKSLASH = ord("\\")


def outline(text: bytes) -> Generator[None, None, bytes]:
    """Yields whenever others should have a turn, and returns the outline."""
    kept: list[bytes] = []
    kept_to = 0  # what comes before is in `kept`
    opening = -1  # of the string that is being stepped over
    at = 0
    quotes, rested_at = 0, 0
    while (quote := text.find(b'"', at)) >= 0:
        if opening < 0:
            opening = quote
        elif text[quote - 1] != _BACKSLASH or not _is_escaped(text[at:quote]):
            if quote - opening > STRING_MAX_BYTES:
                kept.append(text[kept_to : opening + 1] + _beginning(text, opening + 1))
                kept_to = quote
            opening = -1
        at = quote + 1
        quotes += 1
        if quotes == QUOTES_AT_A_TIME or at - rested_at > BYTES_AT_A_TIME:
            quotes, rested_at = 0, at
            yield
    kept.append(text[kept_to:])
    return b"".join(kept)


def _beginning(text: bytes, at: int) -> bytes:
    """What is left of a long string: enough to show, where it may be cut at any byte."""
    beginning = text[at : at + STRING_MAX_BYTES]
    return beginning if beginning.isascii() and b"\\" not in beginning else b"..."


def _is_escaped(before: bytes) -> bool:
    """Whether a quote behind these bytes of a string belongs to it: behind an odd number of backslashes."""
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1
