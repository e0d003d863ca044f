from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from corral import errors
from corral.drivers import clock, connections, tasks
from corral.drivers.event_loop import new_event_loop
from corral.drivers.http_client import Address, BackendGone, HttpClient
from corral.drivers.http_client.connection import UNREAD_MAX_BYTES, ClientConnection
from corral.drivers.http_server import Exchange
from corral.drivers.patrol import Patrol
from corral.drivers.tasks import Bell
from corral.formats import http1
from tests.drivers.serving import serving
from tests.in_a_loop import turns
from tests.waiting import eventually

PACKAGE = "corral.drivers.http_client"
GET = http1.request_head("GET", "/", [(b"host", b"x")])
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Basin:
    """A sink that keeps what is poured into it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.flushes = 0

    def write(self, payload: bytes) -> None:
        self.parts.append(payload)

    def write_chunks(self, chunks: http1.Chunks) -> None:
        self.parts.append(chunks.payload())

    def pass_on(self, raw: bytes) -> None:
        self.write_chunks(http1.Chunks(raw))
        self.flush()

    def flush(self) -> None:
        self.flushes += 1


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[tuple[HttpClient, Address]]:
    """A backend that does exactly what a test says, once for each connection, and a client for it."""
    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await script(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    client = HttpClient(Patrol(0.005))
    try:
        yield client, address
    finally:
        client.close(address)
        await turns()  # whoever is connected by now is known by then
        server.close()
        for writer in writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await asyncio.sleep(0)


def run(work: Coroutine[Any, None, None]) -> None:
    async def main() -> None:
        await asyncio.wait_for(tasks.outcome(work), 20)

    asyncio.run(main())


def answering(*pieces: bytes, close: bool = False) -> Script:
    """Each request gets these pieces, each in a packet of its own as far as the kernel plays along."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if close:
                writer.close()
                return

    return script


async def ask_and_pour(client: HttpClient, address: Address) -> bytes:
    answer = await client.send(address, "GET", GET, silence_s=5)
    basin = Basin()
    await answer.pour(basin)
    return b"".join(basin.parts)


async def ask(client: HttpClient, address: Address, silence_s: float = 5.0) -> bytes:
    answer = await client.send(address, "GET", GET, silence_s=silence_s)
    return await answer.body(1_000_000)


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
    ids=["length", "chunked", "after 100"],
)
def test_a_whole_answer_is_read_and_the_connection_kept(wire: bytes) -> None:
    async def work() -> None:
        connections = 0

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await answering(wire)(reader, writer)

        async with scripted(script) as (client, address):
            assert [await ask(client, address) for _ in range(3)] == [b"hello"] * 3
            assert connections == 1

    run(work())


def test_an_answer_that_ends_with_its_connection_is_read_to_the_end() -> None:
    async def work() -> None:
        wire = answering(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", close=True)
        async with scripted(wire) as (client, address):
            assert await ask(client, address) == b"hello"
            assert await ask(client, address) == b"hello"

    run(work())


def test_connection_close_is_honoured() -> None:
    async def work() -> None:
        connections = 0

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")(
                reader, writer
            )

        async with scripted(script) as (client, address):
            await ask(client, address)
            await ask(client, address)
            assert connections == 2

    run(work())


def test_a_kept_connection_that_was_closed_meanwhile_costs_nobody_an_error() -> None:
    async def work() -> None:
        served = 0

        async def one_request_a_connection(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            nonlocal served
            await reader.readuntil(b"\r\n\r\n")
            served += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % served)
            # Closes only when the next request is on its way: the race that a kept connection has.
            await reader.readuntil(b"\r\n\r\n")
            writer.close()

        async with scripted(one_request_a_connection) as (client, address):
            assert await ask(client, address) == b"1"
            assert await ask(client, address) == b"2"

    run(work())


def test_nobody_at_the_address_is_backend_gone() -> None:
    async def work() -> None:
        async with scripted(answering()) as (_, address):
            pass
        with pytest.raises(BackendGone, match="No connection to the backend"):
            await ask(HttpClient(Patrol()), address)

    run(work())


