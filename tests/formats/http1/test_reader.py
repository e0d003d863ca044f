"""What holds for both readers: the buffer, errors that stay, ends of input, and the cost of small pieces."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from corral import errors
from corral.formats.http1 import (
    END,
    Chunks,
    Data,
    Event,
    IllegalMove,
    Limits,
    RequestHead,
    RequestReader,
    ResponseHead,
    ResponseReader,
    State,
)
from tests.formats.http1.feeding import LIMITS, every_split, pieces, read_answers, read_requests
from tests.formats.http1.samples import ANSWERS, PIPELINED, REQUESTS

CHUNKED_ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def events_of(reader: RequestReader | ResponseReader, *feeds: bytes) -> list[Event]:
    events = []
    for data in feeds:
        reader.feed(data)
        while (event := reader.next_event()) is not None:
            events.append(event)
    return events


def streaming_reader() -> ResponseReader:
    """A reader in the middle of a chunked answer, at the boundary of two chunks."""
    reader = ResponseReader(LIMITS)
    reader.expect("POST")
    events_of(reader, CHUNKED_ANSWER)
    return reader


# At once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_comes_whole_is_what_its_events_would_be_or_is_left_to_them(name: str) -> None:
    data = REQUESTS[name]
    [message] = read_requests([data]).messages
    for sent in (data, data + b"G", data[:-1]):
        reader = RequestReader(LIMITS)
        told = reader.whole(sent)
        if told is None:
            assert reader.state is State.IDLE
            assert reader.buffered_bytes == 0
        else:
            assert sent is data
            assert told == (message.head, message.body)
            assert reader.state is State.DONE
            reader.start_next()
            assert read_requests_of(reader, REQUESTS["get"]) == [b""]


def test_the_usual_request_comes_at_once_when_its_words_are_known_and_only_then() -> None:
    for name in ("length body", "get", "body that looks like a request"):
        read_requests([REQUESTS[name]])
        assert RequestReader(LIMITS).whole(REQUESTS[name]) is not None, name
    unknown = b"GET /never-asked-for-before HTTP/1.1\r\nHost: h\r\n\r\n"
    assert RequestReader(LIMITS).whole(unknown) is None
    reader = RequestReader(LIMITS)
    reader.feed(b"G")
    assert reader.whole(REQUESTS["get"]) is None, "something has come before it"


def read_requests_of(reader: RequestReader, data: bytes) -> list[bytes]:
    """The bodies of what the reader makes of these bytes."""
    reader.feed(data)
    bodies = []
    while (event := reader.next_event()) is not END:
        assert event is not None
        bodies.append(event.payload if isinstance(event, Data) else b"")
    return bodies


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_comes_whole_is_what_its_events_would_be_or_is_left_to_them(name: str) -> None:
    method, data, eof = ANSWERS[name]
    [message] = read_answers([data], [method], eof=eof).messages
    for asked in (method, "HEAD"):
        for sent in (data, data + b"H", data[:-1]):
            reader = ResponseReader(LIMITS)
            assert reader.whole(sent) is None, "nothing has been asked"
            reader.expect(asked)
            told = reader.whole(sent)
            if told is None:
                assert reader.state is State.IDLE
                assert reader.buffered_bytes == 0
            else:
                assert (asked, sent) == (method, data)
                assert told == (message.head, message.body)
                assert reader.state is State.DONE


def test_the_usual_answer_comes_at_once_when_its_words_are_known() -> None:
    _, data, _ = ANSWERS["length body"]
    read_answers([data])
    reader = ResponseReader(LIMITS)
    reader.expect("POST")
    assert reader.whole(data) is not None


# Any split --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_the_same_however_it_is_cut(name: str) -> None:
    whole = read_requests([REQUESTS[name]])
    assert whole.error is None
    assert [message.ended for message in whole.messages] == [True]
    for feeds in every_split(REQUESTS[name]):
        assert read_requests(feeds) == whole


def test_pipelined_requests_are_the_same_however_they_are_cut() -> None:
    singly = [read_requests([data]).messages[0] for data in REQUESTS.values()]
    for feeds in every_split(PIPELINED):
        assert read_requests(feeds) == (singly, "IDLE", None)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_the_same_however_it_is_cut(name: str) -> None:
    method, data, eof = ANSWERS[name]
    whole = read_answers([data], [method], eof=eof)
    assert whole.error is None
    assert [message.ended for message in whole.messages] == [True]
    for feeds in every_split(data):
        assert read_answers(feeds, [method], eof=eof) == whole


def test_pieces_that_pile_up_unread_are_read_all_the_same() -> None:
    reader = RequestReader(LIMITS)
    for data in pieces(PIPELINED, 10):
        reader.feed(data)
    assert reader.buffered_bytes == len(PIPELINED)
    heads = 0
    while (event := reader.next_event()) is not None:
        heads += type(event).__name__ == "RequestHead"
        if event is END:
            reader.start_next()
    assert heads == len(REQUESTS)
    assert reader.buffered_bytes == 0


# The buffer -------------------------------------------------------------------------------------


def test_whole_chunks_come_out_as_the_object_that_was_fed() -> None:
    reader = streaming_reader()
    one = b"5\r\nhello\r\n"
    two = b"5\r\nhello\r\n7\r\n, world\r\n"
    for fed in (one, two):
        events = events_of(reader, fed)
        assert events == [Chunks(fed)]
        assert isinstance(events[0], Chunks)
        assert events[0].raw is fed


def test_a_body_comes_out_as_the_object_that_was_fed() -> None:
    reader = RequestReader(LIMITS)
    events_of(reader, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n")
    fed = b"hello"
    (event,) = events_of(reader, fed)
    assert isinstance(event, Data)
    assert event.payload is fed


def test_a_partial_chunk_does_not_wait_for_its_end() -> None:
    assert events_of(streaming_reader(), b"5\r\nhe", b"l", b"lo\r\n", b"1\r\n!\r\n") == [
        Data(b"he"),
        Data(b"l"),
        Data(b"lo"),
        Chunks(b"1\r\n!\r\n"),
    ]


def test_whole_chunks_come_first_and_the_rest_as_it_comes() -> None:
    assert events_of(streaming_reader(), b"1\r\na\r\n1\r\nb\r\n5\r\nhe", b"llo\r\n0\r\n\r\n") == [
        Chunks(b"1\r\na\r\n1\r\nb\r\n"),
        Data(b"he"),
        Data(b"llo"),
        END,
    ]


def test_a_chunk_with_an_extension_loses_it() -> None:
    assert events_of(streaming_reader(), b"1\r\na\r\n1;x=y\r\nb\r\n1\r\nc\r\n") == [
        Chunks(b"1\r\na\r\n"),
        Data(b"b"),
        Chunks(b"1\r\nc\r\n"),
    ]


def test_a_request_never_gives_chunks() -> None:
    reader = RequestReader(LIMITS)
    _, *body = events_of(
        reader,
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
    )
    assert body == [Data(b"ab"), END]


def test_the_reader_tells_how_much_is_unread_and_whether_it_is_idle() -> None:
    reader = RequestReader(LIMITS)
    assert (reader.state, reader.idle, reader.buffered_bytes) == (State.IDLE, True, 0)
    reader.feed(b"GET / HT")
    assert (reader.idle, reader.buffered_bytes) == (False, 8)
    assert reader.next_event() is None
    assert (reader.state, reader.idle, reader.buffered_bytes) == (State.HEAD, False, 8)
    events_of(reader, b"TP/1.1\r\nHost: h\r\n\r\n")
    assert (reader.state, reader.idle, reader.buffered_bytes) == (State.DONE, True, 0)
    reader.feed(b"GET /2")
    assert reader.next_event() is None
    assert (reader.state, reader.idle, reader.buffered_bytes) == (State.DONE, False, 6)
    reader.start_next()
    assert reader.next_event() is None
    assert (reader.state, reader.idle, reader.buffered_bytes) == (State.HEAD, False, 6)


# Errors -----------------------------------------------------------------------------------------


def test_after_an_error_the_same_error_comes_again_and_bytes_are_dropped() -> None:
    reader = RequestReader(LIMITS)
    reader.feed(b"GET / HTTP/9.9\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n")
    with pytest.raises(errors.HttpVersionNotSupported) as first:
        reader.next_event()
    reader.feed(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    with pytest.raises(errors.HttpVersionNotSupported) as again:
        reader.next_event()
    assert again.value is first.value
    assert (reader.state, reader.buffered_bytes, reader.idle) == (State.ERROR, 0, False)


@pytest.mark.parametrize("name", ["length body", "chunked", "chunked with extensions and trailers"])
def test_a_request_that_is_cut_short_is_an_error_at_every_place(name: str) -> None:
    data = REQUESTS[name]
    head_end = data.index(b"\r\n\r\n") + 4
    for length in range(1, len(data)):
        part = "head" if length < head_end else "body"
        assert read_requests([data[:length]], eof=True).error == (
            errors.InvalidRequest,
            f"The connection was closed in the middle of the request's {part}",
        )


@pytest.mark.parametrize("name", [name for name, (_, _, eof) in ANSWERS.items() if not eof])
def test_an_answer_that_is_cut_short_is_an_error_at_every_place(name: str) -> None:
    method, data, _ = ANSWERS[name]
    for length in range(1, len(data)):
        assert read_answers([data[:length]], [method], eof=True).error == (
            errors.UpstreamError,
            "The upstream server closed the connection in the middle of its answer",
        )


def test_an_end_of_input_between_messages_is_no_error() -> None:
    assert read_requests([], eof=True) == ([], "CLOSED", None)
    assert read_requests([REQUESTS["get"]], eof=True).state == "CLOSED"
    assert read_requests([REQUESTS["get"] + b"\r\n"], eof=True).state == "CLOSED"
    assert read_answers([], eof=True) == ([], "CLOSED", None)
    assert read_answers([ANSWERS["length body"][1]], eof=True).state == "DONE"


def test_requests_that_were_sent_before_the_end_of_input_are_still_read() -> None:
    reader = RequestReader(LIMITS)
    reader.feed(REQUESTS["get"] * 2)
    reader.feed_eof()
    for _ in range(2):
        assert type(reader.next_event()).__name__ == "RequestHead"
        assert reader.next_event() is END
        assert reader.next_event() is None
        reader.start_next()
    assert reader.next_event() is None
    assert (reader.state, reader.idle) == (State.CLOSED, True)


def test_the_program_can_not_skip_a_message() -> None:
    requests = RequestReader(LIMITS)
    with pytest.raises(IllegalMove):
        requests.start_next()
    events_of(requests, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n")
    with pytest.raises(IllegalMove):
        requests.start_next()
    answers = ResponseReader(LIMITS)
    answers.expect("GET")
    with pytest.raises(IllegalMove):
        answers.expect("GET")


# Cost -------------------------------------------------------------------------------------------


def seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def feed_all(reader: RequestReader, feeds: list[bytes], *, read: bool) -> None:
    for data in feeds:
        reader.feed(data)
        if read:
            while reader.next_event() is not None:
                pass
    while (event := reader.next_event()) is not None:
        if event is END:
            reader.start_next()


HEAD = b"GET / HTTP/1.1\r\nHost: h\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZES = (1_000, 16_000)


@pytest.mark.parametrize(
    ("line_max_bytes", "read", "make"),
    [
        (10**6, True, lambda size: pieces(HEAD + b"X: " + b"a" * size, 1)),
        (100, True, lambda size: pieces(HEAD + b"a: b\r\n" * (size // 6), 1)),
        (10**6, True, lambda size: pieces(CHUNKED + b"0\r\nX: " + b"a" * size, 1)),
        (10**6, False, lambda size: pieces(CHUNKED + b"ffffff\r\n" + b"a" * size, 1)),
        (10**6, True, lambda size: [CHUNKED + b"1\r\n!\r\n" * (size // 6)]),
        (10**6, True, lambda size: [CHUNKED + b"1;\r\n!\r\n" * (size // 7)]),
        (10**6, False, lambda size: [HEAD + b"\r\n" + (HEAD + b"\r\n") * (size // 27)]),
    ],
    ids=[
        "a long line byte by byte",
        "many lines byte by byte",
        "a trailer byte by byte",
        "unread bytes that pile up",
        "many chunks at once",
        "many extended chunks at once",
        "many requests at once",
    ],
)
def test_the_cost_grows_with_the_bytes_and_not_with_their_square(
    line_max_bytes: int, read: bool, make: Callable[[int], list[bytes]]
) -> None:
    limits = Limits(headers_max=100_000, line_max_bytes=line_max_bytes, head_max_bytes=10**6)
    small, large = (make(size) for size in SIZES)
    # 16 times the bytes: 16 times the work, not 256 times. Half-way between, in the logarithm.
    for _ in range(2):
        ratio = seconds(lambda: feed_all(RequestReader(limits), large, read=read)) / seconds(
            lambda: feed_all(RequestReader(limits), small, read=read)
        )
        if ratio < 64:
            return
    pytest.fail(f"16 times the bytes took {ratio:.0f} times as long")


FRAMINGS = {
    b"Content-Length: 5\r\n\r\nhello": 5,
    b"\r\n": None,
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n": None,
    b"Content-Length: 700\r\n\r\n" + b"x" * 700: 700,
}


@pytest.mark.parametrize("at_once", [False, True], ids=["by events", "whole where it can be"])
def test_the_length_that_is_told_is_that_of_the_last_head(at_once: bool) -> None:
    """Of each after each other, one that tells none after one that tells one included."""
    reader = RequestReader(LIMITS)
    for first, second in itertools.product(FRAMINGS, repeat=2):
        for framing in (first, second):
            data = b"POST /lengths HTTP/1.1\r\nHost: h\r\n" + framing
            if not (at_once and reader.whole(data)):
                reader.feed(data)
                assert isinstance(reader.next_event(), RequestHead)
                assert reader.content_length == FRAMINGS[framing]
                while reader.next_event() is not END:
                    pass
            assert reader.content_length == FRAMINGS[framing]
            reader.start_next()


@pytest.mark.parametrize("at_once", [False, True], ids=["by events", "whole where it can be"])
def test_the_length_that_an_answer_tells_is_its_own(at_once: bool) -> None:
    reader = ResponseReader(LIMITS)
    for first, second in itertools.product(FRAMINGS, repeat=2):
        for framing in (first, second):
            # Without a length and chunks it would go on until the connection closes.
            status = b"204 No Content" if framing == b"\r\n" else b"200 OK"
            reader.expect("POST")
            data = b"HTTP/1.1 " + status + b"\r\nServer: lengths\r\n" + framing
            if not (at_once and reader.whole(data)):
                reader.feed(data)
                assert isinstance(reader.next_event(), ResponseHead)
                while reader.next_event() is not END:
                    pass
            assert reader.content_length == FRAMINGS[framing]
