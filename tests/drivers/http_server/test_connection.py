from __future__ import annotations

import asyncio
import dataclasses
import math
import socket
import struct

import pytest

from corral import errors
from corral.drivers import clock
from corral.drivers.connections import Listener
from corral.drivers.http_server import ClientGone, Exchange, HttpServer
from corral.drivers.http_server.connection import Connection
from corral.drivers.patrol import Patrol
from corral.drivers.tasks import Bell
from tests.drivers.serving import LIMITS, RawClient, error_page, serving
from tests.waiting import eventually

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


async def say_path(exchange: Exchange) -> None:
    exchange.respond(200, [], exchange.head.path.encode())


async def echo(exchange: Exchange) -> None:
    exchange.respond(200, [], await exchange.body())


def post(path: str, body: bytes, *more: bytes) -> bytes:
    headers = [b"Host: x", b"Content-Length: %d" % len(body), *more]
    return b"POST " + path.encode() + b" HTTP/1.1\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body


def test_a_connection_answers_one_request_after_the_other() -> None:
    async def main() -> None:
        async with serving(say_path) as (_, port):
            client = await RawClient.connect(port)
            for path in (b"/one", b"/two"):
                client.send(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                status, headers, body = await client.answer()
                assert (status, body) == (200, path)
                assert "date" in headers
                assert "connection" not in headers

    asyncio.run(main())


def test_pipelined_requests_are_answered_in_order_even_if_the_first_is_slow() -> None:
    async def main() -> None:
        bell = Bell()

        async def first_waits(exchange: Exchange) -> None:
            if exchange.head.path == "/0":
                await bell
            await say_path(exchange)

        async with serving(first_waits) as (_, port):
            client = await RawClient.connect(port)
            client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(50)))
            while bell.waiter is None:
                await asyncio.sleep(0)
            bell.ring()
            assert [(await client.answer())[2] for _ in range(50)] == [b"/%d" % n for n in range(50)]

    asyncio.run(main())


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_a_body_arrives_whole_whatever_its_pieces(framing: str, piece: int) -> None:
    body = bytes(range(256)) * 5
    if framing == "length":
        request = post("/", body)
    else:
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:1], body[1:500], body[500:]))
        request = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"

    async def main() -> None:
        async with serving(echo) as (_, port):
            client = await RawClient.connect(port)
            for start in range(0, len(request), piece):
                client.send(request[start : start + piece])
                await asyncio.sleep(0)
            assert (await client.answer())[2] == body
            client.send(GET)
            assert (await client.answer())[0] == 200

    asyncio.run(main())


def test_a_client_that_expects_100_continue_gets_it_when_its_body_is_wanted() -> None:
    async def main() -> None:
        async with serving(echo) as (_, port):
            client = await RawClient.connect(port)
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
            assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"hi")
            assert (await client.answer())[2] == b"hi"

    asyncio.run(main())


def test_a_refused_expectation_ends_the_connection_without_100() -> None:
    async def refuse(exchange: Exchange) -> None:
        raise errors.InvalidApiKey("no")

    async def main() -> None:
        async with serving(refuse) as (_, port):
            client = await RawClient.connect(port)
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (401, "close")
            assert await client.rest() == b""

    asyncio.run(main())


@pytest.mark.parametrize("how", ["length", "chunked"])
def test_a_body_over_the_limit_gets_413_that_arrives(how: str) -> None:
    big = b"x" * 200_000
    limits = dataclasses.replace(LIMITS, body_max_bytes=1000)

    async def main() -> None:
        async with serving(echo, limits) as (_, port):
            client = await RawClient.connect(port)
            if how == "length":
                client.send(post("/", big))
            else:
                client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
                client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(big), big))
            status, headers, body = await client.answer()
            assert (status, headers["connection"]) == (413, "close")
            assert b"payload_too_large" in body

    asyncio.run(main())


