"""What large bodies may take together: by value, and over sockets, however a request ends."""

from __future__ import annotations

import dataclasses

import pytest

from corral import errors
from corral.drivers.http_server import Exchange, HttpServer
from corral.drivers.http_server.body_room import SMALL_BODY_BYTES, BodyRoom
from corral.drivers.tasks import Bell
from tests.drivers.serving import LIMITS, RawClient, serving
from tests.in_a_loop import in_a_loop
from tests.waiting import eventually

LARGE = SMALL_BODY_BYTES + 1
# For two of them, and no third.
TIGHT = dataclasses.replace(LIMITS, bodies_max_bytes=3 * LARGE - 1)


def test_what_is_taken_is_given_back_and_more_than_there_is_is_refused() -> None:
    room = BodyRoom(100)
    room.take(60)
    with pytest.raises(
        errors.TooManyLargeBodies, match=r"hold the 100 bytes that all may have together\."
    ) as caught:
        room.take(41)
    assert caught.value.retry_after_s
    room.take(40)
    room.give_back(60)
    assert room.free_bytes == 60


class Desk:
    """Reads every body, and keeps it until it is told."""

    def __init__(self) -> None:
        self.bells: list[Bell] = []

    async def handle(self, exchange: Exchange) -> None:
        body = await exchange.body()
        self.bells.append(bell := Bell())
        await bell
        exchange.respond(200, [], b"%d" % len(body))

    async def has(self, count: int) -> None:
        await eventually(lambda: len(self.bells) == count, f"{count} bodies are here")


def head(size: int, *more: str) -> bytes:
    return "\r\n".join(["POST / HTTP/1.1", "Host: x", f"Content-Length: {size}", *more, "", ""]).encode()


async def sent(port: int, data: bytes) -> RawClient:
    client = await RawClient.connect(port)
    client.send(data)
    return client


def is_free(server: HttpServer) -> bool:
    return server.body_room.free_bytes == TIGHT.bodies_max_bytes


@in_a_loop
async def test_a_body_for_which_there_is_no_room_is_refused_unread_and_the_others_are_served() -> None:
    desk = Desk()
    async with serving(desk.handle, TIGHT) as (server, port):
        held = [await sent(port, head(LARGE) + b"x" * LARGE) for _ in range(2)]
        await desk.has(2)
        # Of this one only the head has come, and it is not asked for more.
        late = await sent(port, head(LARGE, "Expect: 100-continue"))
        status, headers, body = await late.answer()
        assert (status, headers["connection"]) == (503, "close")
        assert b"too_many_large_bodies" in body
        small = await sent(port, head(SMALL_BODY_BYTES) + b"x" * SMALL_BODY_BYTES)
        await desk.has(3)
        for bell in desk.bells:
            bell.ring()
        answers = [await client.answer() for client in held]
        assert [(status, body) for status, _, body in answers] == [(200, b"%d" % LARGE)] * 2
        assert (await small.answer())[0] == 200
        assert is_free(server)
        again = await sent(port, head(LARGE) + b"x" * LARGE)
        await desk.has(4)
        desk.bells[3].ring()
        assert (await again.answer())[0] == 200


@in_a_loop
async def test_one_that_does_not_tell_its_length_is_counted_as_it_comes() -> None:
    desk = Desk()
    async with serving(desk.handle, TIGHT) as (server, port):
        client = await sent(port, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"%x\r\n%b\r\n" % (LARGE, b"x" * LARGE))
        await eventually(lambda: server.body_room.free_bytes == TIGHT.bodies_max_bytes - LARGE, "it counts")
        client.send(b"%x\r\n%b\r\n" % (2 * LARGE, b"x" * 2 * LARGE))
        status, _, body = await client.answer()
        assert status == 503
        assert b"too_many_large_bodies" in body
        assert is_free(server)


@pytest.mark.parametrize("all_here", [False, True], ids=["while it comes", "while it is worked on"])
@in_a_loop
async def test_who_leaves_takes_its_body_along(all_here: bool) -> None:
    desk = Desk()
    async with serving(desk.handle, TIGHT) as (server, port):
        client = await sent(port, head(LARGE) + b"x" * (LARGE if all_here else 1))
        await eventually(lambda: not is_free(server), "it counts")
        await desk.has(1 if all_here else 0)
        client.close()
        await eventually(lambda: is_free(server), "it is forgotten")


@in_a_loop
async def test_a_body_that_nobody_reads_takes_no_room() -> None:
    async def look_away(exchange: Exchange) -> None:
        exchange.respond(200, [], b"%d" % server.body_room.free_bytes)

    async with serving(look_away, TIGHT) as (server, port):
        client = await sent(port, head(LARGE))
        assert (await client.answer())[2] == b"%d" % TIGHT.bodies_max_bytes


@in_a_loop
async def test_one_connection_counts_its_bodies_one_after_the_other() -> None:
    desk = Desk()
    async with serving(desk.handle, TIGHT) as (server, port):
        client = await RawClient.connect(port)
        for count in range(1, 5):
            client.send(head(LARGE) + b"x" * LARGE)
            await desk.has(count)
            desk.bells[-1].ring()
            assert (await client.answer())[0] == 200
            assert is_free(server)
