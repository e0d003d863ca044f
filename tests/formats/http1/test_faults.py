"""Every malformed head by value: which error it is, and in which words, however it is cut."""

from __future__ import annotations

import pytest

from corral import errors
from corral.errors import CorralError
from corral.formats.http1 import Limits
from tests.formats.http1.feeding import every_split, pieces, read_answers, read_requests

GET = b"GET / HTTP/1.1\r\n"
HOST = b"Host: h\r\n"

BAD_REQUEST_LINES: dict[bytes, tuple[type[CorralError], str]] = {
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": (
        errors.InvalidRequest,
        "This looks like the start of a TLS connection, but plain HTTP is spoken here; "
        "use http:// and not https://",
    ),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": (
        errors.InvalidRequest,
        "This is the preface of HTTP/2, which is not spoken here; use HTTP/1.1",
    ),
    b"\x00\x01\x02": (
        errors.InvalidRequest,
        "The request line begins with the byte 0x00; this is not HTTP",
    ),
    b'{"model": "a"}\r\n\r\n': (
        errors.InvalidRequest,
        "The request line begins with the byte 0x7B; this is not HTTP",
    ),
    b" GET / HTTP/1.1\r\n\r\n": (errors.InvalidRequest, "The request line begins with white space"),
    b"GET / HTTP/1.1\nHost: h\n\n": (
        errors.InvalidRequest,
        "The request line holds a bare LF; lines end with CRLF",
    ),
    b"GET / HTTP/1.1\rHost: h\r\n\r\n": (
        errors.InvalidRequest,
        "The request line holds a bare CR; lines end with CRLF",
    ),
    b"\nGET / HTTP/1.1\r\n\r\n": (
        errors.InvalidRequest,
        "The request line holds a bare LF; lines end with CRLF",
    ),
    b"\rGET / HTTP/1.1\r\n\r\n": (
        errors.InvalidRequest,
        "The request line holds a bare CR; lines end with CRLF",
    ),
    b"G\x00T / HTTP/1.1\r\n\r\n": (errors.InvalidRequest, "The method holds the byte 0x00 at position 1"),
    b"GET\t/ HTTP/1.1\r\n\r\n": (errors.InvalidRequest, "The method holds the byte 0x09 at position 3"),
    b"A" * 33 + b" / HTTP/1.1\r\n\r\n": (
        errors.NotImplementedHere,
        "The method is longer than 32 characters",
    ),
    b"GET\r\n\r\n": (
        errors.InvalidRequest,
        "The request line has no target after the method and one space",
    ),
    b"GET  / HTTP/1.1\r\n\r\n": (
        errors.InvalidRequest,
        "The request line has no target after the method and one space",
    ),
    b"GET /\r\n\r\n": (errors.InvalidRequest, "The request line has no HTTP version; use HTTP/1.1"),
    b"GET / a HTTP/1.1\r\n\r\n": (
        errors.InvalidRequest,
        "The request line has more than two spaces; percent-encode a space as %20",
    ),
    b"GET / HTTP/1.1 \r\n\r\n": (
        errors.InvalidRequest,
        "The request line has more than two spaces; percent-encode a space as %20",
    ),
    b"GET /a#b HTTP/1.1\r\n\r\n": (
        errors.InvalidRequest,
        "The request target holds the byte 0x23 at position 2; percent-encode it",
    ),
    "GET /ü HTTP/1.1\r\n\r\n".encode(): (
        errors.InvalidRequest,
        "The request target holds the byte 0xC3 at position 1; percent-encode it",
    ),
    b"GET /\x00 HTTP/1.1\r\n\r\n": (
        errors.InvalidRequest,
        "The request target holds the byte 0x00 at position 1; percent-encode it",
    ),
    b"GET / http/1.1\r\n\r\n": (
        errors.InvalidRequest,
        "The request line does not end with a valid HTTP version; use HTTP/1.1",
    ),
    b"GET / HTTP/1.1x\r\n\r\n": (
        errors.InvalidRequest,
        "The request line does not end with a valid HTTP version; use HTTP/1.1",
    ),
    b"GET / HTTP/11.1\r\n\r\n": (
        errors.InvalidRequest,
        "The request line does not end with a valid HTTP version; use HTTP/1.1",
    ),
    b"GET / HTTP/2.0\r\n\r\n": (
        errors.HttpVersionNotSupported,
        "HTTP/2.0 is not spoken here; use HTTP/1.1",
    ),
    b"GET / HTTP/1.2\r\n\r\n": (
        errors.HttpVersionNotSupported,
        "HTTP/1.2 is not spoken here; use HTTP/1.1",
    ),
    b"GET / HTTP/0.9\r\n\r\n": (
        errors.HttpVersionNotSupported,
        "HTTP/0.9 is not spoken here; use HTTP/1.1",
    ),
}

