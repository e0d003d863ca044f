"""What only requests have: pipelining in order, empty lines, smuggling that must not come through."""

from __future__ import annotations

import pytest

from corral import errors
from corral.formats.http1 import END, Data, RequestHead, RequestReader
from tests.formats.http1.feeding import LIMITS, every_split, read_requests
from tests.formats.http1.samples import REQUESTS


def test_the_next_request_waits_until_it_is_asked_for() -> None:
    reader = RequestReader(LIMITS)
    reader.feed(REQUESTS["length body"] + REQUESTS["get"])
    first = reader.next_event()
    assert isinstance(first, RequestHead)
    assert first.path == "/v1/chat/completions"
    assert reader.next_event() == Data(b'{"model":"a"}')
    assert reader.next_event() is END
    assert reader.next_event() is None
    assert reader.buffered_bytes == len(REQUESTS["get"])
    reader.start_next()
    second = reader.next_event()
    assert isinstance(second, RequestHead)
    assert second.path == "/v1/models"


def test_a_body_is_never_read_as_a_request() -> None:
    outcome = read_requests([REQUESTS["body that looks like a request"] + REQUESTS["get"]])
    assert [message.head.fields[b"host"] for message in outcome.messages] == [b"h", b"localhost:8000"]
    assert outcome.messages[0].body == b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"


def test_a_get_may_have_a_body_and_its_length_counts() -> None:
    outcome = read_requests([b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc" + REQUESTS["get"]])
    assert [message.body for message in outcome.messages] == [b"abc", b""]


@pytest.mark.parametrize(
    "smuggled",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"Content-Length: 4\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"Content-Length: 4\r\nTransfer-Encoding:\x0bchunked\r\n\r\n",
        b"Content-Length: 4\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n",
        b"Content-Length: 4\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n",
        b"Content-Length: 4\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n",
        b"Content-Length: 4\r\nContent-Length: 40\r\n\r\n",
        b"Content-Length: 4\r\n\x00Content-Length: 40\r\n\r\n",
        b"Content_Length: 4\r\nContent-Length\t: 40\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
    ],
    ids=repr,
)
def test_no_request_comes_through_that_two_readers_could_count_differently(smuggled: bytes) -> None:
    data = b"POST / HTTP/1.1\r\nHost: h\r\n" + smuggled + b"0\r\n\r\nGET /secret HTTP/1.1\r\nHost: h\r\n\r\n"
    for feeds in every_split(data):
        outcome = read_requests(feeds)
        assert outcome.messages == []
        assert outcome.state == "ERROR"


def test_a_few_empty_lines_before_a_request_are_skipped_and_more_are_not() -> None:
    for count in range(5):
        data = REQUESTS["get"] + b"\r\n" * count + REQUESTS["get"]
        for feeds in every_split(data):
            assert len(read_requests(feeds).messages) == 2
    assert len(read_requests([(b"\r\n" * 4 + REQUESTS["get"]) * 2]).messages) == 2
    for feeds in every_split(REQUESTS["get"] + b"\r\n" * 5 + REQUESTS["get"]):
        assert read_requests(feeds).error == (
            errors.InvalidRequest,
            "More than 4 empty lines come before the request line",
        )


def test_an_empty_line_leaves_the_reader_idle() -> None:
    reader = RequestReader(LIMITS)
    reader.feed(b"\r\n")
    assert reader.next_event() is None
    assert reader.idle


def test_a_body_that_ends_in_cr_lends_it_to_no_line_of_the_next_request() -> None:
    body = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n\r"
    for feeds in every_split(body + b"\nGET"):
        assert read_requests(feeds).error == (
            errors.InvalidRequest,
            "The request line holds a bare LF; lines end with CRLF",
        )


@pytest.mark.parametrize(
    ("name", "keep_alive"),
    [("get", True), ("close", False), ("HTTP/1.0", False), ("HTTP/1.0 keep-alive", True)],
)
def test_the_head_says_whether_the_connection_lives_on(name: str, keep_alive: bool) -> None:
    assert read_requests([REQUESTS[name]]).messages[0].head.keep_alive is keep_alive


def test_chunked_bodies_are_put_together() -> None:
    bodies = {
        name: read_requests([REQUESTS[name]]).messages[0].body
        for name in ("chunked", "chunked with extensions and trailers", "no chunks but the last")
    }
    assert bodies == {
        "chunked": b"hello, world\r\n\r\n",
        "chunked with extensions and trailers": b"hello!end",
        "no chunks but the last": b"",
    }
