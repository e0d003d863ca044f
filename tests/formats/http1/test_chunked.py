"""Runs of plain chunks, and what a chunk's head may not be."""

from __future__ import annotations

import pytest

from corral import errors
from corral.formats.http1 import chunked
from corral.formats.http1.chunked import EXTENSIONS_MAX_BYTES, is_plain, plain_run, strip_framing
from tests.formats.http1.feeding import every_split, pieces, read_answers, read_requests

POST = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("buffer", "end"),
    [
        (b"", 0),
        (b"5\r\nhello\r\n", 10),
        (b"5\r\nhello\r\n1\r\n!\r\n", 16),
        (b"5\r\nhello\r\n0\r\n\r\n", 10),
        (b"5\r\nhello\r\n000\r\n\r\n", 10),
        (b"5\r\nhello\r\n1\r\n!\r", 10),
        (b"5\r\nhello\r\n1;x\r\n!\r\n", 10),
        (b"5\r\nhello\n\n", 0),
        (b"5\r\nhello", 0),
        (b"5", 0),
        (b"x", 0),
    ],
    ids=repr,
)
def test_a_run_ends_before_what_is_no_whole_plain_chunk(buffer: bytes, end: int) -> None:
    assert plain_run(buffer, 0) == end
    assert plain_run(b"1\r\n!\r\n" + buffer, 6) == 6 + end


@pytest.mark.parametrize("size", [1, 15, 16, 255, 256, 4095, 4096])
def test_what_is_nothing_but_plain_chunks_is_known_as_such(size: int) -> None:
    one = b"%x\r\n%b\r\n" % (size, b"x" * size)
    for _ in range(2):  # known the second time, unless its head is an unusual one
        assert is_plain(one)
        assert not is_plain(one[:-1])
        assert not is_plain(one[:-1] + b"x")
        assert not is_plain(one + b"x")
        assert is_plain(one + one)
        assert is_plain(one.replace(b"%x" % size, b"%X" % size))


@pytest.mark.parametrize("head", [b"0", b"00", b"000", b"+10", b"1_0", b"-10", b" 10"])
def test_what_is_no_plain_chunk_is_not_known_as_one_however_often_it_comes(head: bytes) -> None:
    data = b"%b\r\n%b\r\n" % (head, b"x" * abs(int(head, 16)))
    assert not any(is_plain(data) for _ in range(3))


def test_whatever_a_peer_does_few_lengths_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_LENGTHS_MAX", 3)
    for letter in b"abcdefg":
        one = b"10\r\n%b\r\n" % (bytes([letter]) * 16)
        assert is_plain(one)
        assert is_plain(one)
        assert len(chunked._lengths) <= 3


def test_a_run_loses_its_framing() -> None:
    assert strip_framing(b"5\r\nhello\r\n1\r\n!\r\n") == b"hello!"


BAD_BODIES = {
    b"x\r\n": "A chunk of the body begins with the byte 0x78 and not with its size",
    b"\r\n": "A chunk of the body begins with the byte 0x0D and not with its size",
    b" 5\r\nhello\r\n": "A chunk of the body begins with the byte 0x20 and not with its size",
    b"-5\r\nhello\r\n": "A chunk of the body begins with the byte 0x2D and not with its size",
    b"1\r\n!\r\n\r\n0\r\n\r\n": "A chunk of the body begins with the byte 0x0D and not with its size",
    b"0x5\r\nhello\r\n": "The size of a chunk is not followed by CRLF",
    b"5\nhello\r\n": "The size of a chunk is not followed by CRLF",
    b"5\rhello\r\n": "The size of a chunk is not followed by CRLF",
    b"5 \r\nhello\r\n": "The size of a chunk is not followed by CRLF",
    b"5         ;x\r\nhello\r\n": "The size of a chunk is not followed by CRLF",
    b"5;a\nb\r\nhello\r\n": "The size of a chunk is not followed by CRLF",
    b"5;a\x00\r\nhello\r\n": "The size of a chunk is not followed by CRLF",
    b"5_0\r\nhello\r\n": "The size of a chunk is not followed by CRLF",
    b"0" * 15 + b"5\r\nhello\r\n": "The size of a chunk has more than 15 digits",
    b"f" * 16: "The size of a chunk has more than 15 digits",
    b"5;" + b"x" * 257 + b"\r\nhello\r\n": "The extension of a chunk is longer than 256 bytes",
    b"5\r\nhelloX\r\n": "The data of a chunk is not followed by CRLF",
    b"5\r\nhello\n": "The data of a chunk is not followed by CRLF",
    b"5\r\nhello\r\r\n": "The data of a chunk is not followed by CRLF",
    b"0\r\nbad\r\n\r\n": "Trailer line 1 has no colon",
    b"0\r\nX: a\nb\r\n\r\n": "Trailer line 1 (X) holds a bare LF; lines end with CRLF",
    b"0\r\n X: a\r\n\r\n": "Trailer line 1 begins with white space; folded headers are obsolete and refused",
    b"0\r\nX: " + b"a" * 9000: "Trailer line 1 (X) is longer than 8192 bytes",
    b"0\r\n" + b"a:\r\n" * 65 + b"\r\n": "There are 65 headers and only 64 are read; send fewer",
    b"0\r\n" + b"a:\r\n" * 20000: "The head is larger than 65536 bytes; send fewer headers",
}


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: repr(body)[:40])
def test_a_bad_chunk_is_refused_in_the_same_words_however_it_is_cut(body: bytes) -> None:
    ways = list(every_split(body)) if len(body) < 1000 else [[body], pieces(body, 100)]
    for feeds in ways:
        outcome = read_requests([POST, *feeds])
        assert outcome.error is not None
        assert outcome.error[1] == BAD_BODIES[body]
        assert not outcome.messages[0].ended
        outcome = read_answers([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *feeds])
        assert outcome.error == (
            errors.UpstreamError,
            f"The upstream server's answer is not valid HTTP/1.1. {BAD_BODIES[body]}",
        )


def test_extensions_are_limited_together_and_anew_for_each_body() -> None:
    one = b"1;" + b"x" * 127 + b"\r\n!\r\n"
    enough = EXTENSIONS_MAX_BYTES // 128
    full = POST + one * enough + b"0\r\n\r\n"
    outcome = read_requests([full, full])
    assert outcome.error is None
    assert [message.body for message in outcome.messages] == [b"!" * enough] * 2
    outcome = read_requests([POST + one * (enough + 1)])
    assert outcome.error == (
        errors.InvalidRequest,
        "The extensions of the body's chunks are longer than 16384 bytes together",
    )
