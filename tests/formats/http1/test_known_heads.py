"""What is remembered of a head is what reading it again would give: by value, for every kind of length."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from corral import errors
from corral.formats.http1 import Limits, RequestHead, RequestReader, ResponseReader
from corral.formats.http1.head import parse_request_head, parse_response_head
from corral.formats.http1.known_heads import HEADS_MAX, Known, KnownHeads
from tests.formats.http1.samples import REQUESTS

LIMITS = Limits()
POST = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer k\r\n%bAccept: a\r\n\r\n"


def requests() -> KnownHeads[RequestHead]:
    return KnownHeads(parse_request_head, LIMITS)


def post(length_line: bytes) -> bytes:
    return POST % length_line


def parsed(text: bytes) -> tuple[RequestHead, int | None]:
    return parse_request_head(text, 0, len(text) - 2, LIMITS)


def known_after(text: bytes) -> tuple[KnownHeads[RequestHead], Known[RequestHead]]:
    """What has read this, and what it knows of it."""
    known = requests()
    known.read(text)
    recalled = known.recall(text)
    assert recalled is not None
    return known, recalled[0]


def test_nothing_is_recalled_that_was_not_read() -> None:
    known = requests()
    text = post(b"Content-Length: 5\r\n")
    assert known.recall(text) is None
    head, length = known.read(text)
    assert (replace(head, words=b""), length) == parsed(text)
    recalled = known.recall(text)
    assert recalled is not None
    assert recalled[0].head is head
    assert recalled == known.recall(text, 0, recalled[0])
    assert known.recall(text.replace(b"Bearer k", b"Bearer l")) is None


@pytest.mark.parametrize("spelling", [b"Content-Length: ", b"content-length: "])
def test_another_length_in_the_same_words_is_what_reading_it_gives(spelling: bytes) -> None:
    known, first = known_after(post(spelling + b"5\r\n"))
    for digits in (b"6", b"12345678901234567", b"40", b"5"):
        text = post(spelling + digits + b"\r\n")
        head, length = parsed(text)
        assert replace(first.head, words=b"") == head
        for likely in (None, first):
            assert known.recall(text, 0, likely) == (first, (len(text), length))


def test_a_head_is_found_wherever_in_the_bytes_it_begins_and_whatever_follows() -> None:
    for line, length in ((b"Content-Length: 5\r\n", 5), (b"", None)):
        text = post(line)
        known, last = known_after(text)
        for likely in (None, last):
            for data in (b"..." + text, b"..." + text + b"hello", b"..." + text * 2):
                assert known.recall(data, 3, likely) == (last, (len(text), length))
            for cut in range(len(text)):
                assert known.recall(b"..." + text[:cut], 3, likely) is None


def test_one_that_only_begins_like_the_likely_one_is_another() -> None:
    first, second = post(b""), post(b"").replace(b"Accept: a", b"Accept: ab")
    known, likely = known_after(first)
    assert known.recall(second, 0, likely) is None
    head, _length = known.read(second)
    recalled = known.recall(second, 0, likely)
    assert recalled is not None
    assert recalled[0].head is head


def test_it_is_known_whether_a_length_tells_the_end_of_the_body() -> None:
    lines = {b"Content-Length: 5\r\n": True, b"": True, b"Transfer-Encoding: chunked\r\n": False}
    for line, by_length in lines.items():
        assert known_after(post(line))[1].ends_by_length is by_length
    answers = {
        b"200 OK\r\nContent-Length: 5\r\n": True,
        b"200 OK\r\n": False,
        b"200 OK\r\nTransfer-Encoding: chunked\r\n": False,
        b"304 Not Modified\r\nContent-Length: 5\r\n": False,
        b"204 No Content\r\n": False,
        b"103 Early Hints\r\nContent-Length: 5\r\n": False,
    }
    for line, by_length in answers.items():
        heads, text = KnownHeads(parse_response_head, LIMITS), b"HTTP/1.1 " + line + b"\r\n"
        heads.read(text)
        recalled = heads.recall(text)
        assert recalled is not None
        assert recalled[0].ends_by_length is by_length


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length: 0\r\n",
        b"Content-Length: 07\r\n",
        b"Content-Length: \r\n",
        b"Content-Length: 5 \r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: 1234567890123456789\r\n",
        b"Content-Length:5\r\n",
        b"CONTENT-LENGTH: 5\r\n",
        b"X-Content-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\nContent-Length: 0\r\n",
        b"",
    ],
)
def test_no_length_that_is_out_of_the_ordinary_is_taken_for_one_that_is_known(line: bytes) -> None:
    known, likely = known_after(post(b"Content-Length: 5\r\n"))
    text = post(line)
    assert known.recall(text) is None
    assert known.recall(text, 0, likely) is None
    assert outcome(lambda: known.read(text)) == outcome(lambda: parsed(text))
    if isinstance(outcome(lambda: parsed(text)), str):
        assert known.recall(text) is None, "what was refused is not remembered"


def outcome(read: Callable[[], tuple[RequestHead, int | None]]) -> tuple[RequestHead, int | None] | str:
    """What comes of reading: a head and a length, or what is wrong with it."""
    try:
        head, length = read()
    except errors.CorralError as error:
        return f"{type(error).__name__}: {error.message}"
    return replace(head, words=b""), length


def test_the_memory_is_bounded_in_number_and_in_size() -> None:
    known = requests()
    for number in range(HEADS_MAX + 1):
        known.read(post(b"X-Id: %d\r\n" % number))
    assert len(known._known) <= HEADS_MAX
    large = post(b"X-Id: %b\r\n" % (b"x" * 4000))
    assert known.read(large) == parsed(large)
    assert known.recall(large) is None


def test_a_head_close_to_a_limit_is_measured_each_time() -> None:
    tight = Limits(line_max_bytes=len(post(b"Content-Length: 5\r\n")))
    known = KnownHeads(parse_request_head, tight)
    known.read(post(b"Content-Length: 5\r\n"))
    assert known.recall(post(b"Content-Length: 555555\r\n")) is None


def test_an_answers_head_is_remembered_likewise() -> None:
    known = KnownHeads(parse_response_head, LIMITS)
    text = b"HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: %d\r\nKeep-Alive: timeout=5\r\n\r\n"
    known.read(text % 5)
    recalled = known.recall(text % 77)
    assert recalled is not None
    answer, extent = recalled
    assert extent == (len(text % 77), 77)
    head, length = parse_response_head(text % 77, 0, len(text % 77) - 2, LIMITS)
    assert (replace(answer.head, words=b""), 77) == (head, length)


@pytest.mark.parametrize("seed", range(20))
def test_a_reader_that_knows_a_head_gives_the_same_events_however_the_bytes_are_split(seed: int) -> None:
    dice = random.Random(seed)
    stream = b"".join(
        post(b"Content-Length: %d\r\n" % size) + b"x" * size
        for size in (dice.choice([1, 3, 40, 700]) for _ in range(8))
    )
    whole, split = RequestReader(LIMITS), RequestReader(LIMITS)
    whole.feed(stream)
    expected = taken(whole)
    found = []
    at = 0
    while at < len(stream):
        size = dice.randint(1, 200)
        split.feed(stream[at : at + size])
        found += taken(split)
        at += size
    assert merged(found) == merged(expected)
    assert len([event for event in found if isinstance(event, RequestHead)]) == 8


def taken(reader: RequestReader) -> list[object]:
    events: list[object] = []
    while True:
        event = reader.next_event()
        if event is not None:
            events.append(event)
            if isinstance(event, RequestHead):
                events.append(reader.content_length)
        elif reader.state.name == "DONE":
            reader.start_next()
        else:
            return events


def merged(events: list[object]) -> list[object]:
    """Data that came in pieces as one."""
    found: list[object] = []
    for event in events:
        payload = getattr(event, "payload", None)
        if isinstance(payload, bytes) and found and isinstance(found[-1], bytes):
            found[-1] += payload
        else:
            found.append(payload if isinstance(payload, bytes) else event)
    return found


def test_a_body_that_is_all_here_is_taken_in_one_step() -> None:
    reader = RequestReader(LIMITS)
    reader.feed(REQUESTS["get"])
    reader.next_event()
    assert reader.whole_body() is None
    reader.next_event()
    reader.start_next()
    text = post(b"Content-Length: 5\r\n")
    for pieces in ([text + b"hello"], [text, b"hello"]):
        for piece in pieces:
            reader.feed(piece)
        assert isinstance(reader.next_event(), RequestHead)
        assert reader.whole_body() == b"hello"
        reader.start_next()
    reader.feed(text + b"hel")
    reader.next_event()
    assert reader.whole_body() is None, "nothing is read before all of it is here"
    reader.feed(b"loPOST")
    event = reader.next_event()
    assert getattr(event, "payload", None) == b"hello"


def test_chunks_that_come_whole_pass_and_nothing_else_does() -> None:
    reader = ResponseReader(LIMITS)
    reader.expect("GET")
    assert not reader.passes(b"5\r\nhello\r\n"), "there is no body yet"
    reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    reader.next_event()
    assert reader.passes(b"5\r\nhello\r\n")
    assert reader.passes(b"5\r\nhello\r\n1\r\nx\r\n")
    for data in (b"5\r\nhel", b"5\r\nhello\r\n0\r\n\r\n", b"5;a=b\r\nhello\r\n", b"zz", b"0\r\n\r\n"):
        assert not reader.passes(data)
    reader.feed(b"5\r\nhe")
    assert not reader.passes(b"llo\r\n"), "a chunk is being read"