BAD_FIELD_LINES: dict[bytes, str] = {
    b" Host: h": "Header line 1 begins with white space; folded headers are obsolete and refused",
    b"Host: h\r\n folded: x": (
        "Header line 2 begins with white space; folded headers are obsolete and refused"
    ),
    b"Host: h\r\n\tfolded": (
        "Header line 2 begins with white space; folded headers are obsolete and refused"
    ),
    b"Host : h": "Header line 1 has white space before its colon",
    b"Host\t: h": "Header line 1 has white space before its colon",
    b"Host h": "Header line 1 has no colon",
    b": h": "Header line 1 has no name before its colon",
    b"Ho st: h": "Header line 1: the name holds the byte 0x20 at position 2",
    b"Host\x00: h": "Header line 1: the name holds the byte 0x00 at position 4",
    "Hüst: h".encode(): "Header line 1: the name holds the byte 0xC3 at position 1",
    b'"Host": h': "Header line 1: the name holds the byte 0x22 at position 0",
    b"Host: h\r\nX-A: a\x00b": "Header line 2 (X-A): the value holds the byte 0x00 at position 2",
    b"Host: h\r\nX-A: a\x7f": "Header line 2 (X-A): the value holds the byte 0x7F at position 2",
    b"Host: h\r\nX-A: a\x0bb": "Header line 2 (X-A): the value holds the byte 0x0B at position 2",
    b"Host: h\r\nX-A: a\rb": "Header line 2 (X-A) holds a bare CR; lines end with CRLF",
    b"Host: h\r\nX-A: a\nX-B: b": "Header line 2 (X-A) holds a bare LF; lines end with CRLF",
    b"Host: h\r\nX-A: a\r\r\nX-B: b": "Header line 2 (X-A) holds a bare CR; lines end with CRLF",
    b"Host: h\nTransfer-Encoding: chunked": "Header line 1 (Host) holds a bare LF; lines end with CRLF",
    b"Host: h\r\n\nX: y": "Header line 2 holds a bare LF; lines end with CRLF",
    # The first fault in the order of the bytes is the one that is told.
    b"Host h\r\nX-A: a\nb": "Header line 1 has no colon",
    b"Host: h\x01\nX: \r": "Header line 1 (Host) holds a bare LF; lines end with CRLF",
}


@pytest.mark.parametrize("head", BAD_REQUEST_LINES, ids=lambda head: repr(head)[:40])
def test_a_bad_request_line_is_refused_in_the_same_words_however_it_is_cut(head: bytes) -> None:
    for feeds in every_split(head):
        assert read_requests(feeds) == ([], "ERROR", BAD_REQUEST_LINES[head])


@pytest.mark.parametrize("lines", BAD_FIELD_LINES, ids=repr)
def test_a_bad_header_line_is_refused_in_the_same_words_however_it_is_cut(lines: bytes) -> None:
    for feeds in every_split(GET + lines + b"\r\n\r\n"):
        assert read_requests(feeds) == ([], "ERROR", (errors.InvalidRequest, BAD_FIELD_LINES[lines]))


@pytest.mark.parametrize("lines", BAD_FIELD_LINES, ids=repr)
def test_an_answer_with_a_bad_header_line_is_an_upstream_error(lines: bytes) -> None:
    for feeds in every_split(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n\r\n"):
        message = f"The upstream server's answer is not valid HTTP/1.1. {BAD_FIELD_LINES[lines]}"
        assert read_answers(feeds) == ([], "ERROR", (errors.UpstreamError, message))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"SSH-2.0-x\r\n", "The answer does not begin with HTTP/"),
        (b"\x15\x03\x01", "The answer does not begin with HTTP/"),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n", "The answer does not begin with HTTP/"),
        (b"HTTP/2 200\r\n\r\n", "The status line does not begin with HTTP/1.1 or HTTP/1.0"),
        (b"HTTP/1.1 abc\r\n\r\n", "The status code is not a number from 100 to 599"),
        (b"HTTP/1.1 99\r\n\r\n", "The status code is not a number from 100 to 599"),
        (b"HTTP/1.1 600 x\r\n\r\n", "The status code is not a number from 100 to 599"),
        (b"HTTP/1.1 +20 x\r\n\r\n", "The status code is not a number from 100 to 599"),
        (b"HTTP/1.1  200 OK\r\n\r\n", "The status code is not a number from 100 to 599"),
        (b"HTTP/1.1 200 O\x00K\r\n\r\n", "The reason phrase holds the byte 0x00 at position 1"),
        (b"HTTP/1.1 200 OK\n\r\n\r\n", "The status line holds a bare LF; lines end with CRLF"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_status_line_is_an_upstream_error(head: bytes, message: str) -> None:
    for feeds in every_split(head):
        outcome = read_answers(feeds)
        assert outcome.error == (
            errors.UpstreamError,
            f"The upstream server's answer is not valid HTTP/1.1. {message}",
        )


SMALL = Limits(headers_max=3, line_max_bytes=40, head_max_bytes=100)


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (
            b"GET /" + b"a" * 27 + b" HTTP/1.1\r\n",  # 41 bytes
            (
                errors.UriTooLong,
                "The request line is longer than 40 bytes; shorten the URL or send the data in the body",
            ),
        ),
        (
            GET + HOST + b"X: " + b"a" * 38 + b"\r\n",
            (errors.HeaderFieldsTooLarge, "Header line 2 (X) is longer than 40 bytes"),
        ),
        (
            GET + HOST + (b"X: " + b"a" * 30 + b"\r\n") * 3,
            (errors.HeaderFieldsTooLarge, "The head is larger than 100 bytes; send fewer headers"),
        ),
        (
            GET + HOST + b"a:\r\n" * 3,
            (errors.HeaderFieldsTooLarge, "There are 4 headers and only 3 are read; send fewer"),
        ),
        (
            # A fault before the limit is told before the limit.
            GET + HOST + b"bad\r\nX: " + b"a" * 50 + b"\r\n",
            (errors.InvalidRequest, "Header line 2 has no colon"),
        ),
    ],
    ids=["request line", "header line", "head", "count", "fault first"],
)
def test_what_is_too_large_is_refused_in_the_same_words_however_it_is_cut(
    head: bytes, error: tuple[type[CorralError], str]
) -> None:
    for feeds in every_split(head + b"\r\n"):
        assert read_requests(feeds, limits=SMALL) == ([], "ERROR", error)


