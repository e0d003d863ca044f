"""Requests that wait: for a model that loads, dies or is gone; and clients that do not wait any longer."""

from __future__ import annotations

import asyncio
import json

import pytest

from corral.drivers import clock
from corral.formats import http1
from corral.formats.status import ModelState
from tests.drivers.serving import RawClient
from tests.handlers.gatehouse import (
    CHAT,
    STREAM_HEAD,
    Gatehouse,
    Seen,
    answering,
    read_reply,
    request,
    sending,
    silence,
)
from tests.in_a_loop import in_a_loop, turns
from tests.waiting import eventually

PATH = "/v1/chat/completions"
EVENT = b'data: {"n": 1}\n\n'


async def leaves(client: RawClient) -> None:
    client.close()
    await turns()


@in_a_loop
async def test_a_client_that_leaves_before_its_answer_frees_its_slot_and_the_engine(house: Gatehouse) -> None:
    house.backend.script = silence
    async with house.open():
        client = await house.connect()
        client.send(request(PATH, CHAT))
        await eventually(lambda: house.backend.seen, "the engine has the request")
        await leaves(client)
        await eventually(lambda: house.backend.clients_gone == 1, "the engine's connection is closed")
        [line] = await house.logged()
    assert (line[3], line[4], line[9]) == ("499", "demo", "client_gone")
    assert house.counted("router_requests_total", model="demo", status="cancelled") == 1


@in_a_loop
async def test_a_client_that_leaves_a_stream_stops_it_and_can_be_seen_in_the_log(house: Gatehouse) -> None:
    house.backend.script = sending(STREAM_HEAD, http1.chunk(EVENT))
    async with house.open():
        client = await house.connect()
        client.send(request(PATH, CHAT | {"stream": True}))
        await client.until(EVENT)
        await leaves(client)
        await eventually(lambda: house.backend.clients_gone == 1, "the engine's connection is closed")
        [line] = await house.logged()
    assert (line[3], line[9]) == ("200", "client_gone")
    assert house.counted("router_requests_total", model="demo", status="cancelled") == 1
    assert house.counted("router_time_to_first_token_seconds", model="demo") == 1


@in_a_loop
async def test_a_client_that_leaves_while_its_model_loads_leaves_the_queue(house: Gatehouse) -> None:
    async with house.open():
        house.engines.loads_at_once = False
        client = await house.connect()
        client.send(request(PATH, CHAT))
        await eventually(lambda: house.fleet.queue.depth("demo") == 1, "the request waits")
        await leaves(client)
        await eventually(lambda: house.fleet.queue.depth("demo") == 0, "the queue is empty")
        [line] = await house.logged()
        assert (line[3], line[9]) == ("499", "client_gone")
        assert house.fleet.state("demo") is ModelState.LOADING
    assert not house.backend.seen


@in_a_loop
async def test_a_wait_for_a_load_is_told_to_the_client_and_counted(house: Gatehouse) -> None:
    async with house.open():
        house.engines.loads_at_once = False
        asked = asyncio.ensure_future(house.ask(PATH, CHAT))
        await eventually(lambda: house.fleet.queue.depth("demo") == 1, "the request waits")
        await asyncio.sleep(0.01)
        house.engines.of("demo").answers()
        reply = await asked
        assert int(reply.header("x-queue-wait-ms") or 0) >= 10
        assert house.counted("router_queue_wait_seconds", model="demo", priority="normal") == 1


def waited_s(house: Gatehouse) -> float:
    [line] = house.scraped("router_queue_wait_seconds_sum")
    return float(line.split()[1])


@pytest.mark.parametrize("how", ["its time is up", "it is refused", "it leaves"])
@in_a_loop
async def test_a_wait_in_vain_is_counted_like_any_other(house: Gatehouse, how: str) -> None:
    headers = {"x-request-timeout": "0.05"} if how == "its time is up" else {}
    async with house.open():
        house.engines.loads_at_once = False
        client = await house.connect()
        began_at = clock.monotonic()
        client.send(request(PATH, CHAT, headers=headers))
        await eventually(lambda: house.fleet.queue.depth("demo") == 1, "the request waits")
        await asyncio.sleep(0.02)
        if how == "it is refused":
            house.engines.of("demo").ends("exit code 1")
        elif how == "it leaves":
            await leaves(client)
        await house.logged()
        assert house.counted("router_queue_wait_seconds", model="demo", priority="normal") == 1
        assert 0.02 <= waited_s(house) <= clock.monotonic() - began_at


@in_a_loop
async def test_who_was_not_let_into_the_queue_has_not_waited(house: Gatehouse) -> None:
    async with house.open():
        house.fleet.refuse_waiting()
        assert (await house.ask(PATH, CHAT)).status == 503
        await house.logged()
        assert not house.scraped("router_queue_wait_seconds")


