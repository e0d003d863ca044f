"""A real HttpServer on a real socket, for the tests of the server and the client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar

from corral import errors
from corral.drivers.http_server import Exchange, HttpServer, ServerLimits
from corral.drivers.listening import listen_sockets
from corral.drivers.patrol import Patrol
from corral.formats import http1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE_S = 10.0
LIMITS = ServerLimits(
    head=http1.Limits(),
    body_max_bytes=1_000_000,
    bodies_max_bytes=10_000_000,
    connections_max=100,
    header_timeout_s=10.0,
    body_timeout_s=10.0,
    write_timeout_s=10.0,
    keepalive_timeout_s=10.0,
)


def error_page(error: errors.CorralError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    return [(b"content-type", b"application/json")], json.dumps({"code": error.code}).encode()


@asynccontextmanager
async def serving(
    handler: Callable[[Exchange], Awaitable[None]],
    limits: ServerLimits = LIMITS,
    tick_s: float = 0.01,
    tls: ssl.SSLContext | None = None,
    never_refused: Callable[[http1.RequestHead], bool] = lambda _head: False,
) -> AsyncIterator[tuple[HttpServer, int]]:
    """A server that listens on a free port; gives the server and the port."""
    server = HttpServer(
        handler,  # type: ignore[arg-type]
        limits,
        Patrol(tick_s),
        error_page,
        never_refused=never_refused,
    )
    sockets = listen_sockets("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    await server.listen(sockets, tls)
    try:
        yield server, port
    finally:
        await server.close()
        await RawClient.close_all()


class RawClient:
    """A client that sends exactly the bytes it is told to. Closed together with the server."""

    _open: ClassVar[list[asyncio.StreamWriter]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> RawClient:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        cls._open.append(writer)
        return cls(reader, writer)

    @classmethod
    async def close_all(cls) -> None:
        while cls._open:
            writer = cls._open.pop()
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer with a length or chunks: status, headers, body."""
        head = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.until(b"\r\n"), 16):
                body += (await self.exactly(size + 2))[:-2]
            await self.until(b"\r\n")
        else:
            body = await self.exactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, body

    async def until(self, mark: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(mark), PATIENCE_S)

    async def exactly(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), PATIENCE_S)

    async def rest(self) -> bytes:
        """Everything up to the connection's end."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE_S)

    def close(self) -> None:
        self.writer.close()