def test_an_answer_before_the_body_was_read_keeps_the_connection_if_the_body_is_here() -> None:
    async def main() -> None:
        async with serving(say_path) as (_, port):
            client = await RawClient.connect(port)
            client.send(post("/unread", b"short") + GET)
            assert (await client.answer())[2] == b"/unread"
            assert (await client.answer())[2] == b"/a"

    asyncio.run(main())


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\x16\x03\x01\x02",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ],
    ids=["no host", "no version", "tls", "bad length"],
)
def test_what_is_no_request_gets_400_and_a_closed_connection(request_bytes: bytes) -> None:
    async def main() -> None:
        async with serving(say_path) as (_, port):
            client = await RawClient.connect(port)
            client.send(request_bytes + b"\r\n\r\n")
            status, headers, body = await client.answer()
            assert (status, headers["connection"]) == (400, "close")
            assert b"invalid_request" in body
            assert await client.rest() == b""

    asyncio.run(main())


def test_the_clients_end_while_it_waits_means_that_it_is_gone() -> None:
    async def main() -> None:
        gone = asyncio.Event()

        async def wait(exchange: Exchange) -> None:
            try:
                await Bell()
            except ClientGone:
                gone.set()
                raise

        async with serving(wait) as (server, port):
            client = await RawClient.connect(port)
            client.send(GET)
            while not server.busy:
                await asyncio.sleep(0)
            client.close()
            await asyncio.wait_for(gone.wait(), 5)

    asyncio.run(main())


def test_a_reset_while_it_waits_means_that_it_is_gone_too() -> None:
    async def main() -> None:
        gone = asyncio.Event()

        async def wait(exchange: Exchange) -> None:
            try:
                await Bell()
            finally:
                gone.set()

        async with serving(wait) as (server, port):
            client = await RawClient.connect(port)
            client.send(GET)
            while not server.busy:
                await asyncio.sleep(0)
            raw = client.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.writer.transport.abort()
            await asyncio.wait_for(gone.wait(), 5)
            while server.connections:
                await asyncio.sleep(0)

    asyncio.run(main())


def test_a_half_closed_client_still_gets_an_answer_that_is_ready() -> None:
    async def main() -> None:
        async with serving(say_path) as (_, port):
            client = await RawClient.connect(port)
            client.send(GET + GET)
            client.writer.write_eof()
            text = await client.rest()
            assert text.count(b"HTTP/1.1 200 OK") == 2

    asyncio.run(main())


