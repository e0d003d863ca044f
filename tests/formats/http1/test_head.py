"""Heads by value."""

from __future__ import annotations

import pytest

from corral import errors
from corral.formats.http1 import Limits, RequestHead, ResponseHead
from corral.formats.http1.head import check_trailers, parse_request_head, parse_response_head
from tests.formats.http1.samples import REQUESTS

LIMITS = Limits()


def request(data: bytes) -> RequestHead:
    return parse_request_head(data, 0, data.index(b"\r\n\r\n") + 2, LIMITS)[0]


def length_of(data: bytes) -> int | None:
    return parse_request_head(data, 0, data.index(b"\r\n\r\n") + 2, LIMITS)[1]


def answer(data: bytes) -> tuple[ResponseHead, int | None]:
    return parse_response_head(data, 0, data.index(b"\r\n\r\n") + 2, LIMITS)


def test_a_request_head_is_read_with_all_its_parts() -> None:
    text = (
        b"POST /v1/x?a=%20b HTTP/1.1\r\nHost: h:8000\r\nContent-Type:application/json \r\n"
        b"Accept: a\r\nContent-Length: 12\r\naccept:  b\t\r\nExpect: 100-continue\r\n\r\n"
    )
    assert length_of(text) == 12
    assert request(text) == RequestHead(
        method="POST",
        target="/v1/x?a=%20b",
        path="/v1/x",
        query="a=%20b",
        version=(1, 1),
        headers=[
            (b"host", b"h:8000"),
            (b"content-type", b"application/json"),
            (b"accept", b"a"),
            (b"accept", b"b"),
            (b"expect", b"100-continue"),
        ],
        fields={
            b"host": b"h:8000",
            b"content-type": b"application/json",
            b"accept": b"a, b",
            b"expect": b"100-continue",
        },
        chunked=False,
        keep_alive=True,
        expects_continue=True,
    )


def test_an_answers_head_is_read_with_all_its_parts() -> None:
    head, length = answer(
        b"HTTP/1.1 404 Not  Found\r\nSet-Cookie: a=1\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: close\r\nset-cookie: b=2\r\n\r\n"
    )
    assert length is None
    assert head == ResponseHead(
        status=404,
        reason=b"Not  Found",
        version=(1, 1),
        headers=[
            (b"set-cookie", b"a=1"),
            (b"transfer-encoding", b"chunked"),
            (b"connection", b"close"),
            (b"set-cookie", b"b=2"),
        ],
        fields={b"set-cookie": b"a=1, b=2", b"transfer-encoding": b"chunked", b"connection": b"close"},
        chunked=True,
        keep_alive=False,
    )


def test_a_head_may_stand_anywhere_in_a_buffer() -> None:
    head = REQUESTS["get"]
    buffer = b"what was before" + head + b"what comes after"
    start = len(b"what was before")
    assert parse_request_head(buffer, start, start + len(head) - 2, LIMITS)[0] == request(head)


def test_nobody_waits_for_100_continue_without_a_body() -> None:
    assert not request(b"GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n").expects_continue
    assert not request(
        b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n"
    ).expects_continue
    assert request(
        b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).expects_continue


def test_the_absolute_form_keeps_the_target_as_sent() -> None:
    head = request(REQUESTS["absolute form"])
    assert (head.target, head.path, head.query) == ("http://example.org:80/a/b?c=d", "/a/b", "c=d")
    assert head.fields[b"host"] == b"example.org:80"


def test_the_number_of_headers_is_limited() -> None:
    lines = b"".join(b"X-%d: 1\r\n" % number for number in range(63))
    assert len(request(b"GET / HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n").headers) == 64
    with pytest.raises(errors.HeaderFieldsTooLarge, match="There are 65 headers and only 64 are read"):
        request(b"GET / HTTP/1.1\r\nHost: h\r\n" + lines + b"Y: 1\r\n\r\n")


def test_trailers_are_held_to_the_rules_of_headers() -> None:
    good = b"\r\nX-Sum: 1\r\n"
    check_trailers(good, 0, len(good), LIMITS)
    check_trailers(b"\r\n", 0, 2, LIMITS)
    for bad, message in (
        (b"\r\nX-Sum 1\r\n", "Trailer line 1 has no colon"),
        (b"\r\nX: 1\r\nY : 1\r\n", "Trailer line 2 has white space before its colon"),
    ):
        with pytest.raises(errors.InvalidRequest, match=message):
            check_trailers(bad, 0, len(bad), LIMITS)
    with pytest.raises(errors.HeaderFieldsTooLarge):
        check_trailers(b"\r\n" + b"a:\r\n" * 65, 0, 2 + 65 * 4, LIMITS)
