from __future__ import annotations

import asyncio

import pytest

from corral import errors
from corral.drivers.http_server import Exchange
from corral.formats import http1
from tests.drivers.serving import RawClient, serving


def ask(handler: object, request: bytes) -> bytes:
    """All that the server sends before it closes."""

    async def main() -> bytes:
        async with serving(handler) as (_, port):  # type: ignore[arg-type]
            client = await RawClient.connect(port)
            client.send(request)
            return await client.rest()

    return asyncio.run(main())


def get(method: str = "GET", version: str = "1.1") -> bytes:
    return f"{method} / HTTP/{version}\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


async def stream(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/plain")])
    exchange.write(b"one")
    exchange.flush()
    exchange.write(b"")
    exchange.write_chunks(http1.Chunks(b"3\r\ntwo\r\n5\r\nthree\r\n"))
    exchange.finish()


def test_a_stream_is_chunked_and_whole_chunks_pass_untouched() -> None:
    body = ask(stream, get()).partition(b"\r\n\r\n")[2]
    assert body == b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n"


def test_http_10_gets_the_same_stream_bare_and_ended_by_the_connection() -> None:
    head, _, body = ask(stream, get(version="1.0")).partition(b"\r\n\r\n")
    assert body == b"onetwothree"
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head


def test_head_gets_the_same_head_and_no_body() -> None:
    head, _, body = ask(stream, get("HEAD")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"transfer-encoding: chunked" in head
    assert body == b""


def test_head_of_a_whole_answer_tells_its_length_and_sends_none() -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.respond(200, [], b"12345")

    head, _, body = ask(answer, get("HEAD")).partition(b"\r\n\r\n")
    assert b"content-length: 5" in head
    assert body == b""


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("passed_on", [False, True], ids=["our own", "passed on"])
def test_an_answer_that_can_have_no_body_has_no_framing(status: int, passed_on: bool) -> None:
    async def answer(exchange: Exchange) -> None:
        if passed_on:
            exchange.start(status, [], content_length=0)
            exchange.finish()
        else:
            exchange.respond(status, [])

    head = ask(answer, get())
    assert head.startswith(b"HTTP/1.1 %d" % status)
    assert b"content-length" not in head
    assert b"transfer-encoding" not in head


def test_a_known_length_is_said_and_not_chunked() -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.start(200, [], content_length=3)
        exchange.write_chunks(http1.Chunks(b"3\r\nabc\r\n"))
        exchange.finish()

    head, _, body = ask(answer, get()).partition(b"\r\n\r\n")
    assert b"content-length: 3" in head
    assert body == b"abc"


def test_an_answer_cannot_be_started_twice() -> None:
    seen: list[BaseException] = []

    async def answer(exchange: Exchange) -> None:
        exchange.respond(200, [], b"first")
        try:
            exchange.respond(200, [], b"second")
        except RuntimeError as error:
            seen.append(error)

    assert ask(answer, get()).endswith(b"first")
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("sent", "whole"),
    [
        (b"", True),
        (b"data: x\n\n", True),
        (b"data: x\r\n\r\n", True),
        (b"data: x\n", False),
        (b"data: half", False),
    ],
)
@pytest.mark.parametrize("as_chunks", [False, True], ids=["written", "passed on"])
def test_it_is_known_whether_the_last_event_was_whole(sent: bytes, whole: bool, as_chunks: bool) -> None:
    seen: list[bool] = []

    async def answer(exchange: Exchange) -> None:
        exchange.start(200, [])
        if as_chunks and sent:
            exchange.write_chunks(http1.Chunks(http1.chunk(sent)))
        else:
            exchange.write(sent)
        seen.append(exchange.at_event_boundary)
        exchange.finish()

    ask(answer, get())
    assert seen == [whole]


@pytest.mark.parametrize(
    ("pieces", "first", "last"),
    [
        ([], [], []),
        ([b"whole"], [b"whole"], [b"whole"]),
        ([b"a", b"b"], [b"a"], [b"a", b"b"]),
        ([b"a", b"b", b"c"], [b"a"], [b"b", b"c"]),
        ([b"a", b"", b"b", b"c", b""], [b"a"], [b"b", b"c"]),
    ],
    ids=["nothing", "one piece", "two", "three", "empty ones do not count"],
)
def test_it_is_known_how_an_answer_began_and_ended(
    pieces: list[bytes], first: list[bytes], last: list[bytes]
) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def answer(exchange: Exchange) -> None:
        exchange.start(200, [])
        for piece in pieces:
            if piece:
                exchange.write_chunks(http1.Chunks(http1.chunk(piece)))
        seen.append((exchange.first_bytes, exchange.last_bytes))
        exchange.finish()

    ask(answer, get())
    ask(answer, get(version="1.0"))
    framed = b"".join(map(http1.chunk, first)), b"".join(map(http1.chunk, last))
    assert seen == [framed, (b"".join(first), b"".join(last))]


def test_what_comes_in_parts_is_one_piece() -> None:
    """As when a read ends in the middle of a stream's last chunk."""
    seen: list[bytes] = []

    async def answer(exchange: Exchange) -> None:
        exchange.start(200, [])
        for event in (b"data: 1\n\n", b'data: {"usage": 2}\n\n'):
            exchange.write_chunks(http1.Chunks(http1.chunk(event)))
        for part in (b"data: [", b"DO", b"", b"NE]\n\n"):
            exchange.write(part)
        seen.append(exchange.last_bytes)
        assert exchange.at_event_boundary
        exchange.write(b"x" * 10_000)
        exchange.write(b"y" * 10_000)
        seen.append(exchange.last_bytes[-20_000:])
        assert not exchange.at_event_boundary
        exchange.finish()

    ask(answer, get())
    assert seen[0] == http1.chunk(b'data: {"usage": 2}\n\n') + b"data: [DONE]\n\n"
    assert seen[1] == b"x" * 10_000 + b"y" * 10_000, "what is kept is bounded"


def test_what_is_said_aside_is_sent_and_is_not_how_the_answer_began_or_ended() -> None:
    seen: list[tuple[bytes, bytes, bool]] = []

    async def answer(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.write(b": wait", aside=True)
        exchange.write(b"a")
        exchange.write(b": wait", aside=True)
        seen.append((exchange.first_bytes, exchange.last_bytes, exchange.at_event_boundary))
        exchange.finish()

    assert ask(answer, get(version="1.0")).endswith(b": waita: wait")
    assert seen == [(b"a", b"a", False)]


def test_an_answer_can_be_made_the_connections_last() -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.close_after()
        exchange.respond(200, [], b"bye")

    text = ask(answer, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"connection: close" in text
    assert text.endswith(b"bye")


class Tap:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.paused = asyncio.Event()

    def pause(self) -> None:
        self.calls.append("pause")
        self.paused.set()

    def resume(self) -> None:
        self.calls.append("resume")


def test_a_slow_reader_pauses_the_source_and_resumes_it() -> None:
    async def main() -> list[str]:
        tap = Tap()

        async def pour(exchange: Exchange) -> None:
            exchange.feed_from(tap)
            exchange.start(200, [])
            for _ in range(400):
                exchange.write(b"x" * 65536)
                exchange.flush()
            await exchange.drain()
            exchange.finish()

        async with serving(pour) as (_, port):
            client = await RawClient.connect(port)
            client.send(get())
            await asyncio.wait_for(tap.paused.wait(), 5)
            await client.rest()
        return tap.calls

    assert asyncio.run(main()) == ["pause", "resume"]


def test_a_broken_answer_that_only_the_connection_would_end_is_reset() -> None:
    async def fail(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.write(b"half")
        raise errors.UpstreamError("gone")

    with pytest.raises(ConnectionResetError):
        ask(fail, get(version="1.0"))
