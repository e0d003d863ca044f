from __future__ import annotations

import asyncio
import dataclasses
import ssl
from pathlib import Path

import pytest

from corral.drivers.http_server import Exchange
from corral.drivers.http_server import server as server_module
from corral.drivers.tasks import Bell
from tests.drivers.serving import LIMITS, RawClient, serving
from tests.drivers.test_tls import make_pair
from tests.in_a_loop import in_a_loop
from tests.waiting import eventually

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


def server_context(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_pair(folder, "localhost"))
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


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


@pytest.mark.parametrize("speaks_tls", [False, True], ids=["plain", "TLS"])
@in_a_loop
async def test_past_those_that_are_told_so_everybody_is_closed_at_once(
    speaks_tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "TOLD_MAX", 2)
    limits = dataclasses.replace(LIMITS, connections_max=3, header_timeout_s=1000.0)
    tls = server_context(tmp_path) if speaks_tls else None
    async with serving(hello, limits, tls=tls) as (server, port):
        silent = [await RawClient.connect(port) for _ in range(5)]
        for _ in range(3):
            assert await (await RawClient.connect(port)).rest() == b""
        assert [record.getMessage() for record in caplog.records] == [
            "5 connections are open: others are closed as they come"
        ]
        # Silence in a handshake is no connection yet, and takes a descriptor all the same.
        assert server.connections == (0 if speaks_tls else 5)
        for each in silent:
            each.close()
        await eventually(lambda: not server.held, "they have gone")
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_context() if tls else None
        )
        writer.write(GET)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()


@in_a_loop
async def test_closing_cuts_handshakes_too(tmp_path: Path) -> None:
    async with serving(hello, tls=server_context(tmp_path)) as (server, port):
        client = await RawClient.connect(port)
        await eventually(lambda: server.held, "it has come")
        await server.close()
        assert await client.rest() == b""
        assert not server.held


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
