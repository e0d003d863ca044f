from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from corral.drivers.event_loop import new_event_loop
from corral.drivers.http_server import Exchange, HttpServer
from corral.drivers.http_server import server as server_module
from corral.drivers.http_server.connection import Connection
from corral.drivers.listening import listen_sockets
from corral.drivers.patrol import Patrol
from corral.drivers.tasks import Bell
from tests.drivers.serving import LIMITS, PATIENCE_S, RawClient, error_page, serving
from tests.drivers.test_tls import make_pair
from tests.in_a_loop import in_a_loop, turns
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


SERVED, TOLD = 6, 6
# Two thirds of those that are too many are kept until they ask something.
WAITING = SERVED + TOLD * 2 // 3


@asynccontextmanager
async def crowded(
    monkeypatch: pytest.MonkeyPatch, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[HttpServer, int]]:
    """A server with room for few, that is patient with whoever says nothing."""
    monkeypatch.setattr(server_module, "TOLD_MAX", TOLD)
    limits = dataclasses.replace(LIMITS, connections_max=SERVED, header_timeout_s=1000.0)
    async with serving(hello, limits, tls=tls, never_refused=lambda head: head.path == "/live") as served:
        yield served


async def silent_clients(port: int, count: int) -> list[RawClient]:
    """So many that say nothing; each has been met before the next one comes."""
    clients = []
    for _ in range(count):
        clients.append(await RawClient.connect(port))
        await turns()
    return clients


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.mark.parametrize("speaks_tls", [False, True], ids=["plain", "TLS"])
@in_a_loop
async def test_of_those_who_are_too_many_and_say_nothing_the_first_makes_way_for_the_next(
    speaks_tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tls = server_context(tmp_path) if speaks_tls else None
    async with crowded(monkeypatch, tls) as (server, port):
        for _ in range(2):
            caplog.clear()
            clients = await silent_clients(port, WAITING + 4)
            # Who is served stays. Silence in a handshake is no connection yet, and goes like any other.
            gone = clients[:4] if speaks_tls else clients[SERVED : SERVED + 4]
            assert [await each.rest() for each in gone] == [b""] * 4
            assert (server.held, server.connections) == (WAITING, 0 if speaks_tls else WAITING)
            assert [record.getMessage() for record in caplog.records] == [
                f"{WAITING} connections are open: for each that comes one that has asked nothing is closed"
            ]
            for each in clients:
                each.close()
            await eventually(lambda: not server.held, "they have gone")
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_context() if tls else None
        )
        writer.write(GET)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()


@in_a_loop
async def test_of_those_who_come_at_once_no_more_are_taken_than_there_are_descriptors_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with crowded(monkeypatch) as (server, port):
        held: list[int] = []
        enter = server.enter

        def watched(connection: Connection) -> bool:
            has_room = enter(connection)
            held.append(server.held)
            return has_room

        monkeypatch.setattr(server, "enter", watched)
        # Who makes way has its descriptor until the turn is over.
        with ExitStack() as at_once:
            for _ in range(20):
                at_once.enter_context(socket.create_connection(("127.0.0.1", port)))
            await turns(2 * 20)  # each brings two
            assert max(held) == SERVED + TOLD
            assert server.held == WAITING, "who had to go has gone"


@pytest.mark.parametrize("connections_max", [1, 2, 4, 100])
def test_behind_a_full_backlog_too_what_is_never_refused_is_answered(connections_max: int) -> None:
    """On the gateway's own loop, which serves a listener and those it has brought in one turn."""

    async def main() -> None:
        limits = dataclasses.replace(LIMITS, connections_max=connections_max, header_timeout_s=1000.0)
        server = HttpServer(
            hello,
            limits,
            Patrol(),
            error_page,
            never_refused=lambda head: head.path == "/live",
        )
        sockets = listen_sockets("127.0.0.1", 0)
        address = sockets[0].getsockname()
        with ExitStack() as clients:
            for _ in range(300):
                clients.enter_context(socket.create_connection(address))
            probe = clients.enter_context(socket.create_connection(address))
            probe.sendall(get("/live"))
            for _ in range(300):
                clients.enter_context(socket.create_connection(address))
            probe.setblocking(False)
            await server.listen(sockets)
            answer = asyncio.get_running_loop().sock_recv(probe, 100)
            assert (await asyncio.wait_for(answer, PATIENCE_S)).startswith(b"HTTP/1.1 200 ")
            await server.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())


@in_a_loop
async def test_what_is_never_refused_is_answered_however_many_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with crowded(monkeypatch) as (_server, port):
        served, *_others = await silent_clients(port, 2 * WAITING)
        for path, expected in (("/live", 200), ("/a", 503), ("/live", 200)):
            client = await RawClient.connect(port)
            client.send(get(path) * 2)
            status, headers, _body = await client.answer()
            assert (status, headers["connection"]) == (expected, "close")
            assert await client.rest() == b""
        served.send(GET)
        status, headers, _body = await served.answer()
        assert (status, headers.get("connection")) == (200, None)


@in_a_loop
async def test_one_too_many_that_is_served_after_all_need_not_make_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with crowded(monkeypatch) as (server, port):
        first, *_others, late = await silent_clients(port, SERVED + 1)
        first.close()
        await eventually(lambda: server.held == SERVED, "there is room for it")
        for _ in range(2):
            late.send(GET)
            assert (await late.answer())[0] == 200
            await silent_clients(port, 2 * WAITING)


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
