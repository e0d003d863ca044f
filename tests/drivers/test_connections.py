"""Connections that are taken and made, on our own loop and on asyncio's."""

from __future__ import annotations

import contextlib
import errno
import socket

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
