from __future__ import annotations

import asyncio
import dataclasses

from corral.drivers.http_server import Exchange
from corral.drivers.tasks import Bell
from tests.drivers.serving import LIMITS, RawClient, serving

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


async def hello(exchange: Exchange) -> None:
    exchange.respond(200, [], b"hello")


def test_a_connection_too_many_gets_503_and_the_others_go_on() -> None:
    limits = dataclasses.replace(LIMITS, connections_max=2)

    async def main() -> None:
        async with serving(hello, limits) as (server, port):
            clients = [await RawClient.connect(port) for _ in range(3)]
            while server.connections < 3:
                await asyncio.sleep(0)
            # Who was there first is served as before.
            clients[0].send(GET)
            assert (await clients[0].answer())[0] == 200
            clients[2].send(GET)
            status, headers, body = await clients[2].answer()
            assert (status, headers["connection"]) == (503, "close")
            assert b"too_many_connections" in body
            await clients[2].rest()
            clients[2].close()
            while server.connections > 2:
                await asyncio.sleep(0)
            clients[1].send(GET)
            assert (await clients[1].answer())[0] == 200

    asyncio.run(main())


def test_winding_down_closes_idle_connections_and_makes_every_other_answer_the_last() -> None:
    async def main() -> None:
        bell = Bell()

        async def wait(exchange: Exchange) -> None:
            await bell
            exchange.respond(200, [], b"done")

        async with serving(wait) as (server, port):
            idle, busy, new = [await RawClient.connect(port) for _ in range(3)]
            idle.send(GET)
            while bell.waiter is None:
                await asyncio.sleep(0)
            bell.ring()
            await idle.answer()
            busy.send(GET)
            new.send(GET[:5])
            while bell.waiter is None or server.connections < 3:
                await asyncio.sleep(0)
            server.wind_down()
            assert await idle.rest() == b""
            assert server.busy
            bell.ring()
            _, headers, body = await busy.answer()
            assert (headers["connection"], body) == ("close", b"done")
            assert await busy.rest() == b""

            late = await RawClient.connect(port)
            for client, data in ((new, GET[5:]), (late, GET)):
                client.send(data)
                while bell.waiter is None:
                    await asyncio.sleep(0)
                bell.ring()
                assert (await client.answer())[1]["connection"] == "close"

    asyncio.run(main())


def test_closing_cuts_what_is_left() -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def wait(exchange: Exchange) -> None:
            try:
                await Bell()
            finally:
                ended.set()

        async with serving(wait) as (server, port):
            client = await RawClient.connect(port)
            client.send(GET)
            while not server.busy:
                await asyncio.sleep(0)
            await server.close()
            assert ended.is_set(), "whoever is cut has had the time to say so"
            assert server.connections == 0

    asyncio.run(main())
