"""A whole head, found in a buffer, becomes a RequestHead or a ResponseHead.

This is where most of the time for a small request goes, so the good case is two pattern matches, one
`findall` and one list; what is wrong with a bad head is found out elsewhere (faults.py). A head lies in
`buffer[start:end]`, where `end` is just behind the CRLF of its last line.
"""

from __future__ import annotations

from typing import TypeVar

from corral.errors import HeaderFieldsTooLarge
from corral.formats.http1 import grammar
from corral.formats.http1.events import Headers, Limits, RequestHead, ResponseHead, Version
from corral.formats.http1.faults import REQUEST_HEAD, RESPONSE_HEAD, TRAILERS, first_fault
from corral.formats.http1.framing import HTTP_1_0, HTTP_1_1, body_framing, expects_continue, keeps_alive
from corral.formats.http1.target import check_host, replace_host, split_target

H = TypeVar("H")
# A head, and the length of its body, if it says one. An answer's says it also where none follows: to HEAD,
# and with 204 and 304.
Parsed = tuple[H, int | None]


def parse_request_head(buffer: bytes, start: int, end: int, limits: Limits) -> Parsed[RequestHead]:
    """The request head in `buffer[start:end]`. Raises the first thing that is wrong with it."""
    line = grammar.REQUEST_LINE.match(buffer, start, end)
    if (
        line is None
        or grammar.FIELD_BLOCK.fullmatch(buffer, line.end(), end) is None
        or _too_large(buffer, start, end, limits)
    ):
        raise first_fault(REQUEST_HEAD, buffer[start:end], limits)
    headers, fields = _fields(buffer, line.end(), end, limits)
    method = line[1].decode("ascii")
    target = line[2].decode("ascii")
    version = HTTP_1_1 if line[3] == b"1" else HTTP_1_0
    path, query, authority = split_target(method, target)
    check_host(fields, headers, version)
    if authority is not None:
        replace_host(authority, fields, headers)
    length, chunked = _framing(headers, fields, version)
    head = RequestHead(
        method,
        target,
        path,
        query,
        version,
        headers,
        fields,
        chunked,
        keeps_alive(fields, version),
        expects_continue(fields, version) and (chunked or bool(length)),
    )
    return head, length


def parse_response_head(buffer: bytes, start: int, end: int, limits: Limits) -> Parsed[ResponseHead]:
    """The answer's head in `buffer[start:end]`. Raises the first thing that is wrong with it."""
    line = grammar.STATUS_LINE.match(buffer, start, end)
    if (
        line is None
        or grammar.FIELD_BLOCK.fullmatch(buffer, line.end(), end) is None
        or _too_large(buffer, start, end, limits)
    ):
        raise first_fault(RESPONSE_HEAD, buffer[start:end], limits)
    headers, fields = _fields(buffer, line.end(), end, limits)
    version = HTTP_1_1 if line[1] == b"1" else HTTP_1_0
    length, chunked = _framing(headers, fields, version)
    head = ResponseHead(
        int(line[2]), line[3] or b"", version, headers, fields, chunked, keeps_alive(fields, version)
    )
    return head, length


def _framing(headers: Headers, fields: dict[bytes, bytes], version: Version) -> tuple[int | None, bool]:
    """As `body_framing`, which finds the length once or refuses it; and takes it out of the fields."""
    framing = body_framing(fields, version)
    if framing[0] is not None:
        headers.remove((b"content-length", fields.pop(b"content-length")))
    return framing


def check_trailers(buffer: bytes, start: int, end: int, limits: Limits) -> None:
    """Trailers are read for their faults only: nobody asked for them, so they are dropped."""
    if grammar.FIELD_BLOCK.fullmatch(buffer, start + 2, end) is None or _too_large(
        buffer, start, end, limits
    ):
        raise first_fault(TRAILERS, buffer[start:end], limits)
    _fields(buffer, start + 2, end, limits)


def _fields(buffer: bytes, start: int, end: int, limits: Limits) -> tuple[Headers, dict[bytes, bytes]]:
    """The fields of a block that FIELD_BLOCK accepted, as a list and as a dict."""
    headers = [(name.lower(), value.strip()) for name, value in grammar.FIELDS.findall(buffer, start, end)]
    if len(headers) > limits.headers_max:
        raise HeaderFieldsTooLarge(
            f"There are {len(headers)} headers and only {limits.headers_max} are read; send fewer"
        )
    fields = dict(headers)
    if len(fields) < len(headers):
        # RFC 9110 5.3: repeated fields are one list, in order.
        joined: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            joined.setdefault(name, []).append(value)
        fields = {name: b", ".join(values) for name, values in joined.items()}
    return headers, fields


def _too_large(buffer: bytes, start: int, end: int, limits: Limits) -> bool:
    size = end - start
    if size <= limits.line_max_bytes:  # no line can be longer than the whole
        return False
    if size > limits.head_max_bytes:
        return True
    return max(map(len, buffer[start:end].split(b"\r\n"))) > limits.line_max_bytes