def test_http_10_closes_unless_it_asks_to_be_kept() -> None:
    async def main() -> None:
        async with serving(say_path) as (_, port):
            client = await RawClient.connect(port)
            client.send(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            _, headers, body = await client.answer()
            assert (headers["connection"], body) == ("keep-alive", b"/x")
            client.send(b"GET /y HTTP/1.0\r\n\r\n")
            assert (await client.answer())[1]["connection"] == "close"
            assert await client.rest() == b""

    asyncio.run(main())


def test_a_handler_that_fails_answers_500_and_the_connection_lives_on() -> None:
    async def fail(exchange: Exchange) -> None:
        if exchange.head.path == "/bad":
            raise ZeroDivisionError
        await say_path(exchange)

    async def main() -> None:
        async with serving(fail) as (_, port):
            client = await RawClient.connect(port)
            client.send(b"GET /bad HTTP/1.1\r\nHost: x\r\n\r\n")
            status, _, body = await client.answer()
            assert (status, body) == (500, b'{"code": "internal_error"}')
            client.send(GET)
            assert (await client.answer())[2] == b"/a"

    asyncio.run(main())


def test_a_handler_that_answers_nothing_answers_500() -> None:
    async def forget(exchange: Exchange) -> None:
        pass

    async def main() -> None:
        async with serving(forget) as (_, port):
            client = await RawClient.connect(port)
            client.send(GET)
            assert (await client.answer())[0] == 500

    asyncio.run(main())


def test_a_handler_that_fails_in_the_middle_closes_without_the_terminator() -> None:
    async def fail(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.write(b"half")
        raise errors.UpstreamError("gone")

    async def main() -> None:
        async with serving(fail) as (_, port):
            client = await RawClient.connect(port)
            client.send(GET)
            text = await client.rest()
            assert text.endswith(b"\r\n\r\n4\r\nhalf\r\n")

    asyncio.run(main())


class TestTimes:
    def test_a_header_that_never_ends_gets_408(self) -> None:
        limits = dataclasses.replace(LIMITS, header_timeout_s=0.05)

        async def main() -> None:
            async with serving(say_path, limits) as (_, port):
                client = await RawClient.connect(port)
                client.send(b"GET / HTTP/1.1\r\nHost:")
                assert (await client.answer())[0] == 408
                assert await client.rest() == b""

        asyncio.run(main())

    def test_the_header_of_a_later_request_has_its_own_time(self) -> None:
        limits = dataclasses.replace(LIMITS, header_timeout_s=0.05)

        async def main() -> None:
            async with serving(say_path, limits) as (_, port):
                client = await RawClient.connect(port)
                client.send(GET)
                await client.answer()
                client.send(b"GET / HT")
                assert (await client.answer())[0] == 408

        asyncio.run(main())

    def test_a_body_that_stops_arriving_gets_408(self) -> None:
        limits = dataclasses.replace(LIMITS, body_timeout_s=0.05)

        async def main() -> None:
            async with serving(echo, limits) as (_, port):
                client = await RawClient.connect(port)
                client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
                assert (await client.answer())[0] == 408

        asyncio.run(main())

    def test_an_idle_connection_is_closed_without_a_word(self) -> None:
        limits = dataclasses.replace(LIMITS, keepalive_timeout_s=0.05)

        async def main() -> None:
            async with serving(say_path, limits) as (_, port):
                client = await RawClient.connect(port)
                client.send(GET)
                await client.answer()
                assert await client.rest() == b""

        asyncio.run(main())

    def test_an_idle_connection_is_given_its_time_and_not_remembered_by_what_it_said(self) -> None:
        limits = dataclasses.replace(LIMITS, keepalive_timeout_s=0.4)

        async def main() -> None:
            async with serving(say_path, limits) as (server, port):
                client = await RawClient.connect(port)
                await eventually(lambda: server.connections, "it is connected")
                [connection] = server._connections
                for _ in range(3):
                    client.send(GET)
                    await client.answer()
                    await eventually(lambda: 0 < connection._deadline < math.inf, "its time is counted")
                    assert connection._deadline > clock.monotonic() + 0.2
                    assert connection.reader._likely is None
                    # Much longer than a look at it takes, and not yet as long as it has.
                    await asyncio.sleep(0.1)
                assert await client.rest() == b""

        asyncio.run(main())

    def test_a_reader_that_takes_nothing_is_cut_and_its_handler_told(self) -> None:
        limits = dataclasses.replace(LIMITS, write_timeout_s=0.1)

        async def main() -> None:
            gone = asyncio.Event()

            async def flood(exchange: Exchange) -> None:
                exchange.start(200, [])
                try:
                    while True:
                        exchange.write(b"x" * 65536)
                        await exchange.drain()
                finally:
                    gone.set()

            async with serving(flood, limits) as (server, port):
                client = await RawClient.connect(port)
                client.send(GET)
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
                await asyncio.wait_for(gone.wait(), 10)
                while server.connections:
                    await asyncio.sleep(0)

        asyncio.run(main())

    @pytest.mark.parametrize("goodbye", ["asks to close", "stays", "closes its side", "sends too much"])
    def test_a_reader_that_never_takes_the_last_bytes_does_not_hold_the_connection(
        self, goodbye: str
    ) -> None:
        limits = dataclasses.replace(LIMITS, write_timeout_s=0.2, keepalive_timeout_s=0.05, body_max_bytes=1)
        # More than the two small buffers of the kernel hold, less than what pauses the writing.
        page = b"x" * 60_000

        async def answer(exchange: Exchange) -> None:
            exchange.respond(200, [], page)

        async def main() -> None:
            async with serving(answer, limits) as (server, port):
                [listener] = server._listeners
                assert isinstance(listener, Listener)
                listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                with socket.socket() as client:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    client.connect(("127.0.0.1", port))
                    more = b"Connection: close\r\n" if goodbye == "asks to close" else b""
                    more += b"Content-Length: 9\r\n" if goodbye == "sends too much" else b""
                    client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + more + b"\r\n")
                    if goodbye == "closes its side":
                        client.shutdown(socket.SHUT_WR)
                    await eventually(lambda: server.connections, "it is connected")
                    connection = next(iter(server._connections))
                    await eventually(lambda: connection.transport.get_write_buffer_size(), "bytes are left")
                    assert not connection.write_paused
                    await eventually(lambda: not server.connections, "it is given up")

        asyncio.run(main())

    def test_a_handler_gets_its_own_deadline_raised_where_it_waits(self) -> None:
        async def wait(exchange: Exchange) -> None:
            exchange.expire(exchange.received_at + 0.03, lambda: errors.UpstreamTimeout("too long"))
            await Bell()

        async def main() -> None:
            async with serving(wait) as (_, port):
                client = await RawClient.connect(port)
                client.send(GET)
                status, _, body = await client.answer()
                assert (status, body) == (504, b'{"code": "upstream_timeout"}')
                client.send(GET)
                assert (await client.answer())[0] == 504

        asyncio.run(main())


def test_a_client_that_pipelines_without_end_is_not_read_without_end() -> None:
    async def main() -> None:
        bell = Bell()

        async def wait(exchange: Exchange) -> None:
            await bell
            await say_path(exchange)

        async with serving(wait) as (server, port):
            client = await RawClient.connect(port)
            client.send(GET)
            while bell.waiter is None:
                await asyncio.sleep(0)
            flood = asyncio.create_task(drain(client, GET * 400_000))
            connection = next(iter(server._connections))
            while connection._reading:
                await asyncio.sleep(0)
            assert connection.reader.buffered_bytes < 1_000_000
            flood.cancel()
            client.close()

    async def drain(client: RawClient, data: bytes) -> None:
        client.send(data)
        await client.writer.drain()

    asyncio.run(main())


def test_a_client_that_pipelines_and_reads_nothing_is_not_answered_without_end() -> None:
    answered = 0

    async def answer(exchange: Exchange) -> None:
        nonlocal answered
        answered += 1
        exchange.respond(200, [], b"x" * 10_000)

    async def main() -> None:
        async with serving(answer) as (server, port):
            client = await RawClient.connect(port)
            client.send(GET * 10_000)
            while answered < 16:
                await asyncio.sleep(0)
            connection = next(iter(server._connections))
            while not connection.write_paused:
                await asyncio.sleep(0)
            before = answered
            other = await RawClient.connect(port)
            other.send(GET)
            assert (await other.answer())[0] == 200
            assert answered == before + 1
            assert connection.transport.get_write_buffer_size() < 500_000
            # Whoever reads on gets everything.
            for _ in range(10_000):
                assert (await client.answer())[0] == 200

    asyncio.run(main())


def test_a_burst_of_requests_lets_others_have_their_turn() -> None:
    served: list[str] = []

    async def answer(exchange: Exchange) -> None:
        served.append(exchange.head.path)
        exchange.respond(200, [], b"")

    async def main() -> None:
        async with serving(answer) as (_, port):
            greedy, modest = await RawClient.connect(port), await RawClient.connect(port)
            greedy.send(GET * 2_000)
            modest.send(GET.replace(b"/a", b"/modest"))
            assert (await modest.answer())[0] == 200
            for _ in range(2_000):
                await greedy.answer()
        assert served.index("/modest") < 1_000

    asyncio.run(main())


def test_a_burst_whose_client_half_closes_is_answered_whole() -> None:
    async def main() -> None:
        async with serving(say_path) as (_, port):
            client = await RawClient.connect(port)
            client.send(GET * 100)
            client.writer.write_eof()
            for _ in range(100):
                assert (await client.answer())[0] == 200
            assert await client.rest() == b""

    asyncio.run(main())


class ClosedOnce(asyncio.Transport):
    """As asyncio's for TLS: closed a second time, it is of no use any more."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = 0
        self.sent = b""

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.sent += data

    def close(self) -> None:
        self.closed += 1

    def abort(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed > 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        assert self.closed < 2
        return len(self.sent)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


@pytest.mark.parametrize("request_bytes", [GET, GET + b"Connection: close\r\n\r\n", b"nonsense\r\n\r\n"])
def test_a_connection_is_closed_once_whatever_the_client_says_at_its_end(request_bytes: bytes) -> None:
    async def main() -> None:
        server = HttpServer(say_path, LIMITS, Patrol(), error_page)
        connection, transport = Connection(server), ClosedOnce()
        connection.connection_made(transport)
        connection.data_received(request_bytes)
        assert transport.sent
        connection.eof_received()
        connection.eof_received()
        assert transport.closed == 1
        connection.check(1e9)
        connection.connection_lost(None)

    asyncio.run(main())
