"""Heads and chunks as bytes, and which headers may go on to the next hop.

The writer puts in nothing that the caller didn't ask for: no Date, no Content-Length, no Connection.
It does refuse what would end a line early, since a header value that carries a line break carries
whatever its author likes behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import Final

from corral.formats.http1.events import Headers

LAST_CHUNK: Final = b"0\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}

# RFC 9110 7.6.1: fields that speak of one connection. The two about proxies carry credentials for the
# hop that asked for them. Trailer goes with the trailers, which no reader hands out.
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


def request_head(method: str, target: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A request line, the headers and the empty line. ValueError if anything would break a line."""
    if not method or not target or " " in method or " " in target:
        raise ValueError(f"a method and a target without spaces are needed, not {method!r} and {target!r}")
    return _lines([f"{method} {target} HTTP/1.1".encode("ascii"), *map(b": ".join, headers)]) + b"\r\n"


def response_head(status: int, headers: Collection[tuple[bytes, bytes]] = (), lines: bytes = b"") -> bytes:
    """A status line, the headers and the empty line. ValueError if anything would break a line.

    `lines` are more headers, as `header_lines` gives them.
    """
    first = _STATUS_LINES.get(status)
    if first is None:
        if not 100 <= status <= 599:
            raise ValueError(f"{status} is no HTTP status")
        first = (
            b"HTTP/1.1 %d \r\n" % status
        )  # the phrase may be empty, the space before it may not (RFC 9112 4)
    if headers:
        lines += header_lines(headers)
    return b"%b%b\r\n" % (first, lines)


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as they stand in a head, each with its line end. ValueError if anything would break a line."""
    return _lines([b": ".join(pair) for pair in headers])


def _lines(lines: list[bytes]) -> bytes:
    line_ends = len(lines)
    lines.append(b"")
    text = b"\r\n".join(lines)
    # Counting is cheaper than looking into each value: a CR or LF too many came from one of them.
    if text.count(b"\r") != line_ends or text.count(b"\n") != line_ends or b"\0" in text:
        raise ValueError("a header, method or target holds CR, LF or NUL")
    return text


def chunk(payload: bytes) -> bytes:
    """The payload as one chunk; none for an empty one, which would end the body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""


def end_to_end(headers: Headers) -> Headers:
    """The headers (with lower-case names) without those that are for one connection only."""
    dropped = _HOP_BY_HOP
    for name, value in headers:
        if name == b"connection":
            dropped = dropped.union(option.strip() for option in value.lower().split(b","))
    return [header for header in headers if header[0] not in dropped]
