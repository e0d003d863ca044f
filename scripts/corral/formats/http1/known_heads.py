"""Heads that were read before, so that a client that says the same again is not read again.

A client says the same words in every request of a connection, and so does a backend in every answer,
but for one number: the length of the body. Reading a head is a pure function of its bytes, so its result
is kept, under the bytes without that number, and the next head in the same words costs a look instead of
a reading (measured: half a microsecond instead of 12). What is kept was read by the patterns once, as it
stood; all that may differ from it is a run of digits that the same rules allow in the same place.

Only small heads are kept, and so many of them, beside the one that a busy peer sent last; whoever sends a
different one each time gains nothing, and costs the others a reading now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

from corral.formats.http1.events import Limits, RequestHead, ResponseHead
from corral.formats.http1.framing import CONTENT_LENGTH_DIGITS_MAX
from corral.formats.http1.head import Parsed, parse_request_head, parse_response_head

H = TypeVar("H", RequestHead, ResponseHead)

HEADS_MAX = 256
# Far below every limit, so that a few digits more or less never make a head too large.
HEAD_MAX_BYTES = 2048

# How the field is spelt by nearly everybody. Any other spelling is read as if it were new.
_SPELLINGS = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
_FIELD_BYTES = len(_SPELLINGS[0])
_HEAD_END = b"\r\n\r\n"
# RFC 9112 6.3, rule 1: whatever the fields say, these answers end with their head.
BODILESS = frozenset({204, 304})

# Of a head in some bytes: how many of them it is, with the empty line, and the length that it tells.
Extent = tuple[int, int | None]


class Known(Generic[H]):
    """A head that was read. Around the digits of its length, if it has one, are always the same bytes."""

    __slots__ = ("_after", "_before", "_digits", "_extent", "ends_by_length", "head")

    def __init__(self, head: H, length: int | None, before: bytes, digits: bytes, after: bytes) -> None:
        self.head: H = head
        self.ends_by_length = _ends_by_length(head, length)
        self._before, self._digits, self._after = before, digits, after
        self._extent = len(before) + len(digits) + len(after), length

    def extent_in(self, data: bytes, at: int) -> Extent | None:
        """How much of `data` from `at` on is this head; None if it is another one, or one only in part."""
        before, after = self._before, self._after
        if not data.startswith(before, at):
            return None
        at_digits = at + len(before)
        line_end = data.find(b"\r", at_digits)
        if not data.startswith(after, line_end):  # nor does it where no line ends: it is more than one byte
            return None
        digits = data[at_digits:line_end]
        if digits == self._digits:
            return self._extent
        return (line_end + len(after) - at, int(digits)) if self._digits and _is_length(digits) else None


class KnownHeads(Generic[H]):
    """The heads of one role, read under one set of limits."""

    __slots__ = ("_known", "_limits", "_parse")
    _parse: Callable[[bytes, int, int, Limits], Parsed[H]]

    def __init__(self, parse: Callable[[bytes, int, int, Limits], Parsed[H]], limits: Limits) -> None:
        self._parse = parse
        self._limits = limits
        self._known: dict[bytes, Known[H]] = {}

    def recall(
        self, data: bytes, at: int = 0, likely: Known[H] | None = None
    ) -> tuple[Known[H], Extent] | None:
        """The head with which `data` goes on at `at`, if one in the same words was read before.

        `likely`: the one that the same peer sent last. To see that it is this one again takes a third of
        the time that it takes to find it among all.
        """
        if likely is not None and (extent := likely.extent_in(data, at)) is not None:
            return likely, extent
        found = self._find(data, at)
        if found is not None and (extent := found.extent_in(data, at)) is not None:
            return found, extent
        return None

    def _find(self, data: bytes, at: int) -> Known[H] | None:
        end = data.find(_HEAD_END, at)
        if end < 0:
            return None
        before, _digits, after = _taken_apart(data, at, end + len(_HEAD_END))
        return self._known.get(before + after)

    def read(self, text: bytes) -> Parsed[H]:
        """The head that these bytes are, as its parser gives it. Raises what is wrong with it.

        All of them, with the empty line at its end, which the parser does without.
        """
        head, length = self._parse(text, 0, len(text) - 2, self._limits)
        before, digits, after = _taken_apart(text, 0, len(text))
        limit = min(HEAD_MAX_BYTES, self._limits.line_max_bytes - CONTENT_LENGTH_DIGITS_MAX)
        if len(text) <= limit and (not digits or _is_length(digits)):
            if len(self._known) >= HEADS_MAX:
                del self._known[next(iter(self._known))]
            words = before + after
            head = replace(head, words=words)
            self._known[words] = Known(head, length, before, digits, after)
        return head, length


def _taken_apart(data: bytes, start: int, end: int) -> tuple[bytes, bytes, bytes]:
    """A head's bytes, with the empty line: before the digits of its length, these, and after them."""
    at = data.find(_SPELLINGS[0], start, end)
    if at < 0:
        at = data.find(_SPELLINGS[1], start, end)
        if at < 0:
            at = end - len(_HEAD_END)
            return data[start:at], b"", data[at:end]
    at += _FIELD_BYTES
    line_end = data.find(b"\r", at)
    return data[start:at], data[at:line_end], data[line_end:end]


def _ends_by_length(head: RequestHead | ResponseHead, length: int | None) -> bool:
    """Whether a length, or that there is none, is all that says where the body ends."""
    if head.chunked:
        return False
    if isinstance(head, RequestHead):
        return True  # who says nothing has no body
    # Without a length an answer may be anything, and some may name a length and have no body.
    return length is not None and head.status >= 200 and head.status not in BODILESS


def _is_length(digits: bytes) -> bool:
    """Whether these are a length like any other. Zero is not: no body means that none is waited for."""
    return digits.isdigit() and len(digits) <= CONTENT_LENGTH_DIGITS_MAX and not digits.startswith(b"0")


_requests: dict[Limits, KnownHeads[RequestHead]] = {}
_responses: dict[Limits, KnownHeads[ResponseHead]] = {}


def known_requests(limits: Limits) -> KnownHeads[RequestHead]:
    """Those that all readers with these limits share."""
    known = _requests.get(limits)
    if known is None:
        known = _requests[limits] = KnownHeads(parse_request_head, limits)
    return known


def known_responses(limits: Limits) -> KnownHeads[ResponseHead]:
    known = _responses.get(limits)
    if known is None:
        known = _responses[limits] = KnownHeads(parse_response_head, limits)
    return known
