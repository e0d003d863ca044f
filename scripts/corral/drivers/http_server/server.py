"""The listener: accepts connections, counts them, and winds them down.

Every connection is a descriptor, and a client costs nothing to be one more. So those that are too many are
told so, when they ask something. They, and handshakes that are not through, are the crowd at the door: it has
so many descriptors and no more, lest others be without, an engine's connection first of all. For each that
comes when two thirds of them are taken, the one that has stood there for longest makes way. So whoever asks
at once is heard, even under a flood of connections that ask nothing: a platform's probe, which is answered
and not told to go, first of all.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from functools import partial
from socket import socket

from corral import errors
from corral.drivers import clock
from corral.drivers.connections import ACCEPTS_MAX, Listener
from corral.drivers.http_server.body_room import BodyRoom
from corral.drivers.http_server.connection import Connection, ErrorPage, Handler
from corral.drivers.http_server.limits import ServerLimits
from corral.drivers.patrol import Patrol
from corral.drivers.socket_transport import SocketTransport
from corral.drivers.tasks import Strand
from corral.formats import http1

log = logging.getLogger("corral.connections")

# How many may be at the door; never more than are served, but for three. A third is for as many as one turn
# of the loop brings, since those that make way for them have their descriptors until it is over. The rest is
# two turns': who came with the last is heard in this one, but after the listener, and must still be there.
TOLD_MAX = 2 * ACCEPTS_MAX


class HttpServer:
    """Listens, counts connections, and hands each request to `handler`."""

    def __init__(
        self,
        handler: Handler,
        limits: ServerLimits,
        patrol: Patrol,
        error_page: ErrorPage,
        on_refused: Callable[[str, errors.CorralError], None] = lambda _client, _error: None,
        never_refused: Callable[[http1.RequestHead], bool] = lambda _head: False,
    ) -> None:
        """`never_refused`: what is answered even where there are too many. It must cost nothing."""
        self.handler = handler
        self.limits = limits
        self.error_page = error_page
        self.on_refused = on_refused
        self.never_refused = never_refused
        self.date_line = clock.PerSecond(lambda second: b"date: %b\r\n" % clock.http_date(second))
        self.closing = False
        self.body_room = BodyRoom(limits.bodies_max_bytes)
        self._patrol = patrol
        self._connections: set[Connection] = set()
        self._handshakes: set[Strand] = set()
        # The first one has been there for longest.
        self._crowd: dict[Connection | Strand, None] = {}
        told_max = max(3, min(TOLD_MAX, limits.connections_max))
        self._held_max = limits.connections_max + told_max
        self._a_turn_brings = told_max // 3
        self._crowded_at = self._held_max - self._a_turn_brings
        self._is_crowded = False
        self._listeners: list[Listener] = []

    async def listen(self, sockets: list[socket], tls: ssl.SSLContext | None = None) -> None:
        """Take connections from these sockets; with `tls` they speak HTTPS."""
        begin = self._begin if tls is None else partial(self._shake_hands, tls)
        accepts_max = max(1, min(ACCEPTS_MAX, self._a_turn_brings // len(sockets)))
        self._listeners += [Listener(each, partial(self._take, begin), accepts_max) for each in sockets]

    def _take(self, begin: Callable[[socket], None], connected: socket) -> None:
        if self.held >= self._held_max:
            connected.close()
            return
        if self.held >= self._crowded_at:
            self._make_way()
        begin(connected)

    def _make_way(self) -> None:
        if not self._is_crowded:
            self._is_crowded = True
            log.warning(
                "%d connections are open: for each that comes one that has asked nothing is closed", self.held
            )
        if (first := next(iter(self._crowd), None)) is not None:
            del self._crowd[first]
            if isinstance(first, Strand):
                first.throw(asyncio.CancelledError())
            else:
                first.abort()

    def _begin(self, connected: socket) -> None:
        SocketTransport(asyncio.get_running_loop(), connected, Connection(self))

    def _shake_hands(self, tls: ssl.SSLContext, connected: socket) -> None:
        """By asyncio's own means, and counted: who is silent now holds a descriptor like any other."""
        handshake = asyncio.get_running_loop().connect_accepted_socket(
            lambda: Connection(self),
            connected,
            ssl=tls,
            # A handshake comes before a request's head, and a goodbye after the last byte of an answer.
            ssl_handshake_timeout=self.limits.header_timeout_s,
            ssl_shutdown_timeout=self.limits.write_timeout_s,
        )

        def shaken(error: BaseException | None) -> None:
            self._handshakes.discard(strand)
            self._has_left(strand)
            if error is not None and not isinstance(error, OSError | asyncio.CancelledError):
                log.error("a TLS handshake failed: %s", error, exc_info=error)

        strand = Strand(handshake, shaken)
        self._handshakes.add(strand)
        self._crowd[strand] = None
        strand.step()

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def held(self) -> int:
        """Connections, and handshakes that may become one."""
        return len(self._connections) + len(self._handshakes)

    @property
    def busy(self) -> bool:
        """Whether any request is still being answered."""
        return any(connection.busy for connection in self._connections)

    @property
    def _has_room(self) -> bool:
        """Whether all that are here may stay."""
        return len(self._connections) <= self.limits.connections_max

    def enter(self, connection: Connection) -> bool:
        """Take it in. False: at the door only, for it is one too many."""
        self._connections.add(connection)
        self._patrol.join(connection)
        has_room = self._has_room
        if not has_room:
            self._crowd[connection] = None
        return has_room

    def admit(self, connection: Connection) -> bool:
        """Let one in from the door, if there is room for it by now."""
        has_room = self._has_room
        if has_room:
            self._crowd.pop(connection, None)
        return has_room

    def leave(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._patrol.leave(connection)
        self._has_left(connection)

    def _has_left(self, one: Connection | Strand) -> None:
        self._crowd.pop(one, None)
        self._is_crowded = self._is_crowded and self.held > self.limits.connections_max

    def wind_down(self) -> None:
        """From now on every answer is its connection's last one; idle connections close at once."""
        self.closing = True
        for connection in tuple(self._connections):
            connection.close_if_idle()

    async def close(self) -> None:
        """Stop listening and cut what is left."""
        for listener in self._listeners:
            listener.close()
        for handshake in tuple(self._handshakes):
            handshake.throw(asyncio.CancelledError())
        for connection in tuple(self._connections):
            connection.abort()
        self._listeners.clear()
        await asyncio.sleep(0)  # whoever is cut hears of it now, while there still is a log to say so in
