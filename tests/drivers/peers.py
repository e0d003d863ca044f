"""For tests of sockets: a protocol that keeps what it is told, and plain sockets at its other end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from corral.drivers.connections import Listener
from corral.drivers.event_loop import new_event_loop
from corral.drivers.listening import listen_sockets
from corral.drivers.socket_transport import SocketTransport
from tests.waiting import eventually

PATIENCE_S = 10.0
LOOPS = [pytest.param(new_event_loop, id="ours"), pytest.param(asyncio.new_event_loop, id="asyncio's")]
NewLoop = Callable[[], asyncio.AbstractEventLoop]


def run(new_loop: NewLoop, work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(work, PATIENCE_S))


class Witness(asyncio.Protocol):
    """Keeps what it is told, and does as the test says."""

    transport: SocketTransport

    def __init__(self, *, keeps_half_open: bool = False) -> None:
        self.told: list[str] = []
        self.received = b""
        self.error: Exception | None = None
        self._keeps_half_open = keeps_half_open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, SocketTransport)
        self.transport = transport
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.told[-1] != "data":
            self.told.append("data")

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self._keeps_half_open

    def connection_lost(self, error: Exception | None) -> None:
        self.error = error
        self.told.append("lost")

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")


@asynccontextmanager
async def listening(
    make: Callable[[], Witness] = Witness,
) -> AsyncIterator[tuple[list[Witness], int]]:
    made: list[Witness] = []

    def take(connected: socket.socket) -> None:
        made.append(make())
        SocketTransport(asyncio.get_running_loop(), connected, made[-1])

    [listener] = [Listener(each, take) for each in listen_sockets("127.0.0.1", 0)]
    port = listener.socket.getsockname()[1]
    try:
        yield made, port
    finally:
        listener.close()
        for each in made:
            each.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def pair(make: Callable[[], Witness] = Witness) -> AsyncIterator[tuple[Witness, socket.socket]]:
    """One of ours, and a plain socket at the other end of it."""
    async with listening(make) as (made, port):
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as peer:
            await eventually(lambda: made, "it is connected")
            peer.setblocking(False)
            yield made[0], peer


async def read_all(peer: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size and (piece := await loop.sock_recv(peer, 1 << 20)):
        data += piece
    return data
