"""The events' own small talents."""

from __future__ import annotations

from corral.formats.http1 import END, Chunks, End, Limits
from corral.formats.http1.head import parse_request_head, parse_response_head


def test_a_header_is_looked_up_as_text() -> None:
    line = b"GET / HTTP/1.1\r\nHost: h\r\nX-Name: J\xfcrgen\r\n"
    head, _length = parse_request_head(line, 0, len(line), Limits())
    assert head.header(b"x-name") == "Jürgen"
    assert head.header(b"x-other") is None


def test_an_answers_header_is_looked_up_as_text() -> None:
    line = b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\n"
    head, _length = parse_response_head(line, 0, len(line), Limits())
    assert head.header(b"server") == "llama.cpp"
    assert head.header(b"x-other") is None


def test_chunks_give_their_payload() -> None:
    assert Chunks(b"5\r\nhello\r\n").payload() == b"hello"
    assert Chunks(b"5\r\nhello\r\n0A\r\n0123456789\r\n2\r\n\r\n\r\n").payload() == b"hello0123456789\r\n"


def test_the_end_is_true_so_that_a_loop_can_test_for_it() -> None:
    assert END
    assert isinstance(END, End)
