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

import sys
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

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


class _Known(NamedTuple, Generic[H]):
    head: H
    digits: bytes  # what the length was when it was read


class KnownHeads(Generic[H]):
    """The heads of one role, read under one set of limits."""

    __slots__ = ("_known", "_limits", "_parse")
    _parse: Callable[[bytes, int, int, Limits], H]

    def __init__(self, parse: Callable[[bytes, int, int, Limits], H], limits: Limits) -> None:
        self._parse = parse
        self._limits = limits
        self._known: dict[bytes, _Known[H]] = {}

    def recall(self, data: bytes, start: int = 0, end: int = sys.maxsize) -> H | None:
        """The head that these bytes are, if the same was read before."""
        words, digits = _taken_apart(data, start, end)
        known = self._known.get(words)
        if known is None:
            return None
        if known.digits == digits:
            return known.head
        return self._vary(known.head, words, digits) if _is_length(digits) else None

    def read(self, text: bytes) -> H:
        """The head that these bytes are, as its parser gives it. Raises what is wrong with it."""
        head = self._parse(text, 0, len(text), self._limits)
        words, digits = _taken_apart(text, 0, len(text))
        limit = min(HEAD_MAX_BYTES, self._limits.line_max_bytes - CONTENT_LENGTH_DIGITS_MAX)
        if len(text) <= limit and (not digits or _is_length(digits)):
            if len(self._known) >= HEADS_MAX:
                del self._known[next(iter(self._known))]
            head = head._replace(words=words)
            self._known[words] = _Known(head, digits)
        return head

    def _vary(self, head: H, words: bytes, digits: bytes) -> H:
        """The same head with another length. The field occurs once in it, or it would have been refused."""
        length = (b"content-length", digits)
        headers = [length if pair[0] == b"content-length" else pair for pair in head.headers]
        fields = head.fields.copy()
        fields[b"content-length"] = digits
        # As _replace would make it, in a third of the time: these three stand side by side in both heads.
        at: int = head._fields.index("headers")
        parts = (*head[:at], headers, fields, int(digits), *head[at + 3 :])
        varied: H = type(head)._make(parts)
        self._known[words] = _Known(varied, digits)
        return varied


def _taken_apart(data: bytes, start: int, end: int) -> tuple[bytes, bytes]:
    """A head's bytes without the digits of its length, and these."""
    at = data.find(_SPELLINGS[0], start, end)
    if at < 0:
        at = data.find(_SPELLINGS[1], start, end)
        if at < 0:
            return data[start:end], b""
    at += _FIELD_BYTES
    line_end = data.find(b"\r", at)
    return data[start:at] + data[line_end:end], data[at:line_end]


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