@pytest.mark.parametrize(
    ("wire", "error", "message"),
    [
        (b"", BackendGone, "closed the connection unanswered"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", errors.UpstreamError, "in the middle"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nha",
            errors.UpstreamError,
            "in the middle",
        ),
        (b"GARBAGE\r\n\r\n", errors.UpstreamError, None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", errors.UpstreamError, None),
    ],
    ids=["nothing", "cut length", "cut chunk", "garbage", "bad length"],
)
@pytest.mark.parametrize("poured", [False, True], ids=["read", "poured"])
def test_a_broken_answer_is_a_clear_error(
    wire: bytes, error: type[errors.CorralError], message: str | None, poured: bool
) -> None:
    async def work() -> None:
        async with scripted(answering(wire, close=True)) as (client, address):
            asked = ask_and_pour(client, address) if poured else ask(client, address)
            with pytest.raises(error, match=message):
                await asked

    run(work())


def test_silence_before_and_in_an_answer_is_a_timeout() -> None:
    async def work() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with scripted(silent) as (client, address):
            with pytest.raises(errors.UpstreamTimeout, match=r"sent nothing for 0\.05 s"):
                await ask(client, address, silence_s=0.05)

        async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            await reader.read()

        async with scripted(stalls) as (client, address):
            answer = await client.send(address, "GET", GET, silence_s=0.05)
            with pytest.raises(errors.UpstreamTimeout):
                await answer.pour(Basin())
            answer.close()

    run(work())


def test_an_answer_that_nobody_asked_for_costs_the_connection() -> None:
    async def work() -> None:
        async def eager(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
            await reader.read()

        async with scripted(eager) as (client, address):
            connection = await client._connect(address)
            while not connection.transport.is_closing():
                await asyncio.sleep(0)
            with pytest.raises(BackendGone):
                connection.ask("GET", GET, b"", 5, None)

    run(work())


def test_a_connection_whose_request_is_not_through_is_not_used_again() -> None:
    """What is left of it would be taken for the beginning of the next one."""

    async def work() -> None:
        async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
            await asyncio.Event().wait()

        async with scripted(hasty) as (client, address):
            for _ in range(2):  # the second time in words that are known
                body = b"x" * 20_000_000
                head = http1.request_head("POST", "/", [(b"content-length", b"%d" % len(body))])
                answer = await client.send(address, "POST", head, body, silence_s=5)
                assert (answer.head.status, await answer.body(10)) == (413, b"no")
                assert not client._pools[address].idle

    run(work())


def test_an_answer_larger_than_its_limit_is_refused() -> None:
    async def work() -> None:
        wire = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
        async with scripted(answering(wire)) as (client, address):
            answer = await client.send(address, "GET", GET, silence_s=5)
            with pytest.raises(errors.UpstreamError, match="larger than 4 bytes"):
                await answer.body(4)

    run(work())


def test_a_poured_body_comes_as_it_comes() -> None:
    async def work() -> None:
        bell = Bell()
        basin = Basin()

        async def stream(exchange: Exchange) -> None:
            exchange.start(200, [])
            exchange.write(b"first")
            exchange.flush()
            await bell
            exchange.write(b"second")
            exchange.finish()

        async with serving(stream) as (_, port):
            client = HttpClient(Patrol())
            address = Address("127.0.0.1", port)
            answer = await client.send(address, "GET", GET, silence_s=5)
            poured = tasks.outcome(answer.pour(basin))
            while basin.parts != [b"first"]:
                await asyncio.sleep(0)
            assert not poured.done()
            bell.ring()
            await poured
            assert basin.parts == [b"first", b"second"]
            client.close(address)

    run(work())


def test_letting_an_answer_go_closes_its_connection_at_once() -> None:
    async def work() -> None:
        seen_end = asyncio.Event()

        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            with contextlib.suppress(ConnectionError):
                await reader.read()
            seen_end.set()

        async with scripted(endless) as (client, address):
            answer = await client.send(address, "GET", GET, silence_s=5)
            answer.close()
            answer.close()
            await eventually(seen_end.is_set, "the backend sees the end")

    run(work())


def test_closing_an_address_tells_whoever_waits_there() -> None:
    async def work() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with scripted(silent) as (client, address):
            waiting = tasks.outcome(ask(client, address))
            while address not in client._pools or not client._pools[address].open:
                await asyncio.sleep(0)
            client.close(address)
            with pytest.raises(errors.UpstreamError, match="was stopped"):
                await waiting

    run(work())


def test_a_paused_answer_stops_being_read_and_goes_on_when_resumed() -> None:
    size = 20_000_000

    async def work() -> None:
        sent = 0

        async def big(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            while sent < size:
                writer.write(b"x" * 100_000)
                await writer.drain()
                sent += 100_000

        class Slow(Basin):
            def flush(self) -> None:
                if not self.flushes:
                    answer.pause()
                super().flush()

        async with scripted(big) as (client, address):
            answer = await client.send(address, "GET", GET, silence_s=5)
            basin = Slow()
            poured = tasks.outcome(answer.pour(basin))
            while basin.flushes == 0:
                await asyncio.sleep(0)
            before = -1
            while before != sent:  # until the kernel's buffers are full and the backend stands still
                before = sent
                await asyncio.sleep(0.05)
            assert sent < size
            assert not poured.done()
            assert (client.held_up(address), client.held_up(address._replace(port=1))) == (1, 0)
            answer.resume()
            assert client.held_up(address) == 0
            await poured
            assert sum(map(len, basin.parts)) == size

    run(work())


def test_an_unread_answer_is_not_gathered_without_bound() -> None:
    size = 20_000_000

    async def work() -> None:
        wire = answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, b"x" * size)
        async with scripted(wire) as (client, address):
            answer = await client.send(address, "GET", GET, silence_s=5)
            connection = next(iter(client._pools[address].open))
            while not connection._paused:
                await asyncio.sleep(0)
            assert connection._reader.buffered_bytes < 1_000_000
            body = await answer.body(size)
            assert len(body) == size

    run(work())


def test_a_connection_whose_asker_left_meanwhile_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{PACKAGE}.connection.IDLE_MAX_S", 0.0)

    async def work() -> None:
        ends: list[BaseException | None] = []
        opened, closed = asyncio.Event(), asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            opened.set()
            await reader.read()
            closed.set()

        async def connect_and_leave(*arguments: Any) -> Any:
            made = await connect(*arguments)
            # The client leaves in the moment in which its connection stands.
            asking.throw(asyncio.CancelledError())
            return made

        async def ask_in_vain() -> None:
            await ask(client, address)

        async with scripted(silent) as (client, address):
            connect = connections.connect
            monkeypatch.setattr(f"{PACKAGE}.client.connect", connect_and_leave)
            asking = tasks.Strand(ask_in_vain(), ends.append)
            asking.step()
            await eventually(opened.is_set, "it is open")
            await eventually(closed.is_set, "it is closed")
        assert [type(end) for end in ends] == [asyncio.CancelledError]

    run(work())


def test_a_head_in_two_pieces_with_much_behind_it_does_not_stop_the_pouring() -> None:
    size = UNREAD_MAX_BYTES + 1
    body = b"x" * size

    async def work() -> None:
        async with scripted(answering()) as (client, address):
            asked = tasks.outcome(ask_and_pour(client, address))
            while address not in client._pools or not client._pools[address].open:
                await asyncio.sleep(0)
            (connection,) = client._pools[address].open
            while not connection._answering:
                await asyncio.sleep(0)
            connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Len")
            connection.data_received(b"gth: %d\r\n\r\n" % (size + 1) + body)
            assert connection.transport.is_reading()
            connection.data_received(b"y")
            assert await asked == body + b"y"

    run(work())


# The end of a kept connection ----------------------------------------------------------------------


class Listening:
    """A backend whose every step is taken by the test, with no turn of the event loop in between."""

    def __init__(self, socket_path: str) -> None:
        at_port = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", at_port.getsockname()[1], socket_path)
        self._listeners = [at_port]
        if socket_path:
            self._listeners.append(socket.socket(socket.AF_UNIX))
            self._listeners[-1].bind(socket_path)
            self._listeners[-1].listen()
        self._taken: list[socket.socket] = []

    def take(self) -> socket.socket:
        connected, _ = self._listeners[-1].accept()
        self._taken.append(connected)
        return connected

    def die(self) -> None:
        """All that is open closes at once, as the kernel does it for a process that dies."""
        for each in (*self._taken, *self._listeners):
            each.close()


async def answered_once(backend: Listening, client: HttpClient) -> socket.socket:
    """The backend's end of a connection that is kept."""
    first = tasks.outcome(ask(client, backend.address))
    await turns()
    connected = backend.take()
    await eventually(lambda: connected.recv(len(GET), socket.MSG_DONTWAIT), "the first request")
    connected.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert await first == b"ok"
    return connected


def test_a_kept_connection_is_idle_for_its_time_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for as long as its engine may be silent over a request."""
    monkeypatch.setattr(f"{PACKAGE}.connection.IDLE_MAX_S", 0.1)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def work() -> None:
        async with scripted(script) as (client, address):
            assert await ask(client, address, silence_s=30) == b"ok"
            pool = client._pools[address]
            kept_at = clock.monotonic()
            assert len(pool.idle) == len(pool.open) == 1
            await eventually(lambda: not pool.idle and not pool.open, "it is closed, and forgotten")
            assert clock.monotonic() - kept_at >= 0.1

    run(work())


def test_an_engine_may_be_silent_for_longer_than_a_connection_may_be_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{PACKAGE}.connection.IDLE_MAX_S", 0.1)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for pause_s in (0.0, 0.3):
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(pause_s)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def work() -> None:
        async with scripted(script) as (client, address):
            assert await ask(client, address) == b"ok"
            (kept,) = client._pools[address].idle
            await eventually(lambda: not kept._counts_anew, "its idle time is counted")
            assert await ask(client, address) == b"ok"
            assert client._pools[address].idle == [kept]

    run(work())


def test_so_many_idle_connections_are_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{PACKAGE}.client.IDLE_MAX_PER_ADDRESS", 2)
    all_asked = asyncio.Barrier(3)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await all_asked.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def work() -> None:
        async with scripted(script) as (client, address):
            answers = [tasks.outcome(ask(client, address)) for _ in range(3)]
            assert await asyncio.gather(*answers) == [b"ok"] * 3
            await eventually(lambda: len(client._pools[address].open) == 2, "one is closed")
            assert len(client._pools[address].idle) == 2

    run(work())


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, new_event_loop], ids=["asyncio's", "ours"])
@pytest.mark.parametrize("was_there", [False, True], ids=["before the request came", "over the request"])
@pytest.mark.parametrize("at", ["port", "socket"])
def test_a_backend_that_has_closed_a_kept_connection_had_the_request_or_not(
    make_loop: Callable[[], asyncio.AbstractEventLoop], was_there: bool, at: str, tmp_path: Path
) -> None:
    """And no other is to be had, because it has died: of which requests it can have died is asked then."""

    async def work() -> None:
        backend = Listening(str(tmp_path / "near.sock") if at == "socket" else "")
        client = HttpClient(Patrol(0.005))
        connected = await answered_once(backend, client)
        assert client._pools[backend.address].idle
        if not was_there:
            backend.die()
        second = tasks.outcome(ask(client, backend.address))
        if was_there:
            await turns()
            assert connected.recv(len(GET)) == GET
            backend.die()
        with pytest.raises(BackendGone) as caught:
            await second
        assert caught.value.was_sent is was_there

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(asyncio.wait_for(work(), 20))


@pytest.mark.parametrize("at", ["port", "socket"])
def test_who_was_there_at_a_death_was_there_though_it_knocks_once_more_while_the_door_still_stands(
    at: str, tmp_path: Path
) -> None:
    """A process that dies closes one socket after the other, and its listener may be the last."""

    async def work() -> None:
        backend = Listening(str(tmp_path / "near.sock") if at == "socket" else "")
        client = HttpClient(Patrol(0.005))
        connected = await answered_once(backend, client)
        second = tasks.outcome(ask(client, backend.address))
        await turns()
        assert connected.recv(len(GET)) == GET
        (kept,) = client._pools[backend.address].open
        connected.close()
        await eventually(
            lambda: any(each._answering for each in client._pools[backend.address].open - {kept}),
            "it knocks again",
        )
        backend.die()
        with pytest.raises(BackendGone) as caught:
            await second
        assert caught.value.was_sent

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(asyncio.wait_for(work(), 20))


def test_what_is_said_of_a_silence_that_is_over_does_not_touch_the_next_request() -> None:
    """The answer has come while it was asked what the silence meant, and the connection is used again."""
    answers = asyncio.Event()
    suspected: list[ClientConnection] = []

    def suspect(connection: ClientConnection) -> None:
        suspected.append(connection)
        answers.set()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            await answers.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def work() -> None:
        async with scripted(script) as (client, address):
            sending = client.send(address, "GET", GET, silence_s=0.02, on_silence=suspect)
            assert (await tasks.outcome(sending)).whole() == b"ok"
            (connection,) = suspected
            idle_until = connection._deadline
            connection.wait_on()
            assert connection._deadline == idle_until
            answers.clear()
            second = tasks.outcome(ask(client, address))
            await turns()
            connection.give_up(errors.UpstreamTimeout("of the first"))
            answers.set()
            assert await second == b"ok"

    run(work())


@pytest.mark.parametrize("at", ["port", "socket"])
def test_who_dies_in_the_middle_of_a_body_has_died_over_it(at: str, tmp_path: Path) -> None:
    async def work() -> None:
        backend = Listening(str(tmp_path / "near.sock") if at == "socket" else "")
        client = HttpClient(Patrol(0.005))
        body = b"x" * 8_000_000
        head = http1.request_head("POST", "/", [(b"content-length", b"%d" % len(body))])
        sending = tasks.outcome(client.send(backend.address, "POST", head, body, silence_s=5))
        await turns()
        connected = backend.take()
        await eventually(lambda: connected.recv(1000, socket.MSG_DONTWAIT), "a part of it has come")
        backend.die()
        with pytest.raises(BackendGone) as caught:
            await sending
        assert caught.value.was_sent

    run(work())
