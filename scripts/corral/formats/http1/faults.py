"""What exactly is wrong with a head that the patterns refused.

The quick way through a head asks two patterns for a yes or no. Only after a no does this module read
it again, line by line, and return the first fault in the order of the bytes. That order matters: a
head that comes in one piece and one that comes byte by byte must be refused for the same reason, and
the second is refused as soon as its fault is seen.

A message names a header but never shows a value or a query string: either may hold a key.
Faults are worded for both roles, and returned, not raised; the classes are those for a bad request,
and the reader of answers turns them into its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from corral.errors import (
    CorralError,
    HeaderFieldsTooLarge,
    HttpVersionNotSupported,
    InvalidRequest,
    NotImplementedHere,
    UriTooLong,
)
from corral.formats.http1 import grammar
from corral.formats.http1.events import Limits

# Judges a first line; the flag says whether the line has ended yet.
FirstLineFault = Callable[[bytes, bool, Limits], CorralError | None]


class Block(NamedTuple):
    """A kind of block of lines: what its first line must be, and what the others are called."""

    first_line_fault: FirstLineFault
    label: str


def first_fault(block: Block, text: bytes, limits: Limits) -> CorralError:
    """The first fault in `text`, a whole block or the beginning of one.

    Where no line has one, what is wrong is the size of the whole.
    """
    lines = text[: limits.head_max_bytes].split(b"\r\n")
    last = len(lines) - 1
    for number, line in enumerate(lines):
        ended = number < last
        if number == 0:
            fault = block.first_line_fault(line, ended, limits)
        else:
            fault = _field_line_fault(line, f"{block.label} {number}", ended, limits)
        if fault is not None:
            return fault
    return HeaderFieldsTooLarge(f"The head is larger than {limits.head_max_bytes} bytes; send fewer headers")


def _request_line_fault(line: bytes, ended: bool, limits: Limits) -> CorralError | None:
    """What is wrong with a request line."""
    if line.startswith(b"\x16"):
        return InvalidRequest(
            "This looks like the start of a TLS connection, but plain HTTP is spoken here; "
            "use http:// and not https://"
        )
    if line[:1] in (b" ", b"\t"):
        return InvalidRequest("The request line begins with white space")
    if line and line[0] not in b"\r\n" and not grammar.TOKEN.match(line):
        return InvalidRequest(f"The request line begins with the byte 0x{line[0]:02X}; this is not HTTP")
    if fault := _line_end_fault("The request line", line, ended, limits):
        return fault
    if len(line) > limits.line_max_bytes:
        return UriTooLong(
            f"The request line is longer than {limits.line_max_bytes} bytes; "
            "shorten the URL or send the data in the body"
        )
    return _request_line_part_fault(line) if ended else None


def _request_line_part_fault(line: bytes) -> CorralError | None:
    if line == b"PRI * HTTP/2.0":
        return InvalidRequest("This is the preface of HTTP/2, which is not spoken here; use HTTP/1.1")
    method, _, rest = line.partition(b" ")
    target, _, version = rest.partition(b" ")
    if at := _first_outside(grammar.TOKEN, method):
        return InvalidRequest(f"The method holds {at}")
    if len(method) > grammar.METHOD_MAX:
        # RFC 9112 3: a method longer than any that is implemented SHOULD be answered with 501.
        return NotImplementedHere(f"The method is longer than {grammar.METHOD_MAX} characters")
    if not target:
        return InvalidRequest("The request line has no target after the method and one space")
    if at := _first_outside(grammar.TARGET, target):
        return InvalidRequest(f"The request target holds {at}; percent-encode it")
    if not version:
        return InvalidRequest("The request line has no HTTP version; use HTTP/1.1")
    if b" " in version:
        return InvalidRequest("The request line has more than two spaces; percent-encode a space as %20")
    if not grammar.VERSION.fullmatch(version):
        return InvalidRequest("The request line does not end with a valid HTTP version; use HTTP/1.1")
    if version not in (b"HTTP/1.0", b"HTTP/1.1"):
        return HttpVersionNotSupported(f"{version.decode('ascii')} is not spoken here; use HTTP/1.1")
    return None


def _status_line_fault(line: bytes, ended: bool, limits: Limits) -> CorralError | None:
    """What is wrong with a status line."""
    if not line.startswith(b"HTTP/") and (ended or not b"HTTP/".startswith(line)):
        return InvalidRequest("The answer does not begin with HTTP/")
    if fault := _line_end_fault("The status line", line, ended, limits):
        return fault
    if len(line) > limits.line_max_bytes:
        return HeaderFieldsTooLarge(f"The status line is longer than {limits.line_max_bytes} bytes")
    if not ended or grammar.STATUS_LINE.fullmatch(line + b"\r\n"):
        return None
    version, _, rest = line.partition(b" ")
    if version not in (b"HTTP/1.0", b"HTTP/1.1"):
        return HttpVersionNotSupported("The status line does not begin with HTTP/1.1 or HTTP/1.0")
    status, _, reason = rest.partition(b" ")
    if not (status.isdigit() and len(status) == 3 and 100 <= int(status) <= 599):
        return InvalidRequest("The status code is not a number from 100 to 599")
    return InvalidRequest(f"The reason phrase holds {_first_outside(grammar.TEXT, reason)}")


def _no_fault(line: bytes, ended: bool, limits: Limits) -> CorralError | None:
    return None


def _field_line_fault(line: bytes, where: str, ended: bool, limits: Limits) -> CorralError | None:
    """An empty line ends the head and is never a fault."""
    name, colon, value = line.partition(b":")
    if colon and grammar.TOKEN.fullmatch(name) and len(name) <= 64:
        where += f" ({name.decode('ascii')})"
    if fault := _line_end_fault(where, line, ended, limits):
        return fault
    if len(line) > limits.line_max_bytes:
        return HeaderFieldsTooLarge(f"{where} is longer than {limits.line_max_bytes} bytes")
    if not ended or not line or grammar.FIELD_LINE.fullmatch(line):
        return None
    if line[:1] in (b" ", b"\t"):
        # RFC 9112 2.2 before the first field, 5.2 (obs-fold) after it.
        return InvalidRequest(f"{where} begins with white space; folded headers are obsolete and refused")
    if not colon:
        return InvalidRequest(f"{where} has no colon")
    if not name:
        return InvalidRequest(f"{where} has no name before its colon")
    stripped = name.rstrip(b" \t")
    if stripped != name and grammar.TOKEN.fullmatch(stripped):
        return InvalidRequest(f"{where} has white space before its colon")
    if at := _first_outside(grammar.TOKEN, name):
        return InvalidRequest(f"{where}: the name holds {at}")
    return InvalidRequest(f"{where}: the value holds {_first_outside(grammar.TEXT, value)}")


def _line_end_fault(where: str, line: bytes, ended: bool, limits: Limits) -> CorralError | None:
    if not ended:
        line = line.removesuffix(b"\r")  # its LF may still come
    # Beyond the limit it is the length that is refused, however much of the line has come.
    bare = grammar.LINE_END_BYTE.search(line[: limits.line_max_bytes])
    if bare is None:
        return None
    name = "CR" if bare[0] == b"\r" else "LF"
    return InvalidRequest(f"{where} holds a bare {name}; lines end with CRLF")


def _first_outside(pattern: re.Pattern[bytes], text: bytes) -> str | None:
    """The first byte of `text` that the pattern does not take, in words."""
    match = pattern.match(text)
    position = match.end() if match else 0
    return f"the byte 0x{text[position]:02X} at position {position}" if position < len(text) else None


REQUEST_HEAD = Block(_request_line_fault, "Header line")
RESPONSE_HEAD = Block(_status_line_fault, "Header line")
# Trailers are read from the CRLF of the last chunk on, so that their first line is empty.
TRAILERS = Block(_no_fault, "Trailer line")
