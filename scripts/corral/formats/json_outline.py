"""The outline of a large JSON text: its outermost members, with no long strings and with nothing nested.

A question about a picture is ten megabytes in one string, a prompt in tokens is a million numbers, and the
gate wants to know the name of a model. To parse all of it would hold everybody else up for as long as that
takes (measured for 10 MB: 25 ms for one string, 134 ms for token ids, 719 ms for empty arrays; the parser
lets nobody in between). So an outline comes first: of a long string its beginning is kept, of an array or an
object within the outermost one only its brackets, and what is left is small enough to be parsed, or refused.

What is left out is stepped over in pieces, by functions that are loops in C. Where a piece leads is told by
its quotes and brackets alone: outside of its strings JSON has no other use for them, and no backslash
either. Only the piece in which something ends is looked at mark by mark.

What is left out is not judged. If it is no JSON, the engine says so, as it says of everything else that
the gate has no need to understand. What the gate does read stays as it was written, byte by byte: names
that come twice, values of the wrong kind, and a comma too many.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from itertools import accumulate

from corral import errors

# From this size on a text is read by its outline, which therefore has to be smaller.
LARGE_BYTES = 64 * 1024
# No name that the gate looks for is as long.
STRING_MAX_BYTES = 1024
# What is stepped over at a time: more and more until something ends, so that little costs little.
PIECE_MIN_BYTES = 256
PIECE_MAX_BYTES = 16 * 1024
# A search for one byte is so fast that it may go this far: less than half a millisecond (measured).
SEARCH_MAX_BYTES = 4 * 1024 * 1024
SEARCHED_BYTES_FOR_ONE = 500
# What others have to wait for, in bytes stepped over: the costliest take 30 ns each (measured).
STEP_BYTES = 8 * 1024
# What goes with every piece, however small.
PIECE_COST_BYTES = 100

_MARK = re.compile(rb'["\[\]{}]')
_MARK_OR_ESCAPE = re.compile(rb'\\["\\]|["\[\]{}]')
_UP, _DOWN = b"\x01", b"\xff"  # as signed bytes: 1 and -1
_TO_UP_AND_DOWN = bytes.maketrans(b"[{]}", 2 * _UP + 2 * _DOWN)
_NO_MARKS = bytes(set(range(256)) - set(b'"[]{}'))


def outline(text: bytes) -> Generator[None, None, bytes]:
    """Yields whenever others should have a turn, and returns the outline.

    Raises InvalidRequest if that is no smaller than a large text.
    """
    reader = _Reader(text)
    while reader.advance():
        if reader.spent_bytes >= STEP_BYTES:
            reader.spent_bytes = 0
            yield
    return b"".join(reader.kept)


class _Reader:
    """Goes through a text once, and remembers what is to be kept of it."""

    def __init__(self, text: bytes) -> None:
        self.kept: list[bytes] = []
        self.spent_bytes = 0
        self._text = text
        self._room = LARGE_BYTES
        self._at = 0  # never between a backslash and what it escapes
        self._depth = 0
        self._in_string = False
        self._begin = -1  # of what is being stepped over; -1: nothing is
        self._piece_bytes = PIECE_MIN_BYTES
        self._quote = -1  # the next one, unless it is behind

    def advance(self) -> bool:
        """Do a little, and say whether there may be more to do."""
        self.spent_bytes += PIECE_COST_BYTES
        if self._begin < 0:
            return self._go_to_mark()
        if not (self._in_string and self._went_near_quote()):
            self._step_over()
        return self._at < len(self._text)

    def _keep(self, part: bytes) -> None:
        self._room -= len(part)
        if self._room < 0:
            raise errors.InvalidRequest(
                "The request body has too many members: "
                f"without its nested values and long strings it is still larger than {LARGE_BYTES} bytes."
            )
        self.kept.append(part)

    def _go_to_mark(self) -> bool:
        """Keep what comes before something that may have to be stepped over."""
        mark = _MARK.search(self._text, self._at, self._at + self._room)
        end = mark.end() if mark else self._at + self._room + 1
        self._keep(self._text[self._at : end])
        if mark is None:
            return False
        self._at = end
        if mark[0] in b"]}":
            self._depth -= 1
            return True
        self._in_string = mark[0] == b'"'
        self._depth += not self._in_string
        if self._in_string or self._depth > 1:
            self._begin = end
            self._piece_bytes = PIECE_MIN_BYTES
        return True

    def _went_near_quote(self) -> bool:
        """In a string only a quote is of interest: if the next one is far, go there, all but a little way."""
        if self._quote < self._at:
            end = min(self._at + SEARCH_MAX_BYTES, len(self._text))
            found = self._text.find(b'"', self._at, end)
            self._quote = end if found < 0 else found
            self.spent_bytes += (self._quote - self._at) // SEARCHED_BYTES_FOR_ONE
        if self._quote - self._at <= self._piece_bytes:
            return False
        near = self._quote - PIECE_MIN_BYTES
        whole = len(self._text[near : self._quote].rstrip(b"\\"))
        if not whole:
            return False  # so many backslashes can be told apart only from where they begin
        self._at = near + whole
        self._piece_bytes = PIECE_MIN_BYTES
        return True

    def _step_over(self) -> None:
        piece = _piece(self._text, self._at, self._piece_bytes)
        self.spent_bytes += len(piece)
        state = _after(piece, self._depth, self._in_string)
        if state is not None:
            self._at += len(piece)
            self._depth, self._in_string = state
            self._piece_bytes = min(2 * self._piece_bytes, PIECE_MAX_BYTES)
        elif self._piece_bytes > PIECE_MIN_BYTES:
            self._piece_bytes //= 2
        else:
            self._end_within(piece)

    def _end_within(self, piece: bytes) -> None:
        """What has been stepped over ends in this piece: keep what is to be kept of it."""
        self.spent_bytes += len(piece)
        was_string = self._depth <= 1
        for mark in _MARK_OR_ESCAPE.finditer(piece):
            if mark[0] == b'"':
                self._in_string = not self._in_string
            elif not self._in_string and len(mark[0]) == 1:
                self._depth += 1 if mark[0] in b"[{" else -1
            if not self._in_string and self._depth <= 1:
                self._at += mark.end()
                break
        if was_string:
            self._keep(_shortened(self._text, self._begin, self._at - 1))
        self._keep(self._text[self._at - 1 : self._at])
        self._begin = -1


def _piece(text: bytes, at: int, size_bytes: int) -> bytes:
    """About so much of the text from here, and no half of an escape."""
    piece = text[at : at + size_bytes]
    backslashes = len(piece) - len(piece.rstrip(b"\\"))
    return piece if backslashes % 2 == 0 else text[at : at + size_bytes + 1]


def _after(piece: bytes, depth: int, in_string: bool) -> tuple[int, bool] | None:
    """The depth behind this piece, and whether that is in a string; or None if something ends within it.

    That is a string at the depth of 1, or what brought the depth to more than that.
    """
    unescaped = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = unescaped.translate(_TO_UP_AND_DOWN, _NO_MARKS)
    if depth <= 1:
        return None if b'"' in marks else (depth, in_string)
    # Two quotes with no bracket between them change nothing, whether they begin a string or end one.
    parts = marks.replace(b'""', b"").split(b'"')
    outside = b"".join(parts[in_string::2])
    in_string ^= len(parts) % 2 == 0
    # And what closes at once never was lower than what is around it.
    steps = outside.replace(_UP + _DOWN, b"")
    downs = steps.count(_DOWN)
    if depth - downs <= 1 and depth + min(accumulate(memoryview(steps).cast("b"))) <= 1:
        return None
    return depth + len(steps) - 2 * downs, in_string


def _shortened(text: bytes, begin: int, end: int) -> bytes:
    """What is kept of a string: of a long one enough to show, where it may be cut at any byte."""
    if end - begin <= STRING_MAX_BYTES:
        return text[begin:end]
    beginning = text[begin : begin + STRING_MAX_BYTES]
    return beginning if beginning.isascii() and b"\\" not in beginning else b"..."
