"""Heads that were read before, so that a client that says the same again is not read again.

A client says the same words in every request of a connection, and so does a backend in every answer,
but for one number: the length of the body. Reading a head is a pure function of its bytes, so its result
is kept, under the bytes without that number, and the next head in the same words costs a look-up instead
of a reading (measured: 1 µs instead of 12). What is kept was read by the patterns once, as it stood; all
that may differ from it is a run of digits that the same rules allow in the same place.

Only small heads are kept, and so many of them; whoever sends a different one each time gains nothing,
and costs the others a reading now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from corral.formats.http1.events import Limits, RequestHead, ResponseHead
from corral.formats.http1.framing import CONTENT_LENGTH_DIGITS_MAX
from corral.formats.http1.head import parse_request_head, parse_response_head

H = TypeVar("H", RequestHead, ResponseHead)

HEADS_MAX = 256
# Far below every limit, so that a few digits more or less never make a head too large.
HEAD_MAX_BYTES = 2048

# How the field is spelt by nearly everybody. Any other spelling is read as if it were new.
_SPELLINGS = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
_FIELD_BYTES = len(_SPELLINGS[0])
_HEAD_END = b"\r\n\r\n"


class Known(Generic[H]):
    """A head that was read: around the digits of its length, if it has one, are always the same bytes."""

    __slots__ = ("after", "before", "digits", "head", "head_bytes", "whole_bytes")

    def __init__(self, head: H, before: bytes, digits: bytes, after: bytes) -> None:
        self.head: H = head
        self.before, self.digits, self.after = before, digits, after
        self.head_bytes = len(before) + len(digits) + len(after)
        # With the body; -1 where its end is not told by a length alone.
        self.whole_bytes = -1 if (body_bytes := _body_bytes(head)) is None else self.head_bytes + body_bytes

    def with_length(self, digits: bytes) -> Known[H]:
        """The same head with another length."""
        return Known(_with_length(self.head, digits), self.before, digits, self.after)


class KnownHeads(Generic[H]):
    """The heads of one role, read under one set of limits."""

    __slots__ = ("_known", "_limits", "_parse")
    _parse: Callable[[bytes, int, int, Limits], H]

    def __init__(self, parse: Callable[[bytes, int, int, Limits], H], limits: Limits) -> None:
        self._parse = parse
        self._limits = limits
        self._known: dict[bytes, Known[H]] = {}

    def recall(self, data: bytes, at: int = 0, likely: Known[H] | None = None) -> Known[H] | None:
        """The head with which `data` goes on at `at`, if one in the same words was read before.

        `likely`: the one that the same peer sent last. To see that it is this one again takes a third of
        the time that it takes to find it among all.
        """
        if likely is not None and data.startswith(likely.before, at):
            at_digits = at + len(likely.before)
            line_end = data.find(b"\r", at_digits)
            if line_end >= 0 and data.startswith(likely.after, line_end):
                digits = data[at_digits:line_end]
                if digits == likely.digits:
                    return likely
                if likely.digits and _is_length(digits):
                    return likely.with_length(digits)
        end = data.find(_HEAD_END, at)
        if end < 0:
            return None
        before, digits, after = _taken_apart(data, at, end + len(_HEAD_END))
        known = self._known.get(before + after)
        if known is None or known.digits == digits:
            return known
        return known.with_length(digits) if _is_length(digits) else None

    def read(self, text: bytes) -> H:
        """The head that these bytes are, as its parser gives it. Raises what is wrong with it.

        All of them, with the empty line at its end, which the parser does without.
        """
        head = self._parse(text, 0, len(text) - 2, self._limits)
        before, digits, after = _taken_apart(text, 0, len(text))
        limit = min(HEAD_MAX_BYTES, self._limits.line_max_bytes - CONTENT_LENGTH_DIGITS_MAX)
        if len(text) <= limit and (not digits or _is_length(digits)):
            if len(self._known) >= HEADS_MAX:
                del self._known[next(iter(self._known))]
            words = before + after
            head = head._replace(words=words)
            self._known[words] = Known(head, before, digits, after)
        return head


def _with_length(head: H, digits: bytes) -> H:
    """What reading it would give. The field occurs once in it, or it would have been refused."""
    length = (b"content-length", digits)
    headers = [length if pair[0] == b"content-length" else pair for pair in head.headers]
    fields = head.fields.copy()
    fields[b"content-length"] = digits
    # As _replace would make it, in a third of the time: these three stand side by side in both heads.
    at: int = head._fields.index("headers")
    parts = (*head[:at], headers, fields, int(digits), *head[at + 3 :])
    varied: H = type(head)._make(parts)
    return varied


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


def _body_bytes(head: RequestHead | ResponseHead) -> int | None:
    """How long the body is that follows, where nothing but a length says so."""
    if head.chunked:
        return None
    if isinstance(head, RequestHead):
        return head.content_length or 0  # who says nothing has none
    # Without a length an answer may be anything, and some may name a length and have no body.
    return head.content_length if head.status >= 200 and head.status not in (204, 304) else None


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
