"""What only answers have: methods that change them, interim heads, ends by closing, unasked bytes."""

from __future__ import annotations

import pytest

from corral import errors
from corral.formats.http1 import END, ResponseHead, ResponseReader, State
from tests.formats.http1.feeding import LIMITS, every_split, read_answers
from tests.formats.http1.samples import ANSWERS

LENGTH = ANSWERS["length body"][1]


@pytest.mark.parametrize("name", ANSWERS)
def test_a_body_is_what_the_sample_says(name: str) -> None:
    bodies = {
        "length body": b"hello",
        "chunked": b"data: {}\n\ndata: [DONE]\n\n",
        "chunked with extensions and trailers": b"onetwothreefour",
        "until close": b"as long as it lasts",
        "HTTP/1.0": b"ok",
        "HTTP/1.0 keep-alive": b"ok",
        "interim answers": b"ok",
    }
    method, data, eof = ANSWERS[name]
    assert read_answers([data], [method], eof=eof).messages[0].body == bodies.get(name, b"")


def test_only_a_known_end_keeps_the_connection() -> None:
    kept = {
        name: read_answers([data], [method]).messages[0].head.keep_alive
        for name, (method, data, _) in ANSWERS.items()
    }
    assert {name for name, keep_alive in kept.items() if not keep_alive} == {
        "until close",
        "until close, empty",
        "HTTP/1.0",
    }


def test_an_answer_without_a_length_ends_with_the_connection_even_if_it_promises_more() -> None:
    outcome = read_answers([b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\nabc"], eof=True)
    (message,) = outcome.messages
    assert (message.body, message.ended, message.head.keep_alive) == (b"abc", True, False)


def test_answers_follow_each_other_on_one_connection() -> None:
    reader = ResponseReader(LIMITS)
    for method, name in (("HEAD", "HEAD"), ("GET", "length body"), ("HEAD", "HEAD"), ("GET", "304")):
        reader.expect(method)
        reader.feed(ANSWERS[name][1])
        assert isinstance(reader.next_event(), ResponseHead)
        while reader.next_event() is not END:
            pass
    assert (reader.state, reader.idle) == (State.DONE, True)


def test_interim_heads_are_swallowed_but_not_without_end() -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"
    assert read_answers([interim * 16 + LENGTH]).messages == read_answers([LENGTH]).messages
    for feeds in every_split(interim * 17):
        error = read_answers(feeds).error
        assert error is not None
        assert error[1].endswith("More than 16 interim answers (1xx) come before the real one")


def test_each_answer_may_have_its_own_interim_heads() -> None:
    one = b"HTTP/1.1 102 Processing\r\n\r\n" * 16 + LENGTH
    reader = ResponseReader(LIMITS)
    for _ in range(2):
        reader.expect("GET")
        reader.feed(one)
        while reader.next_event() is not END:
            pass


def test_after_an_interim_head_the_answer_has_begun() -> None:
    reader = ResponseReader(LIMITS)
    reader.expect("POST")
    reader.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert reader.next_event() is None
    assert not reader.idle
    reader.feed_eof()
    with pytest.raises(errors.UpstreamError, match="in the middle of its answer"):
        reader.next_event()


def test_switching_protocols_is_refused() -> None:
    outcome = read_answers([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"])
    assert outcome.error == (
        errors.UpstreamError,
        "The upstream server's answer is not valid HTTP/1.1. "
        "It switches protocols (101), which no request asked for",
    )


def test_bytes_that_nobody_asked_for_are_refused_at_every_time() -> None:
    message = "The upstream server sent bytes that no request asked for"
    assert read_answers([LENGTH], []).error == (errors.UpstreamError, message)
    assert read_answers([LENGTH + b"x"]).error == (errors.UpstreamError, message)

    reader = ResponseReader(LIMITS)
    reader.feed(LENGTH)
    with pytest.raises(errors.UpstreamError, match=message):
        reader.expect("GET")
    with pytest.raises(errors.UpstreamError, match=message):
        reader.expect("GET")
    with pytest.raises(errors.UpstreamError, match=message):
        reader.next_event()


def test_an_answer_comes_out_whole_before_the_bytes_behind_it_are_refused() -> None:
    outcome = read_answers([LENGTH + b"x"])
    assert [(message.body, message.ended) for message in outcome.messages] == [(b"hello", True)]


def test_an_end_of_input_before_the_answer_can_be_told_from_one_inside_it() -> None:
    reader = ResponseReader(LIMITS)
    reader.expect("GET")
    reader.feed_eof()
    assert reader.next_event() is None
    assert reader.state is State.CLOSED
