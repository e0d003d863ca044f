"""What comes back from the engine: whole answers, streams, errors, and what breaks in between."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
from types import CoroutineType

import pytest

from corral.drivers.http_server.body_room import SMALL_BODY_BYTES
from corral.formats import http1
from tests.handlers.gatehouse import (
    CHAT,
    STREAM_HEAD,
    Gatehouse,
    Script,
    Seen,
    answering,
    read_head,
    read_reply,
    request,
    sending,
    silence,
    streaming,
)
from tests.in_a_loop import in_a_loop
from tests.waiting import eventually

PATH = "/v1/chat/completions"
MUCH_BYTES = 30_000
EVENTS = [b'data: {"n": 1}\n\n', b'data: {"n": 2}\n\n', b"data: [DONE]\n\n"]


@in_a_loop
async def test_headers_of_the_engine_come_back_except_those_that_are_the_gates_own(house: Gatehouse) -> None:
    house.backend.script = answering(
        b"{}",
        200,
        (b"Date", b"long ago"),
        (b"Keep-Alive", b"timeout=5"),
        (b"X-Engine", b"kept"),
        (b"Access-Control-Allow-Origin", b"*"),
        (b"Access-Control-Expose-Headers", b"X-Engine"),
        (b"X-Request-Id", b"the-engines"),
        (b"X-Queue-Wait-Ms", b"999999"),
    )
    async with house.open():
        reply = await house.ask(PATH, CHAT, headers={"x-request-id": "mine"})
    names = {name for name, _ in reply.headers}
    assert names == {"date", "content-type", "content-length", "x-engine", "x-request-id", "x-queue-wait-ms"}
    assert reply.header("x-engine") == "kept"
    assert reply.header("date") != "long ago"
    assert reply.header("x-request-id") == "mine"
    assert reply.header("x-queue-wait-ms") != "999999"


@pytest.mark.parametrize("size", [MUCH_BYTES, 90_000], ids=["whole in one read", "in pieces"])
@in_a_loop
async def test_what_is_being_answered_is_not_held_any_more(house: Gatehouse, size: int) -> None:
    """A picture has megabytes, and its answer takes minutes."""
    begin, end = asyncio.Event(), asyncio.Event()

    async def script(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        await begin.wait()
        writer.write(STREAM_HEAD + http1.chunk(EVENTS[0]))
        await end.wait()
        writer.write(http1.LAST_CHUNK)

    async with house.open():
        await house.ask(PATH, CHAT | {"stream": True, "padding": "x"})  # now its words are known
        house.backend.script = script
        free_bytes = house.server.body_room.free_bytes
        client = await house.connect()
        client.send(request(PATH, CHAT | {"stream": True, "padding": "x" * size}))
        await eventually(lambda: len(house.backend.seen) == 2, "the engine has it")
        assert (house.server.body_room.free_bytes < free_bytes) is (size > SMALL_BODY_BYTES)
        assert who_holds_much(), "it may be needed again"
        begin.set()
        await client.until(EVENTS[0])
        assert house.server.body_room.free_bytes == free_bytes
        assert not who_holds_much()
        end.set()
        await client.until(http1.LAST_CHUNK)


def who_holds_much() -> set[str]:
    """Who of the gate holds many bytes: its objects, and its coroutines where they wait."""
    return {
        type(each).__qualname__
        for each in gc.get_objects()
        if str(type(each).__module__).startswith("corral.")
        or (isinstance(each, CoroutineType) and "/corral/" in each.cr_code.co_filename)
        if any(isinstance(held, bytes) and len(held) > MUCH_BYTES for held in gc.get_referents(each))
    }


@in_a_loop
async def test_a_stream_passes_event_by_event_while_it_is_made(house: Gatehouse) -> None:
    go_on = asyncio.Event()

    async def script(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + http1.chunk(EVENTS[0]))
        await go_on.wait()
        writer.write(http1.chunk(EVENTS[1]) + http1.chunk(EVENTS[2]) + http1.LAST_CHUNK)

    house.backend.script = script
    async with house.open():
        client = await house.connect()
        client.send(request(PATH, CHAT | {"stream": True}))
        head = await read_head(client)
        assert head.header("content-type") == "text/event-stream"
        assert head.header("transfer-encoding") == "chunked"
        assert head.header("cache-control") == "no-cache, no-transform"
        assert head.header("x-accel-buffering") == "no"
        assert await client.exactly(len(http1.chunk(EVENTS[0]))) == http1.chunk(EVENTS[0])
        go_on.set()
        rest = http1.chunk(EVENTS[1]) + http1.chunk(EVENTS[2]) + http1.LAST_CHUNK
        assert await client.exactly(len(rest)) == rest
        client.send(request(PATH, CHAT, headers={"connection": "close"}))  # the connection lives on
        go_on.set()
        await client.rest()


@in_a_loop
async def test_a_streams_own_buffering_headers_are_replaced_and_not_doubled(house: Gatehouse) -> None:
    head = http1.response_head(
        200,
        [
            (b"Content-Type", b"Text/Event-Stream; charset=utf-8"),
            (b"Cache-Control", b"public"),
            (b"X-Accel-Buffering", b"yes"),
            (b"Transfer-Encoding", b"chunked"),
        ],
    )
    house.backend.script = sending(head + http1.chunk(EVENTS[2]) + http1.LAST_CHUNK)
    async with house.open():
        reply = await house.ask(PATH, CHAT)
    assert reply.header("cache-control") == "no-cache, no-transform"
    assert reply.header("x-accel-buffering") == "no"
    assert reply.header("content-type") == "Text/Event-Stream; charset=utf-8"


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (400, b'{"error": {"message": "bad grammar", "code": 400}}', "invalid_request", "bad grammar"),
        (
            400,
            b'{"error": {"message": "too long", "type": "exceed_context_size_error", "n_ctx": 512}}',
            "context_length_exceeded",
            "too long",
        ),
        (501, b'{"error": {"message": "no", "kind": "x"}}', "upstream_error", "no"),
        (500, b"", "upstream_error", "The engine gave no reason."),
        (503, b"\xff<html>", "upstream_error", "\ufffd<html>"),
    ],
)
@in_a_loop
async def test_an_engines_error_keeps_its_status_and_gets_our_envelope(
    house: Gatehouse, status: int, body: bytes, code: str, message: str
) -> None:
    house.backend.script = answering(body, status, (b"Retry-After", b"9"), media=b"text/html")
    async with house.open():
        reply = await house.ask(PATH, CHAT, headers={"x-request-id": "mine"})
        [line] = await house.logged()
    assert (reply.status, reply.error["code"], reply.error["message"]) == (status, code, message)
    assert reply.header("content-type") == "application/json"
    assert reply.header("x-request-id") == "mine"
    assert line[3] == str(status)
    assert house.counted("router_requests_total", model="demo", status="error") == 1
    assert house.counted("router_time_to_first_token_seconds", model="demo") == 0


@in_a_loop
async def test_an_engines_error_without_end_is_cut_and_told_as_our_own(house: Gatehouse) -> None:
    endless = http1.response_head(500, [(b"Transfer-Encoding", b"chunked")])
    house.backend.script = sending(endless, *[http1.chunk(b"x" * 65536)] * 8)
    async with house.open():
        reply = await house.ask(PATH, CHAT)
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([EVENTS[0]], EVENTS[0]),
        ([EVENTS[0], b'data: {"n"'], EVENTS[0] + b'data: {"n"' + b"\n\n"),
        ([EVENTS[0], b"data: x\n"], EVENTS[0] + b"data: x\n" + b"\n\n"),
        ([], b""),
    ],
    ids=["after an event", "inside an event", "before its last line end", "before the first"],
)
@in_a_loop
async def test_a_stream_that_breaks_ends_with_one_error_event_and_no_done(
    house: Gatehouse, pieces: list[bytes], expected: bytes
) -> None:
    house.backend.script = sending(STREAM_HEAD, *map(http1.chunk, pieces), close=True)
    async with house.open():
        client = await house.connect()
        client.send(request(PATH, CHAT | {"stream": True}))
        reply = await read_reply(client)
        assert reply.status == 200
        assert reply.body.startswith(expected)
        event = reply.body.removeprefix(expected)
        assert event.startswith(b"data: {")
        assert event.endswith(b"}\n\n")
        assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
        assert await client.rest() == b"", "the connection is closed"
        [line] = await house.logged()
        assert (line[3], line[9]) == ("200", "upstream_error")
        assert house.counted("router_requests_total", model="demo", status="error") == 1


@in_a_loop
async def test_a_stream_whose_length_was_told_beforehand_has_room_for_an_error_too(house: Gatehouse) -> None:
    fields = [(b"Content-Type", b"text/event-stream"), (b"Content-Length", b"%d" % (len(EVENTS[0]) + 9))]
    house.backend.script = sending(http1.response_head(200, fields), EVENTS[0], close=True)
    async with house.open():
        client = await house.connect()
        client.send(request(PATH, CHAT | {"stream": True}))
        reply = await read_reply(client)
        assert reply.header("content-length") is None
        error = json.loads(reply.body.removeprefix(EVENTS[0]).removeprefix(b"data: "))["error"]
        assert error["code"] == "upstream_error"
        assert await client.rest() == b"", "not a byte stands where the next answer would begin"


@pytest.mark.parametrize("framing", ["length", "chunked"])
@in_a_loop
async def test_a_broken_body_that_is_no_stream_is_closed_without_its_end(
    house: Gatehouse, framing: str
) -> None:
    field = (b"Content-Length", b"100") if framing == "length" else (b"Transfer-Encoding", b"chunked")
    head = http1.response_head(200, [(b"Content-Type", b"application/json"), field])
    half = b'{"choices": ['
    house.backend.script = sending(head, half if framing == "length" else http1.chunk(half), close=True)
    async with house.open():
        client = await house.connect()
        client.send(request(PATH, CHAT))
        assert (await read_head(client)).status == 200
        rest = await client.rest()
        [line] = await house.logged()
    assert rest == (half if framing == "length" else http1.chunk(half))
    assert (line[3], line[9]) == ("200", "upstream_error")


@pytest.mark.parametrize(
    ("pieces", "close"),
    [([], True), ([b"\0\xffnot HTTP\r\n\r\n"], False), ([b"HTTP/1.1 200 OK\r\nContent-Len"], True)],
    ids=["closed", "garbage", "half a head"],
)
@in_a_loop
async def test_an_engine_that_answers_no_http_is_502(
    house: Gatehouse, pieces: list[bytes], close: bool
) -> None:
    house.backend.script = sending(*pieces, close=close)
    async with house.open():
        reply = await house.ask(PATH, CHAT)
        [line] = await house.logged()
    assert (reply.status, reply.error["type"], reply.error["code"]) == (502, "server_error", "upstream_error")
    assert reply.header("x-request-id") == line[8]
    assert (line[3], line[9]) == ("502", "upstream_error")


@in_a_loop
async def test_a_request_takes_no_longer_than_it_may(house: Gatehouse) -> None:
    house.config = {"system": {"request_max_sec": 1}, "models": {"demo": {"model_path": "x.gguf"}}}
    house.backend.script = silence
    async with house.open():
        settings = house.gate.settings
        herd = dataclasses.replace(settings.herd, request_max_s=0.02)
        house.gate.settings = dataclasses.replace(settings, herd=herd)
        reply = await house.ask(PATH, CHAT)
        assert (reply.status, reply.error["code"]) == (504, "upstream_timeout")
        assert "request_max_sec" in reply.error["message"]
        await eventually(lambda: house.backend.clients_gone == 1, "the engine's connection is closed")


@in_a_loop
async def test_head_of_an_engines_path_has_the_head_and_no_body(house: Gatehouse) -> None:
    house.backend.script = answering(b"12345")
    async with house.open():
        client = await house.connect()
        client.send(request("/v1/props", method="HEAD"))
        head = await read_reply(client, "HEAD")
        assert (head.status, head.header("content-length")) == (200, "5")
        client.send(request("/v1/props"))
        assert (await read_reply(client)).body == b"12345"


BIG = bytes(range(256)) * 16_000


@pytest.mark.parametrize(
    "script",
    [
        answering(BIG),
        streaming(*(BIG[start : start + 70_001] for start in range(0, len(BIG), 70_001))),
        streaming(*(BIG[start : start + 9_999] for start in range(0, len(BIG), 9_999))),
        sending(http1.response_head(200, []) + BIG, close=True),
    ],
    ids=["with a length", "in large chunks", "in small chunks", "up to the close"],
)
@in_a_loop
async def test_a_big_answer_comes_whole(house: Gatehouse, script: Script) -> None:
    house.backend.script = script
    async with house.open():
        assert (await house.ask(PATH, CHAT)).body == BIG


@in_a_loop
async def test_a_slow_reader_slows_down_its_own_engine_and_gets_everything(house: Gatehouse) -> None:
    event = b"data: " + b"x" * 65_000 + b"\n\n"
    events = 400
    sent = 0

    async def script(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(STREAM_HEAD)
        for _ in range(events):
            writer.write(http1.chunk(event))
            await writer.drain()
            sent += 1
        writer.write(http1.LAST_CHUNK)

    house.backend.script = script
    async with house.open():
        client = await house.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(request(PATH, CHAT | {"stream": True}))
        await eventually(lambda: sent > 0, "the stream has begun")
        before = -1
        while sent != before:  # until every buffer on the way is full
            before = sent
            for _ in range(20):
                await asyncio.sleep(0.005)
        assert sent < events
        # Meanwhile another is served as if nothing were.
        assert (await house.ask("/v1/models")).status == 200
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await read_reply(client)).body == event * events
