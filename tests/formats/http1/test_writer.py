"""Heads and chunks by value, what the writer refuses, and which headers go on to the next hop."""

from __future__ import annotations

import pytest

from corral.formats.http1 import CONTINUE, LAST_CHUNK, Headers, chunk, end_to_end, request_head, response_head
from tests.formats.http1.feeding import read_answers, read_requests


def test_a_request_head_is_written() -> None:
    assert request_head("POST", "/v1/x?y", [(b"host", b"h"), (b"content-length", b"0")]) == (
        b"POST /v1/x?y HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"
    )
    assert request_head("GET", "/", []) == b"GET / HTTP/1.1\r\n\r\n"


def test_an_answers_head_is_written() -> None:
    assert response_head(200, [(b"a", b"1"), (b"a", b"2")]) == b"HTTP/1.1 200 OK\r\na: 1\r\na: 2\r\n\r\n"
    assert response_head(404, lines=b"a: \r\n") == b"HTTP/1.1 404 Not Found\r\na: \r\n\r\n"


def test_an_unknown_status_has_an_empty_phrase() -> None:
    assert response_head(599, []) == b"HTTP/1.1 599 \r\n\r\n"


@pytest.mark.parametrize("status", [0, 99, 600, 1000, -200])
def test_a_number_that_is_no_status_is_refused(status: int) -> None:
    with pytest.raises(ValueError, match="is no HTTP status"):
        response_head(status, [])


@pytest.mark.parametrize("bad", [b"\r\n", b"\r", b"\n", b"\0", b"a\r\nX-Injected: 1"], ids=repr)
def test_what_would_break_a_line_is_refused_in_names_and_values(bad: bytes) -> None:
    for header in ((b"x-a", b"b" + bad + b"c"), (b"x-a", bad), (b"x" + bad + b"y", b"1")):
        with pytest.raises(ValueError, match="holds CR, LF or NUL"):
            response_head(200, [(b"a", b"b"), header])
        with pytest.raises(ValueError, match="holds CR, LF or NUL"):
            request_head("GET", "/", [header])


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/ HTTP/1.1\r\nHost: x\r\n\r\nGET /"),
        ("GET", "/a\r\nX:y"),
        ("GET", "/a\0"),
        ("GET", ""),
        ("", "/"),
        ("GET /x", "/"),
        ("GET\n", "/"),
        ("GET", "/ü"),
    ],
)
def test_what_would_break_the_request_line_is_refused(method: str, target: str) -> None:
    with pytest.raises(ValueError, match=r"without spaces|holds CR, LF or NUL|ordinal not in range"):
        request_head(method, target, [])


def test_chunks_are_written() -> None:
    assert chunk(b"hello") == b"5\r\nhello\r\n"
    assert chunk(b"x" * 255) == b"ff\r\n" + b"x" * 255 + b"\r\n"


def test_an_empty_chunk_is_nothing_since_it_would_end_the_body() -> None:
    assert chunk(b"") == b""


def test_what_is_written_can_be_read() -> None:
    headers = [(b"host", b"h"), (b"transfer-encoding", b"chunked"), (b"x", b"J\xfcrgen")]
    body = chunk(b"hello") + chunk(b"") + chunk(b", world") + LAST_CHUNK
    request = read_requests([request_head("PUT", "/x?y", headers) + body]).messages[0]
    answer = read_answers([CONTINUE + response_head(201, headers) + body]).messages[0]
    for message in (request, answer):
        assert (message.head.headers, message.body, message.ended) == (headers, b"hello, world", True)


def test_only_end_to_end_headers_go_on() -> None:
    headers: Headers = [
        (b"host", b"h"),
        (b"connection", b"close, X-Private"),
        (b"keep-alive", b"timeout=5"),
        (b"proxy-connection", b"keep-alive"),
        (b"proxy-authorization", b"Basic x"),
        (b"proxy-authenticate", b"Basic"),
        (b"te", b"trailers"),
        (b"trailer", b"x-sum"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h2c"),
        (b"x-private", b"1"),
        (b"connection", b"x-second"),
        (b"x-second", b"2"),
        (b"content-type", b"a"),
        (b"set-cookie", b"1"),
        (b"set-cookie", b"2"),
    ]
    assert end_to_end(headers) == [
        (b"host", b"h"),
        (b"content-type", b"a"),
        (b"set-cookie", b"1"),
        (b"set-cookie", b"2"),
    ]


def test_headers_named_by_connection_are_dropped_wherever_they_stand() -> None:
    assert end_to_end([(b"x-a", b"1"), (b"connection", b" X-A ,, "), (b"x-b", b"2")]) == [(b"x-b", b"2")]
