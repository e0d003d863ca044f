"""Connections that are taken and made, on our own loop and on asyncio's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from functools import partial
from pathlib import Path

import pytest

from corral.drivers import connections
from corral.drivers.connections import Listener, connect
from corral.drivers.listening import listen_sockets
from tests.drivers.peers import LOOPS, PATIENCE_S, NewLoop, Witness, listening, run
from tests.waiting import eventually


@pytest.fixture(params=LOOPS)
def new_loop(request: pytest.FixtureRequest) -> NewLoop:
    chosen: NewLoop = request.param
    return chosen


def test_a_connection_is_made_to_a_number_and_to_a_name(new_loop: NewLoop) -> None:
    async def work() -> None:
        async with listening() as (made, port):
            for host in ("127.0.0.1", "localhost"):
                ours = await connect(host, port, Witness, 5)
                assert isinstance(ours, Witness)
                ours.transport.write(b"hello")
                await eventually(lambda: made and made[-1].received == b"hello", "it has come")
                ours.transport.abort()
                await eventually(lambda: made[-1].told[-1] == "lost", "it is over")
                made.clear()

    run(new_loop, work())


def test_a_refused_connection_is_an_error_that_says_so(new_loop: NewLoop, free_port: int) -> None:
    async def work() -> None:
        with pytest.raises(OSError, match="connect call failed") as caught:
            await connect("127.0.0.1", free_port, Witness, 5)
        assert caught.value.errno == errno.ECONNREFUSED

    run(new_loop, work())


def test_a_socket_in_the_file_system_is_tried_before_a_port(new_loop: NewLoop, tmp_path: Path) -> None:
    path = str(tmp_path / "near.sock")

    async def work() -> None:
        async with listening() as (made, port):
            with socket.socket(socket.AF_UNIX) as near:
                near.bind(path)
                near.listen(0)
                near.setblocking(False)
                ours = await connect("127.0.0.1", port, Witness, 5, path)
                assert isinstance(ours, Witness)
                peer, _address = near.accept()
                ours.transport.write(b"hello")
                assert await asyncio.get_running_loop().sock_recv(peer, 100) == b"hello"
                peer.close()
                await eventually(lambda: ours.told[-1] == "lost", "it has heard of the end")
            assert not made

    run(new_loop, work())


def test_where_that_is_full_or_dead_or_not_there_a_port_serves(new_loop: NewLoop, tmp_path: Path) -> None:
    full, dead = str(tmp_path / "full.sock"), str(tmp_path / "dead.sock")

    async def work() -> None:
        with contextlib.ExitStack() as open_still:
            crowded = open_still.enter_context(socket.socket(socket.AF_UNIX))
            crowded.bind(full)
            crowded.listen(0)
            for _ in range(2):
                waiting = open_still.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect_ex(full)
            with socket.socket(socket.AF_UNIX) as killed:
                killed.bind(dead)
            async with listening() as (made, port):
                for count, path in enumerate((full, dead, str(tmp_path / "none.sock")), 1):
                    await connect("127.0.0.1", port, Witness, 5, path)
                    await eventually(partial(_has, made, count), f"{path} is passed over")

    run(new_loop, work())


def _has(made: list[Witness], count: int) -> bool:
    return len(made) == count


def test_a_connection_that_nobody_answers_is_given_up(new_loop: NewLoop) -> None:
    async def work() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            port = full.getsockname()[1]
            with contextlib.ExitStack() as others:
                for _ in range(4):  # as many as the kernel takes before it falls silent
                    other = others.enter_context(socket.socket())
                    other.setblocking(False)
                    other.connect_ex(("127.0.0.1", port))
                with pytest.raises(TimeoutError):
                    await connect("127.0.0.1", port, Witness, 0.1)

    run(new_loop, work())


def test_whom_nobody_takes_is_closed_and_the_next_is_taken(new_loop: NewLoop) -> None:
    async def work() -> None:
        [listening_socket] = listen_sockets("127.0.0.1", 0)
        taken: list[socket.socket] = []

        def take(connected: socket.socket) -> None:
            taken.append(connected)
            if len(taken) == 1:
                raise OSError(errno.ENOTCONN, "gone before it was greeted")
            assert not connected.getblocking()

        listener = Listener(listening_socket, take)
        address = listening_socket.getsockname()
        with socket.create_connection(address, PATIENCE_S) as first:
            with socket.create_connection(address, PATIENCE_S):
                await eventually(lambda: len(taken) == 2, "both have come")
            assert first.recv(1) == b""
        taken[1].close()
        listener.close()

    run(new_loop, work())


def test_a_listener_without_descriptors_pauses_and_goes_on(
    new_loop: NewLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "EXHAUSTED_PAUSE_S", 0.01)

    class Exhausted:
        def __init__(self, real: socket.socket) -> None:
            self._real = real
            self.failures = 1

        def accept(self) -> object:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return self._real.accept()

        def close(self) -> None:
            self._real.close()

    async def work() -> None:
        [real] = listen_sockets("127.0.0.1", 0)
        taken: list[socket.socket] = []
        listener = Listener(real, taken.append)
        listener.socket = Exhausted(real)  # type: ignore[assignment]
        with socket.create_connection(real.getsockname(), PATIENCE_S):
            await eventually(lambda: taken, "it is taken after all")
        taken[0].close()
        listener.close()

    run(new_loop, work())
    assert "Too many open files" in caplog.text
