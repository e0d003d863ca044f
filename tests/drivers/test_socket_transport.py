"""The transport as a protocol sees it, on our own loop and on asyncio's: the same calls in the same order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct

import pytest

from corral.drivers.event_loop import READABLE, WRITABLE, watcher_of
from corral.drivers.socket_transport import JOIN_MAX_BYTES
from tests.drivers.peers import LOOPS, PATIENCE_S, NewLoop, Witness, listening, pair, read_all, run
from tests.waiting import eventually


@pytest.fixture(params=LOOPS)
def new_loop(request: pytest.FixtureRequest) -> NewLoop:
    chosen: NewLoop = request.param
    return chosen


def test_what_is_written_arrives_and_what_is_sent_is_received(new_loop: NewLoop) -> None:
    async def work() -> None:
        async with pair() as (ours, peer):
            ours.transport.write(b"one ")
            ours.transport.writelines([b"two ", b"three"])
            assert await read_all(peer, 13) == b"one two three"
            peer.send(b"hello")
            await eventually(lambda: ours.received == b"hello", "it has come")
            assert ours.told == ["made", "data"]
            assert ours.transport.get_extra_info("peername") == peer.getsockname()
            assert ours.transport.get_extra_info("cipher", "none") == "none"
            assert peer.getpeername() == ours.transport.get_extra_info("socket").getsockname()

    run(new_loop, work())


def test_large_pieces_arrive_whole_and_are_not_copied(new_loop: NewLoop) -> None:
    head, body = b"h" * 100, bytes(range(256)) * 40_000

    async def work() -> None:
        async with pair() as (ours, peer):
            ours.transport.writelines([head, body])
            kept = [piece for piece in ours.transport._unsent if isinstance(piece, memoryview)]
            assert all(piece.obj is body for piece in kept)
            assert ours.told[1:] == ["pause"]
            assert await read_all(peer, len(head + body)) == head + body
            await eventually(lambda: ours.told[1:] == ["pause", "resume"], "all of it is away")
            assert ours.transport.get_write_buffer_size() == 0

    run(new_loop, work())


def test_a_slow_reader_pauses_the_protocol_by_the_marks(new_loop: NewLoop) -> None:
    async def work() -> None:
        async with pair() as (ours, peer):
            ours.transport.set_write_buffer_limits(high=1000, low=10)
            written = 0
            while ours.told[-1] != "pause":
                ours.transport.write(b"x" * 100_000)
                written += 100_000
                await asyncio.sleep(0)
            assert ours.transport.get_write_buffer_size() > 1000
            ours.transport.write(b"more")
            assert ours.told.count("pause") == 1
            assert len(await read_all(peer, written + 4)) == written + 4
            await eventually(lambda: ours.told[-1] == "resume", "it goes on")

    run(new_loop, work())


def test_what_the_kernel_takes_a_part_of_arrives_once(new_loop: NewLoop) -> None:
    """Two answer in one turn, so that what they send is gathered; both have next to no room to send."""
    body = b"".join(b"%07d " % number for number in range(7_500))

    class Answers(Witness):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        def data_received(self, data: bytes) -> None:
            self.transport.write(body)

    async def work() -> None:
        async with listening(Answers) as (made, port):
            peers = [socket.create_connection(("127.0.0.1", port), PATIENCE_S) for _ in range(2)]
            await eventually(lambda: len(made) == 2, "both are connected")
            for peer in peers:
                peer.setblocking(False)
                peer.send(b"?")
            for peer in peers:
                assert await read_all(peer, len(body)) == body
            await eventually(
                lambda: not any(each.transport.get_write_buffer_size() for each in made), "all of it is away"
            )
            assert not any(each.transport._waits for each in made), "nobody asks the kernel for more room"
            for peer in peers:
                with pytest.raises(BlockingIOError):
                    peer.recv(1)
                peer.close()

    run(new_loop, work())


def test_what_came_before_the_peer_was_gone_is_given_to_the_protocol(new_loop: NewLoop) -> None:
    """Who answers before it has taken all, and closes, is heard, though sending fails in the same turn."""

    async def work() -> None:
        async with listening() as (made, port):
            peers = [socket.create_connection(("127.0.0.1", port), PATIENCE_S) for _ in range(2)]
            await eventually(lambda: len(made) == 2, "both are connected")
            for each in made:
                each.transport.write(b"x" * 10_000_000)
            for peer in peers:
                peer.send(b"too much")
                peer.close()  # with bytes unread: that is a reset
            await eventually(lambda: all(each.told[-1] == "lost" for each in made), "both are lost")
            assert [each.received for each in made] == [b"too much"] * 2

    run(new_loop, work())


def test_what_came_is_heard_before_sending_on_finds_out_that_nobody_is_there(new_loop: NewLoop) -> None:
    """As when an engine has answered and gone, and two sockets are ready in one turn."""

    async def work() -> None:
        async with pair() as (ours, peer):
            ours.transport.write(b"x" * 10_000_000)
            watcher = watcher_of(asyncio.get_running_loop())
            peer.send(b"too much")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            watcher.gathers = True
            ours.transport._on_ready(READABLE | WRITABLE)
            [(traveller, data)] = watcher.arrived
            watcher.arrived.clear()
            traveller.take(data)
            watcher.gathers = False
            assert watcher.leaving == [traveller]
            watcher.leaving.clear()
            traveller.leave()
            await eventually(lambda: ours.told[-1] == "lost", "it is over")
            assert ours.received == b"too much"

    run(new_loop, work())


def test_a_slow_reader_pauses_who_writes_a_little_with_every_turn(new_loop: NewLoop) -> None:
    class Answers(Witness):
        def data_received(self, data: bytes) -> None:
            if "pause" not in self.told:
                self.transport.write(b"x" * 10_000)
            super().data_received(data)

    async def work() -> None:
        async with pair(Answers) as (ours, peer):
            while "pause" not in ours.told:
                before = len(ours.received)
                peer.send(b"?")
                await eventually(lambda: len(ours.received) > before, "it has come")  # noqa: B023
                assert ours.transport.get_write_buffer_size() < 100_000

    run(new_loop, work())


def test_a_socket_that_is_not_read_keeps_its_bytes_until_it_is(new_loop: NewLoop) -> None:
    async def work() -> None:
        async with pair() as (ours, peer):
            ours.transport.pause_reading()
            assert not ours.transport.is_reading()
            peer.send(b"later")
            for _ in range(5):
                await asyncio.sleep(0)
            assert ours.received == b""
            ours.transport.resume_reading()
            await eventually(lambda: ours.received == b"later", "it has come")

    run(new_loop, work())


def test_a_peers_end_closes_unless_the_protocol_stays(new_loop: NewLoop) -> None:
    async def work() -> None:
        async with pair() as (ours, peer):
            peer.shutdown(socket.SHUT_WR)
            await eventually(lambda: ours.told[-1] == "lost", "it is over")
            assert (ours.told, ours.error) == (["made", "eof", "lost"], None)
            assert await read_all(peer, 1) == b""
        async with pair(lambda: Witness(keeps_half_open=True)) as (ours, peer):
            peer.shutdown(socket.SHUT_WR)
            await eventually(lambda: ours.told[-1] == "eof", "it has heard of it")
            ours.transport.resume_reading()
            ours.transport.write(b"still here")
            assert await read_all(peer, 10) == b"still here"
            ours.transport.write_eof()
            ours.transport.write(b"too late")
            assert await read_all(peer, 1) == b""
            assert ours.told.count("eof") == 1

    run(new_loop, work())


def test_closing_lets_the_last_bytes_go_first_and_aborting_does_not(new_loop: NewLoop) -> None:
    size = 20_000_000

    async def work() -> None:
        async with pair() as (ours, peer):
            ours.transport.write(b"x" * size)
            ours.transport.close()
            assert ours.transport.is_closing()
            ours.transport.write(b"after the end")
            assert len(await read_all(peer, size + 1)) == size
            await eventually(lambda: ours.told[-1] == "lost", "it is over")
            ours.transport.close()
            ours.transport.abort()
            await asyncio.sleep(0)
            assert ours.told.count("lost") == 1
        async with pair() as (ours, peer):
            ours.transport.write(b"x" * size)
            ours.transport.abort()
            assert ours.told[-1] != "lost", "it is told from a fresh stack"
            await eventually(lambda: ours.told[-1] == "lost", "it is over")
            with contextlib.suppress(ConnectionResetError):
                assert len(await read_all(peer, size)) < size

    run(new_loop, work())


def test_what_is_written_before_an_abort_is_on_its_way(new_loop: NewLoop) -> None:
    class LastWords(Witness):
        def data_received(self, data: bytes) -> None:
            self.transport.write(b"last words")
            self.transport.abort()

    async def work() -> None:
        async with pair(LastWords) as (_ours, peer):
            peer.send(b"?")
            assert await read_all(peer, 11) == b"last words"

    run(new_loop, work())


def test_what_comes_after_the_protocol_has_closed_is_not_given_to_it(new_loop: NewLoop) -> None:
    class Closes(Witness):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            for each in everybody:
                each.transport.close()

    everybody: list[Witness] = []

    async def work() -> None:
        async with listening(Closes) as (made, port):
            first = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
            second = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
            with first, second:
                await eventually(lambda: len(made) == 2, "both are connected")
                everybody.extend(made)
                first.send(b"a")
                second.send(b"b")
                await eventually(lambda: all(each.told[-1] == "lost" for each in made), "both are closed")
        assert sorted(each.received for each in made) in ([b"", b"a"], [b"", b"b"])

    run(new_loop, work())


def test_a_reset_is_told_and_costs_nobody_else_anything(new_loop: NewLoop) -> None:
    async def work() -> None:
        async with pair() as (ours, peer):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            await eventually(lambda: ours.told[-1] == "lost", "it is over")
            assert isinstance(ours.error, ConnectionResetError)

    run(new_loop, work())


def test_a_reset_that_is_not_seen_yet_does_not_disturb_who_is_through_with_writing(new_loop: NewLoop) -> None:
    async def work() -> None:
        async with pair() as (ours, peer):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            ours.transport.write_eof()
            await eventually(lambda: ours.told[-1] == "lost", "it is over")

    run(new_loop, work())


def test_a_protocol_that_fails_loses_its_connection_and_no_other(
    new_loop: NewLoop, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Witness):
        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError

    async def work() -> None:
        async with pair(Broken) as (ours, peer):
            with caplog.at_level(logging.ERROR):
                peer.send(b"x")
                await eventually(lambda: ours.told[-1] == "lost", "it is over")
            assert isinstance(ours.error, ZeroDivisionError)
            assert "ZeroDivisionError" in caplog.text

    run(new_loop, work())


def test_many_small_pieces_that_wait_arrive_in_order(new_loop: NewLoop) -> None:
    async def work() -> None:
        async with pair() as (ours, peer):
            ours.transport.write(b"x" * 20_000_000)
            numbers = [b"%05d" % number for number in range(3000)]
            for number in numbers:
                ours.transport.write(number)
            ours.transport.writelines([b"y" * JOIN_MAX_BYTES, b"z"])
            data = await read_all(peer, 20_000_000 + 15_000 + JOIN_MAX_BYTES + 1)
            assert data[20_000_000:].startswith(b"".join(numbers) + b"y")
            assert data.endswith(b"yz")

    run(new_loop, work())
