"""What a request asks of the queue, what it is told while it waits, and what it is charged in the end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from corral.drivers import clock
from corral.formats import http1
from corral.formats.priority import Priority
from corral.formats.status import ModelState
from corral.handlers.wishes import BYTES_PER_EVENT, PROMPT_TOKENS_MAX
from corral.policy.scheduler import Ticket
from tests.drivers.serving import RawClient
from tests.handlers.gatehouse import (
    CHAT,
    KEY,
    STREAM_HEAD,
    Gatehouse,
    Reply,
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
STREAM = CHAT | {"stream": True}
EVENT = b'data: {"n": 1}\n\n'
DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}\n\n'


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corral.fleet.abandoned.LOOK_EVERY_S", 0.01)


async def waiting_for(house: Gatehouse, count: int = 1) -> list[Ticket]:
    """Those who wait for the demo model, once there are so many."""
    await eventually(lambda: house.fleet.queue.depth("demo") == count, f"{count} wait")
    return [waiter.ticket for waiter in house.fleet.queue.waiters("demo", lambda _: True)]


async def send(house: Gatehouse, path: str = PATH, body: object = CHAT, **options: Any) -> RawClient:
    client = await house.connect()
    client.send(request(path, body, **options))
    return client


# What it asks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "asked", "expected"),
    [
        ("", None, Priority.NORMAL),
        ("", "high", Priority.HIGH),
        ("", "3", Priority.LOW),
        ("", "urgent", Priority.NORMAL),
        (",priority=low", "high", Priority.LOW),
        (",priority=high", None, Priority.HIGH),
        (",priority=high", "low", Priority.LOW),
    ],
)
@in_a_loop
async def test_a_request_waits_in_the_class_it_asks_for_within_what_its_key_may(
    house: Gatehouse, options: str, asked: str | None, expected: Priority
) -> None:
    house.keys = f"alice:{KEY}:rpm=0{options}\n"
    async with house.open():
        house.engines.loads_at_once = False
        client = await send(house, headers={"x-request-priority": asked} if asked else {})
        [ticket] = await waiting_for(house)
        house.engines.of("demo").answers()
        assert (await read_reply(client)).status == 200
        word = expected.name.lower()
        await house.logged()
    assert ticket.priority is expected
    assert house.counted("router_queue_wait_seconds", model="demo", priority=word) == 1


@in_a_loop
async def test_a_wish_is_read_from_the_key_the_headers_and_the_body(house: Gatehouse) -> None:
    house.keys = f"alice:{KEY}:rpm=0,max_parallel=4,max_waiting=9\n"
    body = json.dumps(CHAT | {"max_tokens": 50}).encode()
    async with house.open():
        house.engines.loads_at_once = False
        client = await send(house, body=body, headers={"x-request-id": "r-1", "x-request-timeout": "12.5"})
        [ticket] = await waiting_for(house)
        client.close()
        await eventually(lambda: house.fleet.queue.depth("demo") == 0, "it has left")
    wish = ticket.wish
    assert (wish.model, wish.request_id, wish.key_id) == ("demo", "r-1", "alice")
    assert (wish.max_parallel, wish.max_waiting, wish.max_tokens) == (4, 9, 50)
    assert (wish.prompt_tokens, wish.timeout_s) == (-(-len(body) // 4), 12.5)


@in_a_loop
async def test_a_picture_is_not_taken_for_a_million_tokens(house: Gatehouse) -> None:
    body = CHAT | {"padding": "x" * 500_000}
    async with house.open():
        house.engines.loads_at_once = False
        client = await send(house, body=body)
        [ticket] = await waiting_for(house)
        client.close()
        await eventually(lambda: house.fleet.queue.depth("demo") == 0, "it has left")
    assert ticket.wish.prompt_tokens == PROMPT_TOKENS_MAX


@in_a_loop
async def test_without_keys_an_address_is_whose_share_it_is(house: Gatehouse) -> None:
    house.environment = {"AUTH_ENABLED": "false"}
    async with house.open():
        house.engines.loads_at_once = False
        client = await send(house, key=None)
        [ticket] = await waiting_for(house)
        client.close()
        await eventually(lambda: house.fleet.queue.depth("demo") == 0, "it has left")
    assert ticket.key_id == "127.0.0.1"


@in_a_loop
async def test_what_was_meant_for_the_queue_does_not_go_on_to_the_engine(house: Gatehouse) -> None:
    async with house.open():
        await house.ask(PATH, CHAT, headers={"x-request-priority": "low", "x-request-timeout": "60"})
    [seen] = house.backend.seen
    assert not {name for name, _ in seen.headers if name.startswith("x-request-")} - {"x-request-id"}


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "inf", "nan", "1e999", "5s", "1,5", "5 6"])
@in_a_loop
async def test_a_time_limit_that_is_none_is_refused(house: Gatehouse, text: str) -> None:
    async with house.open():
        reply = await house.ask(PATH, CHAT, headers={"x-request-timeout": text})
    assert (reply.status, reply.error["code"]) == (400, "invalid_request")
    assert "X-Request-Timeout must be a number of seconds above 0" in reply.error["message"]
    assert not house.backend.seen


# How long it waits -------------------------------------------------------------------------------


@in_a_loop
async def test_who_is_willing_to_wait_so_long_waits_no_longer_in_the_queue(house: Gatehouse) -> None:
    async with house.open():
        house.engines.loads_at_once = False
        reply = await house.ask(PATH, CHAT, headers={"x-request-timeout": "0.05"})
        [line] = await house.logged()
    assert (reply.status, reply.error["code"]) == (504, "queue_timeout")
    assert "0.05 s, the most that its X-Request-Timeout allows" in reply.error["message"]
    assert (line[3], line[9]) == ("504", "queue_timeout")


@in_a_loop
async def test_nor_for_the_engine(house: Gatehouse) -> None:
    house.backend.script = silence
    async with house.open():
        reply = await house.ask(PATH, CHAT, headers={"x-request-timeout": "0.05"})
        await eventually(lambda: house.backend.clients_gone == 1, "the engine's connection is closed")
    assert (reply.status, reply.error["code"]) == (504, "upstream_timeout")
    assert "X-Request-Timeout" in reply.error["message"]


@in_a_loop
async def test_nor_for_its_own_body(house: Gatehouse) -> None:
    async with house.open():
        client = await house.connect()
        client.send(request(PATH, CHAT, headers={"x-request-timeout": "0.05"})[:-5])
        reply = await read_reply(client)
    assert (reply.status, reply.error["code"]) == (408, "request_timeout")
    assert (
        "body was not here and read after 0.05 s, the most that its X-Request-Timeout allows"
        in (reply.error["message"])
    )
    assert not house.engines.started


@in_a_loop
async def test_nor_in_the_queue_for_the_second_time(house: Gatehouse) -> None:
    async def dies(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        house.engines.of("demo").ends("killed by SIGSEGV")
        writer.close()

    house.backend.script = dies
    async with house.open():
        reply = await house.ask(PATH, CHAT, headers={"x-request-timeout": "0.2"})
        assert house.fleet.state("demo") is ModelState.BACKOFF
    assert (reply.status, reply.error["code"]) == (504, "queue_timeout")
    assert "No slot of 'demo' came free" in reply.error["message"]


@in_a_loop
async def test_of_a_key_only_so_many_wait(house: Gatehouse) -> None:
    house.keys = f"alice:{KEY}:rpm=0,max_parallel=1,max_waiting=1\n"
    house.backend.script = silence
    async with house.open():
        first, second = await send(house), await send(house)
        await waiting_for(house)
        reply = await house.ask(PATH, CHAT)
        assert (reply.status, reply.error["type"], reply.error["code"]) == (
            *(429, "rate_limit_error", "concurrency_limit_exceeded"),
        )
        assert int(reply.header("retry-after") or 0) >= 1
        assert house.fleet.queue.running("demo") == 1, "there is a second slot, and it is not for this key"
        second.close()
        first.close()
        rejected = {"reason": "concurrency_limit_exceeded", "key_id": "alice"}
        assert house.counted("router_rejections_total", **rejected) == 1


# What it is told while it waits ------------------------------------------------------------------


async def queued(house: Gatehouse, path: str = PATH) -> tuple[RawClient, Reply]:
    """A stream that has waited long enough to be told; its head."""
    house.engines.loads_at_once = False
    client = await send(house, path, STREAM)
    return client, await read_head(client)


async def next_chunk(client: RawClient) -> bytes:
    size = int(await client.until(b"\r\n"), 16)
    return (await client.exactly(size + 2))[:-2]


async def next_line(client: RawClient) -> bytes:
    return await client.until(b"\n")


async def rest_of(client: RawClient) -> bytes:
    """The body of a stream to its end, without what was said of the queue."""
    pieces = []
    while piece := await next_chunk(client):
        if not piece.startswith(b": queued"):
            pieces.append(piece)
    return b"".join(pieces)


@in_a_loop
async def test_a_stream_that_waits_long_is_told_its_position_and_then_gets_the_engines_bytes(
    house: Gatehouse,
) -> None:
    house.environment = {"SSE_PING_S": "0.02"}
    house.backend.script = streaming(EVENT, USAGE, DONE)
    async with house.open():
        client, head = await queued(house)
        assert head.status == 200
        assert head.header("content-type") == "text/event-stream"
        assert head.header("cache-control") == "no-cache, no-transform"
        assert head.header("x-accel-buffering") == "no"
        assert head.header("x-request-id")
        assert [await next_chunk(client) for _ in range(2)] == [b": queued position=1\n\n"] * 2
        house.engines.of("demo").answers()
        assert await rest_of(client) == EVENT + USAGE + DONE
        [line] = await house.logged()
    assert (line[3], line[9]) == ("200", "-")
    assert house.counted("router_tokens_total", model="demo", key_id="alice", kind="completion") == 3


@in_a_loop
async def test_of_a_stream_that_was_told_its_position_the_first_token_is_the_engines(
    house: Gatehouse,
) -> None:
    house.environment = {"SSE_PING_S": "0.02"}
    house.backend.script = streaming(EVENT, USAGE, DONE)
    async with house.open():
        client, _ = await queued(house)
        told_at = clock.monotonic()
        await asyncio.sleep(0.1)
        house.engines.of("demo").answers()
        await rest_of(client)
        await house.logged()
        assert house.counted("router_time_to_first_token_seconds", model="demo") == 1
        assert house.counted("router_time_per_output_token_seconds", model="demo") == 1
        [line] = house.scraped("router_time_to_first_token_seconds_sum")
        assert 0.1 <= float(line.split()[1]) < clock.monotonic() - told_at + 0.1


@in_a_loop
async def test_each_is_told_its_own_place_as_it_moves_up(house: Gatehouse) -> None:
    house.environment = {"SSE_PING_S": "0.02"}
    async with house.open():
        house.engines.loads_at_once = False
        first = await send(house)
        await waiting_for(house, 1)
        second = await send(house, body=STREAM)
        await read_head(second)
        assert await next_chunk(second) == b": queued position=2\n\n"
        first.close()
        while (said := await next_chunk(second)) == b": queued position=2\n\n":
            pass
        assert said == b": queued position=1\n\n"
        second.close()
        await eventually(lambda: house.fleet.queue.depth("demo") == 0, "both have left")


@pytest.mark.parametrize(
    ("path", "body"), [(PATH, CHAT), ("/v1/rerank", STREAM)], ids=["no stream", "no path of streams"]
)
@in_a_loop
async def test_what_is_no_stream_of_events_keeps_its_true_status(
    house: Gatehouse, path: str, body: object
) -> None:
    house.environment = {"SSE_PING_S": "0.01"}
    async with house.open():
        house.engines.loads_at_once = False
        told = await send(house, body=STREAM)
        client = await send(house, path, body)
        await waiting_for(house, 2)
        while await next_line(told) != b": queued position=1\n":
            pass  # by now the other one would have been told as well
        house.engines.of("demo").ends("exit code 1")
        reply = await read_reply(client)
    assert (reply.status, reply.error["code"]) == (503, "model_failed")


@in_a_loop
async def test_until_it_has_been_told_a_stream_keeps_its_true_status_too(house: Gatehouse) -> None:
    async with house.open():
        house.engines.loads_at_once = False
        client = await send(house, body=STREAM)
        await waiting_for(house)
        house.engines.of("demo").ends("exit code 1")
        reply = await read_reply(client)
    assert (reply.status, reply.error["code"]) == (503, "model_failed")


DIALECTS = {
    "/v1/chat/completions": b'data: {"error": {"message": ',
    "/v1/completions": b'data: {"error": {"message": ',
    "/completions": b'data: {"error": {"message": ',
    "/v1/messages": b'event: error\ndata: {"type": "error", "error": {"type": "api_error", "message": ',
    "/v1/responses": b'event: error\ndata: {"type": "error", "code": "model_failed", "message": ',
}


@pytest.mark.parametrize("path", DIALECTS)
@in_a_loop
async def test_a_failure_after_that_is_an_event_in_the_dialect_of_the_path(
    house: Gatehouse, path: str
) -> None:
    house.environment = {"SSE_PING_S": "0.02"}
    async with house.open():
        client, head = await queued(house, path)
        assert head.status == 200
        house.engines.of("demo").ends("exit code 1")
        said = await rest_of(client)
        assert await client.rest() == b""
        [line] = await house.logged()
    assert said.startswith(DIALECTS[path])
    assert said.endswith(b"}\n\n")
    assert b"[DONE]" not in said
    assert (line[3], line[9]) == ("200", "model_failed")


@in_a_loop
async def test_an_engines_refusal_after_that_is_an_event_too(house: Gatehouse) -> None:
    house.environment = {"SSE_PING_S": "0.02"}
    house.backend.script = answering(b'{"error": {"code": 400, "message": "bad grammar"}}', 400)
    async with house.open():
        client, _ = await queued(house)
        house.engines.of("demo").answers()
        said = await rest_of(client)
    error = json.loads(said.removeprefix(b"data: "))["error"]
    assert (error["message"], error["code"]) == ("bad grammar", "invalid_request")


@in_a_loop
async def test_an_answer_after_that_which_is_no_stream_is_an_error(house: Gatehouse) -> None:
    house.environment = {"SSE_PING_S": "0.02"}
    house.backend.script = answering(b'{"choices": []}')
    async with house.open():
        client, _ = await queued(house)
        house.engines.of("demo").answers()
        said = await rest_of(client)
    assert json.loads(said.removeprefix(b"data: "))["error"]["code"] == "upstream_error"


@in_a_loop
async def test_a_queue_that_closes_tells_streams_that_were_told_to_wait(house: Gatehouse) -> None:
    house.environment = {"SSE_PING_S": "0.02"}
    async with house.open():
        client, _ = await queued(house)
        house.fleet.refuse_waiting()
        said = await rest_of(client)
    assert json.loads(said.removeprefix(b"data: "))["error"]["code"] == "shutting_down"


# What it has cost --------------------------------------------------------------------------------

MESSAGES = (
    b'event: message_start\ndata: {"message": {"usage": {"input_tokens": 7, "output_tokens": 0}}}\n\n',
    b'event: content_block_delta\ndata: {"delta": {"text": "a"}}\n\n',
    b'event: message_delta\ndata: {"usage": {"output_tokens": 3}}\n\n',
    b'event: message_stop\ndata: {"type": "message_stop"}\n\n',
)
WHOLE = (
    b'{"choices": [{"message": {"content": "a b c"}}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}'
)
VECTORS = b'{"usage": {"prompt_tokens": 7}, "data": [{"embedding": [' + b"0.5, " * 5000 + b"1]}]}"


@pytest.mark.parametrize(
    ("path", "body", "script", "generated"),
    [
        (PATH, CHAT, answering(WHOLE), 3),
        (PATH, STREAM, streaming(EVENT, EVENT, USAGE, DONE), 3),
        ("/v1/rerank", CHAT, answering(VECTORS), 0),
        ("/v1/messages", STREAM, streaming(*MESSAGES), 3),
    ],
    ids=["plain", "streamed", "vectors", "Anthropic's"],
)
@in_a_loop
async def test_tokens_are_counted_as_the_engine_reports_them(
    house: Gatehouse, path: str, body: object, script: Any, generated: int
) -> None:
    house.backend.script = script
    async with house.open():
        reply = await house.ask(path, body)
        await house.logged()
    assert reply.status == 200
    tokens = {
        kind: house.counted("router_tokens_total", model="demo", key_id="alice", kind=kind)
        for kind in ("prompt", "completion")
    }
    assert tokens == {"prompt": 7, "completion": generated}
    is_stream = reply.header("content-type") == "text/event-stream"
    assert house.counted("router_time_per_output_token_seconds", model="demo") == is_stream


@in_a_loop
async def test_what_is_said_of_the_queue_does_not_hide_what_stands_at_a_streams_beginning(
    house: Gatehouse,
) -> None:
    house.environment = {"SSE_PING_S": "0.02"}
    house.backend.script = streaming(*MESSAGES)
    async with house.open():
        client, _ = await queued(house, "/v1/messages")
        house.engines.of("demo").answers()
        assert await rest_of(client) == b"".join(MESSAGES)
        await house.logged()
    assert house.counted("router_tokens_total", model="demo", key_id="alice", kind="prompt") == 7


@in_a_loop
async def test_what_the_engine_does_not_report_is_not_counted(house: Gatehouse) -> None:
    async with house.open():
        await house.ask(PATH, CHAT)
        house.backend.script = answering(b'{"error": {"message": "no"}, "usage": {"prompt_tokens": 7}}', 400)
        await house.ask(PATH, CHAT)
        await house.logged(2)
    assert all(line.endswith(" 0") for line in house.scraped("router_tokens_total"))


async def charged(house: Gatehouse, body: object, leave_after: bytes | None = None) -> float:
    """What a request has cost its key in the end."""
    tickets: list[Ticket] = []
    grant = house.fleet._scheduler.depart

    def depart(ticket: Ticket, *rest: Any) -> Any:
        tickets.append(ticket)
        return grant(ticket, *rest)

    house.fleet._scheduler.depart = depart  # type: ignore[method-assign, assignment]
    client = await send(house, body=body)
    if leave_after is None:
        await read_reply(client)
    else:
        await client.until(leave_after)
    client.close()
    await eventually(lambda: tickets and tickets[0].released, "it is over")
    return tickets[0].charged


@in_a_loop
async def test_its_key_pays_what_was_reported(house: Gatehouse) -> None:
    house.backend.script = streaming(EVENT, USAGE, DONE)
    async with house.open():
        assert await charged(house, STREAM) == 7 + 2 * 3


@in_a_loop
async def test_a_stream_that_is_left_costs_what_it_has_brought_as_far_as_can_be_seen(
    house: Gatehouse,
) -> None:
    event = b"data: " + b"x" * (BYTES_PER_EVENT * 4) + b"\n\n"
    house.backend.script = sending(STREAM_HEAD, http1.chunk(event))
    body = json.dumps(STREAM | {"max_tokens": 1000}).encode()
    async with house.open():
        assert await charged(house, body, event) == -(-len(body) // 4) + 2 * 4


@in_a_loop
async def test_an_answer_that_reports_nothing_has_written_nothing(house: Gatehouse) -> None:
    body = json.dumps(CHAT | {"max_tokens": 10}).encode()
    async with house.open():
        assert await charged(house, body) == -(-len(body) // 4)


# Who leaves --------------------------------------------------------------------------------------


@in_a_loop
async def test_a_request_that_is_not_streamed_keeps_its_slot_until_the_engine_is_through(
    house: Gatehouse,
) -> None:
    house.slots = 1
    house.backend.script = silence
    async with house.open():
        client = await send(house)
        await eventually(lambda: house.backend.seen, "the engine has the request")
        house.engines.of("demo").busy = 1
        client.close()
        await eventually(lambda: house.backend.clients_gone == 1, "the engine's connection is closed")
        house.backend.script = answering(b"second")
        asked = asyncio.ensure_future(house.ask(PATH, CHAT))
        await waiting_for(house)
        assert house.fleet.queue.running("demo") == 1
        house.engines.of("demo").busy = 0
        assert (await asked).body == b"second"


@in_a_loop
async def test_a_stream_gives_its_slot_back_as_soon_as_nobody_reads_it(house: Gatehouse) -> None:
    house.slots = 1
    house.backend.script = sending(STREAM_HEAD, http1.chunk(EVENT))
    async with house.open():
        client = await send(house, body=STREAM)
        await client.until(EVENT)
        house.engines.of("demo").busy = 1
        client.close()
        await eventually(lambda: house.fleet.queue.running("demo") == 0, "the slot is free")


@in_a_loop
async def test_an_answer_that_has_come_whole_leaves_nothing_to_wait_for(house: Gatehouse) -> None:
    async with house.open():
        await house.ask(PATH, CHAT)
        house.engines.of("demo").busy = 1
        await house.ask(PATH, CHAT)
        await eventually(lambda: house.fleet.queue.running("demo") == 0, "the slots are free")