@in_a_loop
async def test_a_second_wait_in_vain_is_counted_together_with_the_first_and_without_the_engines_time(
    house: Gatehouse,
) -> None:
    async def dies_later(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        house.engines.of("demo").ends("killed by SIGSEGV")
        writer.close()

    house.backend.script = dies_later
    async with house.open():
        assert (await house.ask(PATH, CHAT, headers={"x-request-timeout": "0.3"})).status == 504
        await house.logged()
        assert house.counted("router_queue_wait_seconds", model="demo", priority="normal") == 1
        assert 0.02 <= waited_s(house) < 0.2


@in_a_loop
async def test_a_model_that_dies_loading_is_503_with_its_last_words(house: Gatehouse) -> None:
    async with house.open():
        house.engines.loads_at_once = False
        asked = asyncio.ensure_future(house.ask(PATH, CHAT))
        await eventually(lambda: house.fleet.queue.depth("demo") == 1, "the request waits")
        house.engines.of("demo").ends("exit code 1")
        reply = await asked
        [line] = await house.logged()
    assert (reply.status, reply.error["code"]) == (503, "model_failed")
    assert "exit code 1 | loading | no such tensor" in reply.error["message"]
    # Whoever is told when to come back is not told to stay away.
    assert reply.header("retry-after") in ("1", "2")
    assert reply.header("x-should-retry") is None
    assert (line[3], line[9]) == ("503", "model_failed")
    assert house.counted("router_requests_total", model="demo", status="rejected") == 1
    assert house.counted("router_rejections_total", reason="model_failed", key_id="alice") == 1


@in_a_loop
async def test_a_request_whose_engine_dies_unanswered_is_sent_once_more_and_only_once(
    house: Gatehouse,
) -> None:
    died = []

    async def dies(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        died.append(house.engines.of("demo"))
        house.engines.of("demo").ends("killed by SIGSEGV")
        writer.close()

    async with house.open():
        house.backend.script = dies
        asked = asyncio.ensure_future(house.ask(PATH, CHAT))
        await eventually(lambda: house.fleet.state("demo") is ModelState.BACKOFF, "the engine has died")
        # Not kept: a kept connection that closes unanswered is tried anew by the client already.
        house.backend.script = answering(b"second", 200, (b"Connection", b"close"))
        house.fleet.tick(clock.monotonic() + 2)
        assert (await asked).body == b"second"
        assert len(died) == 1
        assert [json.loads(seen.body) for seen in house.backend.seen] == [CHAT, CHAT]
        [line] = await house.logged()
        assert (line[3], line[9]) == ("200", "-")

        house.backend.script = dies
        asked = asyncio.ensure_future(house.ask(PATH, CHAT))
        await eventually(lambda: len(died) == 2, "the engine has died again")
        await eventually(lambda: house.fleet.queue.depth("demo") == 1, "the request waits for another")
        house.fleet.tick(clock.monotonic() + 3)
        reply = await asked
    assert len(died) == 3
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert "will not be given it again" in reply.error["message"]
    assert reply.header("x-should-retry") == "false"


@in_a_loop
async def test_a_request_whose_engine_dies_as_its_turn_comes_waits_for_the_next_one(house: Gatehouse) -> None:
    async with house.open():
        house.engines.loads_at_once = False
        asked = asyncio.ensure_future(house.ask(PATH, CHAT))
        for deaths in range(3):
            await eventually(lambda: house.fleet.state("demo") is ModelState.LOADING, "the model loads")
            await eventually(lambda: house.fleet.queue.depth("demo") == 1, "the request waits")
            house.engines.of("demo").answers()
            assert house.fleet.queue.running("demo") == 1
            house.engines.of("demo").ends("killed by SIGSEGV")
            house.fleet.tick(clock.monotonic() + 2.0 * 2**deaths)
        await eventually(lambda: house.fleet.queue.depth("demo") == 1, "the request waits")
        house.engines.of("demo").answers()
        assert (await asked).status == 200
        assert len(house.backend.seen) == 1


@in_a_loop
async def test_the_wait_for_a_slot_that_was_lost_in_the_moment_of_its_grant_is_counted_once_and_as_a_wait(
    house: Gatehouse,
) -> None:
    async with house.open():
        house.engines.loads_at_once = False
        asked = asyncio.ensure_future(house.ask(PATH, CHAT))
        for is_lost in (True, False):
            await eventually(lambda: house.fleet.state("demo") is ModelState.LOADING, "the model loads")
            await eventually(lambda: house.fleet.queue.depth("demo") == 1, "the request waits")
            await asyncio.sleep(0.1)
            house.engines.of("demo").answers()
            assert house.fleet.queue.running("demo") == 1
            if is_lost:
                house.engines.of("demo").ends("killed by SIGSEGV")
                await eventually(lambda: house.fleet.queue.depth("demo") == 1, "the request waits anew")
                house.fleet.tick(clock.monotonic() + 2.0)
        reply = await asked
        [line] = await house.logged()
        whole_s = float(line[5].removesuffix(" ms")) / 1000
        assert house.counted("router_queue_wait_seconds", model="demo", priority="normal") == 1
        assert 0.2 <= waited_s(house) <= whole_s + 0.001
        assert int(reply.header("x-queue-wait-ms") or 0) == int(waited_s(house) * 1000)
        [own] = house.scraped("router_overhead_seconds_sum")
        assert float(own.split()[1]) < 0.1


@in_a_loop
async def test_once_the_fleet_is_closed_everybody_is_told_to_come_back_later(house: Gatehouse) -> None:
    async with house.open():
        house.fleet.refuse_waiting()
        reply = await house.ask(PATH, CHAT)
    assert (reply.status, reply.error["code"]) == (503, "shutting_down")
    assert (reply.header("retry-after"), reply.header("retry-after-ms")) == ("5", "5000")


@in_a_loop
async def test_the_gates_own_share_of_the_time_leaves_out_the_clients_and_the_engines(
    house: Gatehouse,
) -> None:
    async def slowly(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        await answering()(seen, writer)

    house.backend.script = slowly
    async with house.open():
        client = await house.connect()
        whole = request(PATH, CHAT)
        client.send(whole[:-5])
        await eventually(lambda: house.server.busy, "the head is here")
        await asyncio.sleep(0.2)
        client.send(whole[-5:])
        assert (await read_reply(client)).status == 200
        await house.logged()
        [line] = house.scraped("router_overhead_seconds_sum")
    assert float(line.split()[1]) < 0.2