def test_only_what_lies_within_the_limits_is_judged() -> None:
    # A fault behind the end of what is read is not told, also when it came along in one piece.
    for head in (GET + HOST + b"X: " + b"a" * 50 + b"\nb\r\n", GET + HOST + b"X: " + b"a" * 38 + b"\x00\r\n"):
        for feeds in every_split(head + b"\r\n"):
            error = read_requests(feeds, limits=SMALL).error
            assert error == (errors.HeaderFieldsTooLarge, "Header line 2 (X) is longer than 40 bytes")
    for padding in range(8):  # so that the limit falls on every byte of a line's end
        head = GET + b"a:" + b"b" * padding + b"\r\n" + b"c: d\r\n" * 20 + b"bad\r\n"
        for feeds in ([head], pieces(head, 1)):
            error = read_requests(feeds, limits=SMALL).error
            assert error == (
                errors.HeaderFieldsTooLarge,
                "The head is larger than 100 bytes; send fewer headers",
            )


def test_what_is_just_within_the_limits_is_read_however_it_is_cut() -> None:
    line = b"GET /" + b"a" * 26 + b" HTTP/1.1\r\n"
    head = line + b"Host: h\r\nX: " + b"a" * 37 + b"\r\n"
    head += b"Y:" + b"a" * (100 - len(head) - 4) + b"\r\n"
    assert (len(line), len(head)) == (42, 100)
    for feeds in every_split(head + b"\r\n"):
        outcome = read_requests(feeds, limits=SMALL)
        assert outcome.error is None
        assert len(outcome.messages) == 1


@pytest.mark.parametrize("endless", [b"a", b"GET /" + b"a" * 100, GET + b"X: y", GET + b"X: y\r\n" * 30])
def test_a_head_that_never_ends_is_refused_at_its_limit(endless: bytes) -> None:
    outcome = read_requests(pieces(endless.ljust(300, b"a"), 7), limits=SMALL)
    assert outcome.error is not None
    assert outcome.error[0].status in (414, 431)


def test_a_long_line_is_refused_at_its_limit_also_behind_another_request() -> None:
    first = GET + HOST + b"\r\n"
    start = GET + HOST + b"X: "
    outcome = read_requests([first + start, *[b"a"] * 38], limits=SMALL)
    assert outcome.error == (errors.HeaderFieldsTooLarge, "Header line 2 (X) is longer than 40 bytes")


def test_a_message_shows_neither_values_nor_queries() -> None:
    secret = "sk-prod-abc123def456"
    for head in (
        f"GET /?api_key={secret}\x01 HTTP/1.1\r\n\r\n",
        f"GET / HTTP/1.1\r\nAuthorization: Bearer {secret}\x01\r\n\r\n",
        f"GET / HTTP/1.1\r\nAuthorization : Bearer {secret}\r\n\r\n",
        f"GET / HTTP/1.1\r\nBearer {secret}\r\n\r\n",
        f"GET / HTTP/1.1\r\nBearer {secret}: x\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {secret} x\r\n\r\n",
        f"{secret} {secret} {secret}\r\n\r\n",
    ):
        outcome = read_requests([head.encode()])
        assert outcome.error is not None
        assert secret not in outcome.error[1]
