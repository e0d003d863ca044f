"""Each pattern on what it takes and what it refuses, and all of them on hostile input of two sizes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from corral.formats.http1 import grammar


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (grammar.REQUEST_LINE, b"GET / HTTP/1.1\r\n"),
        (grammar.REQUEST_LINE, b"M-SEARCH * HTTP/1.0\r\n"),
        (grammar.REQUEST_LINE, b"!#$%&'*+-.^_`|~09AZaz /~?a=1&b[]={}|^`'%zz HTTP/1.1\r\n"),
        (grammar.STATUS_LINE, b"HTTP/1.1 200 OK\r\n"),
        (grammar.STATUS_LINE, b"HTTP/1.0 599 \r\n"),
        (grammar.STATUS_LINE, b"HTTP/1.1 404\r\n"),
        (grammar.STATUS_LINE, "HTTP/1.1 200 schön\tgut\r\n".encode()),
        (grammar.FIELD_BLOCK, b""),
        (grammar.FIELD_BLOCK, b"a:\r\nB: c d\te\xff\r\n"),
        (grammar.HOST, b""),
        (grammar.HOST, b"localhost"),
        (grammar.HOST, b"127.0.0.1:8000"),
        (grammar.HOST, b"[2001:db8::1]:65535"),
        (grammar.HOST, b"my_service-1.internal:"),
        (grammar.CHUNK_HEAD, b"0\r\n"),
        (grammar.CHUNK_HEAD, b"00000000aBcDeF9\r\n"),
        (grammar.CHUNK_HEAD, b"1;\r\n"),
        (grammar.CHUNK_HEAD, b'1 \t;a="b;c"\r\n'),
    ],
    ids=repr,
)
def test_a_pattern_takes_what_is_valid(pattern: re.Pattern[bytes], text: bytes) -> None:
    assert pattern.fullmatch(text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (grammar.REQUEST_LINE, b"GET  / HTTP/1.1\r\n"),
        (grammar.REQUEST_LINE, b"GET / HTTP/1.2\r\n"),
        (grammar.REQUEST_LINE, b"GET / http/1.1\r\n"),
        (grammar.REQUEST_LINE, b"GET / HTTP/1.1\n"),
        (grammar.REQUEST_LINE, b"GET\t/ HTTP/1.1\r\n"),
        (grammar.REQUEST_LINE, b"G(T / HTTP/1.1\r\n"),
        (grammar.REQUEST_LINE, b"GET /# HTTP/1.1\r\n"),
        (grammar.REQUEST_LINE, b"GET /\\ HTTP/1.1\r\n"),
        (grammar.REQUEST_LINE, b"GET /\xc3\xbc HTTP/1.1\r\n"),
        (grammar.REQUEST_LINE, b"GET /\x7f HTTP/1.1\r\n"),
        (grammar.REQUEST_LINE, b"A" * 33 + b" / HTTP/1.1\r\n"),
        (grammar.STATUS_LINE, b"HTTP/1.1 099 x\r\n"),
        (grammar.STATUS_LINE, b"HTTP/1.1 600 x\r\n"),
        (grammar.STATUS_LINE, b"HTTP/1.1 20 x\r\n"),
        (grammar.STATUS_LINE, b"HTTP/1.1  200 x\r\n"),
        (grammar.STATUS_LINE, b"HTTP/1.1 200 a\x00b\r\n"),
        (grammar.FIELD_BLOCK, b"a : b\r\n"),
        (grammar.FIELD_BLOCK, b": b\r\n"),
        (grammar.FIELD_BLOCK, b"a: b\n"),
        (grammar.FIELD_BLOCK, b"a: b\r\n c\r\n"),
        (grammar.FIELD_BLOCK, b"a: b\rc\r\n"),
        (grammar.FIELD_BLOCK, b"a\xff: b\r\n"),
        (grammar.FIELD_BLOCK, b"a: b\x0b\r\n"),
        (grammar.HOST, b"a b"),
        (grammar.HOST, b"a, b"),
        (grammar.HOST, b"user@host"),
        (grammar.HOST, b"host/path"),
        (grammar.HOST, b"host:80a"),
        (grammar.HOST, b"host:123456"),
        (grammar.HOST, b"::1"),
        (grammar.HOST, b"[::1"),
        (grammar.HOST, b"[]"),
        (grammar.CHUNK_HEAD, b"\r\n"),
        (grammar.CHUNK_HEAD, b"1 \r\n"),
        (grammar.CHUNK_HEAD, b" 1\r\n"),
        (grammar.CHUNK_HEAD, b"+1\r\n"),
        (grammar.CHUNK_HEAD, b"0x1\r\n"),
        (grammar.CHUNK_HEAD, b"1_0\r\n"),
        (grammar.CHUNK_HEAD, b"1\n"),
        (grammar.CHUNK_HEAD, b"1;a\nb\r\n"),
        (grammar.CHUNK_HEAD, b"1" * 16 + b"\r\n"),
        (grammar.CHUNK_HEAD, b"1;" + b"a" * 257 + b"\r\n"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_pattern_refuses_what_is_not(pattern: re.Pattern[bytes], text: bytes) -> None:
    assert not pattern.fullmatch(text)


def test_a_bare_line_end_is_found_by_the_byte_beside_it() -> None:
    assert grammar.BARE_LINE_END.search(b"a\r\nb\r\n\r\n") is None
    assert grammar.BARE_LINE_END.search(b"a\r\nb\r") is None
    assert grammar.BARE_LINE_END.search(b"a\nb")
    assert grammar.BARE_LINE_END.search(b"a\rb")
    assert grammar.BARE_LINE_END.search(b"a\r\r\n")
    assert grammar.BARE_LINE_END.search(b"a\r\n\n")


def seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


@pytest.mark.parametrize(
    ("pattern", "hostile"),
    [
        (grammar.FIELD_BLOCK, lambda size: b"a:" + b" " * size + b"\x00"),
        (grammar.FIELD_BLOCK, lambda size: b"a" * size),
        (grammar.FIELD_BLOCK, lambda size: b"a:b\r\n" * (size // 5) + b"\x00"),
        (grammar.FIELD_BLOCK, lambda size: b"a:" + b"\r\n" * size),
        (grammar.REQUEST_LINE, lambda size: b"GET " + b"/" * size),
        (grammar.REQUEST_LINE, lambda size: b"GET /" + b"?" * size + b" HTTP/1.1\n"),
        (grammar.STATUS_LINE, lambda size: b"HTTP/1.1 200 " + b" " * size + b"\n"),
        (grammar.HOST, lambda size: b"a" * size + b"@"),
        (grammar.HOST, lambda size: b"[" + b":" * size),
        (grammar.CHUNK_HEAD, lambda size: b"1" + b" " * size + b";"),
        (grammar.CHUNK_HEAD_BEGUN, lambda size: b"1" + b" " * size + b";"),
        (grammar.BARE_LINE_END, lambda size: b"\r\n" * size),
    ],
    ids=lambda value: None,
)
def test_a_pattern_takes_linear_time_on_hostile_input(
    pattern: re.Pattern[bytes], hostile: Callable[[int], bytes]
) -> None:
    small, large = hostile(2_000), hostile(32_000)
    # Sixteen times the input: about 16 times the work if linear, 256 times if quadratic. The floor
    # keeps patterns that give up at once from being compared by noise.
    floor_s = 0.0005
    assert seconds(lambda: pattern.fullmatch(large)) < 100 * max(
        seconds(lambda: pattern.fullmatch(small)), floor_s
    )
