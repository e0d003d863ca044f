"""The listener: accepts connections, counts them, and winds them down."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from socket import socket

from corral import errors
from corral.drivers import clock
from corral.drivers.connections import Listener
from corral.drivers.http_server.connection import Connection, ErrorPage, Handler, ServerLimits
from corral.drivers.listening import BACKLOG
from corral.drivers.patrol import Patrol


class HttpServer:
    """Listens, counts connections, and hands each request to `handler`."""

    def __init__(
        self,
        handler: Handler,
        limits: ServerLimits,
        patrol: Patrol,
        error_page: ErrorPage,
        on_refused: Callable[[str, errors.CorralError], None] = lambda _client, _error: None,
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.error_page = error_page
        self.on_refused = on_refused
        self.date_line = clock.PerSecond(lambda second: b"date: %b\r\n" % clock.http_date(second))
        self.closing = False
        self._patrol = patrol
        self._connections: set[Connection] = set()
        self._listeners: list[Listener | asyncio.Server] = []

    async def listen(self, sockets: list[socket], tls: ssl.SSLContext | None = None) -> None:
        """Take connections from these sockets; with `tls` they speak HTTPS."""
        for each in sockets:
            self._listeners.append(
                Listener(each, lambda: Connection(self)) if tls is None else await self._listen_tls(each, tls)
            )

    async def _listen_tls(self, listening: socket, tls: ssl.SSLContext) -> asyncio.Server:
        """By asyncio's own means: between the socket and HTTP there is a handshake to be made."""
        return await asyncio.get_running_loop().create_server(
            lambda: Connection(self),
            sock=listening,
            # asyncio calls listen() once more, and its own default would make the queue shorter again.
            backlog=BACKLOG,
            ssl=tls,
            # A handshake comes before a request's head, and a goodbye after the last byte of an answer.
            ssl_handshake_timeout=self.limits.header_timeout_s,
            ssl_shutdown_timeout=self.limits.write_timeout_s,
        )

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def busy(self) -> bool:
        """Whether any request is still being answered."""
        return any(connection.busy for connection in self._connections)

    @property
    def overfull(self) -> bool:
        return len(self._connections) > self.limits.connections_max

    def enter(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._patrol.join(connection)

    def leave(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._patrol.leave(connection)

    def wind_down(self) -> None:
        """From now on every answer is its connection's last one; idle connections close at once."""
        self.closing = True
        for connection in tuple(self._connections):
            connection.close_if_idle()

    async def close(self) -> None:
        """Stop listening and cut what is left."""
        for listener in self._listeners:
            listener.close()
        for connection in tuple(self._connections):
            connection.abort()
        self._listeners.clear()
        await asyncio.sleep(0)  # whoever is cut hears of it now, while there still is a log to say so in
