"""One client's connection: an asyncio Protocol around one `RequestReader`.

It takes one request at a time, in order; bytes of pipelined requests wait in the reader, and past a
bound the socket is not read. For each request it makes an `Exchange` and steps the handler's coroutine
(see tasks.py). Whatever the handler does, raises or forgets, the client gets one well-formed answer or
a closed connection, never half of one that looks whole.

The client's end of file while an answer is pending means that it is gone: the handler gets `ClientGone`
where it waits, and lets go of what it holds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from corral import errors
from corral.drivers import clock
from corral.drivers.http_server.body_room import BodyRoom
from corral.drivers.http_server.exchange import Exchange
from corral.drivers.http_server.limits import ServerLimits
from corral.drivers.listening import client_address
from corral.drivers.tasks import Bell, Strand
from corral.formats import http1

log = logging.getLogger("corral.http")

# Unread bytes of a body or of pipelined requests that one connection may hold before its socket is
# left alone. TCP then slows the sender down.
UNREAD_MAX_BYTES = 64 * 1024
# What the kernel would not take yet. Above it the source of the bytes is paused, and the next pipelined
# request waits: else a client that never reads would have its answers heaped up here.
UNSENT_MAX_BYTES = 64 * 1024
# How many pipelined requests are answered before other clients have their turn: a burst of a few
# thousand scrapes would keep everybody waiting for seconds.
IN_A_ROW_MAX = 16
# After an early answer the rest of the request is read and dropped for this long: closing a socket with
# unread bytes resets it, and the reset can destroy the answer on its way (RFC 9112, 9.6).
LINGER_S = 2.0
# A deadline that the patrol sets with its next look, a tick too late at most: no request need look at the
# clock for it.
IDLE_FROM_NOW = -math.inf


class ClientGone(asyncio.CancelledError):
    """The client closed its connection before its answer was complete."""


Handler = Callable[[Exchange], Coroutine[Any, Any, None]]
ErrorPage = Callable[[errors.CorralError], tuple[list[tuple[bytes, bytes]], bytes]]


class Server(Protocol):
    """What a connection needs from the server that accepted it."""

    limits: ServerLimits
    handler: Handler
    error_page: ErrorPage
    closing: bool
    date_line: clock.PerSecond[bytes]
    body_room: BodyRoom

    def enter(self, connection: Connection) -> bool: ...
    def admit(self, connection: Connection) -> bool: ...
    def never_refused(self, head: http1.RequestHead, /) -> bool: ...
    def leave(self, connection: Connection) -> None: ...
    def on_refused(self, client: str, error: errors.CorralError) -> None: ...


class Connection(asyncio.Protocol):
    """One client's connection: reads requests in order, runs one handler at a time."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = "-"
        self.reader = http1.RequestReader(server.limits.head)
        self.transport: asyncio.Transport
        self.write_paused = False
        self._exchange: Exchange | None = None
        self._strand: Strand | None = None
        self._body_bell = Bell()
        self._write_bell = Bell()
        self._awaits_body = False
        self._body_bytes = 0  # that count as a large body's
        self._reading = True
        self._eof = False
        self._lingering = False
        self._one_too_many = False
        self._had_request = False
        self._dispatching = False
        self._in_a_row = 0
        self._deadline = math.inf
        self._unsent = 0
        self._unsent_deadline = math.inf

    # From the event loop -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=UNSENT_MAX_BYTES)
        self.client = client_address(transport.get_extra_info("peername"))
        self._deadline = clock.monotonic() + self.server.limits.header_timeout_s
        self._one_too_many = not self.server.enter(self)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        reader = self.reader
        if self._exchange is None and (whole := reader.whole(data)) is not None:
            self._in_a_row = 0
            self._begin(*whole)  # what nearly every request is
            return
        was_idle = reader.idle
        reader.feed(data)
        if self._exchange is None:
            self._next_requests()
            if self._exchange is None and was_idle and not reader.idle:
                self._deadline = clock.monotonic() + self.server.limits.header_timeout_s
        elif self._awaits_body:
            self._body_bell.ring()
        elif self.reader.buffered_bytes > UNREAD_MAX_BYTES:
            self._reading = False
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._eof = True
        self.reader.feed_eof()
        if self._strand is not None:
            self._strand.throw(ClientGone())
        elif self._exchange is None and not self._lingering:
            self._next_requests()
        # An answered request that is held back has others behind it: stay open until they are answered.
        # TLS knows no half-closed connection.
        stays_open = self._exchange is not None and self._strand is None and self.transport.can_write_eof()
        if not stays_open:
            self._close()
        return stays_open

    def connection_lost(self, _error: Exception | None) -> None:
        self.server.leave(self)
        self._eof = True
        if self._strand is not None:
            self._strand.throw(ClientGone())

    def pause_writing(self) -> None:
        self.write_paused = True
        self._expect_progress()
        if self._exchange is not None:
            self._exchange.on_write_paused(True)

    def resume_writing(self) -> None:
        self.write_paused = False
        if not self.transport.is_closing():
            self._unsent_deadline = math.inf
        if self._exchange is not None:
            self._exchange.on_write_paused(False)
        self._write_bell.ring()
        self._go_on()

    # From the exchange -------------------------------------------------------------------------

    async def more_body(self) -> None:
        self._awaits_body = True
        self._deadline = clock.monotonic() + self.server.limits.body_timeout_s
        self._read_on()
        try:
            await self._body_bell
        finally:
            self._awaits_body = False
            self._deadline = math.inf

    def hold_body(self, size: int) -> None:
        """So much of a large body is held from now on, until it is let go of, or its request is over."""
        if size > self._body_bytes:
            self.server.body_room.take(size - self._body_bytes)
            self._body_bytes = size

    def let_go_of_body(self) -> None:
        if self._body_bytes:
            self.server.body_room.give_back(self._body_bytes)
            self._body_bytes = 0

    async def writable(self) -> None:
        while self.write_paused:
            await self._write_bell

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def send_together(self, *pieces: bytes) -> None:
        self.transport.writelines(pieces)

    @property
    def body_max_bytes(self) -> int:
        return self.server.limits.body_max_bytes

    @property
    def closing(self) -> bool:
        return self.server.closing

    def date_line(self) -> bytes:
        return self.server.date_line.at(clock.wall())

    # One request after the other ---------------------------------------------------------------

    def _next_requests(self) -> None:
        """Start every request that is whole in the reader, as long as each is answered at once."""
        if self._dispatching:
            return  # a handler ended inside its first step: the loop below goes on with the next
        self._dispatching = True
        self._in_a_row = 0
        try:
            while self._exchange is None and not self._lingering and not self.transport.is_closing():
                head = self.reader.next_event()
                if head is None:
                    break
                if type(head) is http1.RequestHead:
                    self._begin(head)
        except errors.CorralError as error:
            self._refuse(error)
        finally:
            self._dispatching = False
        if self._exchange is None:
            if self._eof:
                self._close()
            else:
                self._read_on()

    def _begin(self, head: http1.RequestHead, body: bytes | None = None) -> None:
        self._deadline = math.inf
        self._had_request = True
        self._in_a_row += 1
        exchange = self._exchange = Exchange(self, head, body)
        if self._one_too_many and self._is_turned_away(exchange):
            self._ended(self._overfull())
            return
        if exchange.body_done and body is None:
            self.reader.next_event()  # the END that follows a head without a body
        self._strand = Strand(self.server.handler(exchange), self._ended)
        self._strand.step()

    def _is_turned_away(self, exchange: Exchange) -> bool:
        self._one_too_many = not self.server.admit(self)
        if self._one_too_many:
            exchange.close_after()
        return self._one_too_many and not self.server.never_refused(exchange.head)

    def _overfull(self) -> errors.CorralError:
        error = errors.TooManyConnections(
            f"{self.server.limits.connections_max} connections are open already. Try again in a moment.",
            retry_after_s=1,
        )
        self.server.on_refused(self.client, error)
        return error

    def _ended(self, error: BaseException | None) -> None:
        """The handler is through. Make the wire agree with that, and go on."""
        self._strand = None
        self.let_go_of_body()
        exchange = self._exchange
        assert exchange is not None
        # What would be raised knows the handler's data, and those know the exchange: without this a request
        # would be a circle, which goes only when the garbage collector comes by.
        exchange.expiry_error = None
        if (error is not None or not exchange.status) and not isinstance(error, ClientGone):
            self._answer_failure(exchange, error)
        if not exchange.finished:
            exchange.break_off()
        if exchange.closes or not (exchange.body_done or self._skip_body()):
            self._exchange = None
            self._linger(wait=not exchange.body_done)
            return
        if self._in_a_row >= IN_A_ROW_MAX:
            asyncio.get_running_loop().call_soon(self._go_on)
        elif not self.write_paused:
            self._await_next()

    def _skip_body(self) -> bool:
        """Drop a body that nobody read: all of it is here, or the exchange would close. Whether it was."""
        while (event := self.reader.next_event()) is not None:
            if event is http1.END:
                return True
        return False

    def _go_on(self) -> None:
        """Come to the next request if the last one is answered, and its answer is on its way."""
        if self._exchange is not None and self._strand is None and not self.write_paused:
            self._await_next()

    def _answer_failure(self, exchange: Exchange, error: BaseException | None) -> None:
        if not isinstance(error, errors.CorralError):
            log.error("%s %s failed", exchange.head.method, exchange.head.path, exc_info=error)
            error = errors.CorralError("Corral failed on this request. Its log says why.")
        if not exchange.started:
            headers, body = self.server.error_page(error)
            exchange.respond(error.status, headers, body)

    def _await_next(self) -> None:
        self._exchange = None
        reader = self.reader
        reader.start_next()
        idle = reader.idle
        self._deadline = IDLE_FROM_NOW if idle else clock.monotonic() + self.server.limits.header_timeout_s
        if self.server.closing and idle:
            self._linger(wait=False)
        elif not self._dispatching:
            if self._reading and idle and not self._eof:
                return  # the usual case: the next request is still to come
            self._next_requests()

    def _refuse(self, error: errors.CorralError) -> None:
        """Answer what is no HTTP request, and close: nothing after it can be trusted (RFC 9112, 9.6)."""
        headers, body = self.server.error_page(error)
        own = [(b"connection", b"close"), (b"content-length", b"%d" % len(body))]
        self.server.on_refused(self.client, error)
        self.transport.write(http1.response_head(error.status, [*own, *headers], self.date_line()) + body)
        self._linger(wait=True)

    def _linger(self, wait: bool) -> None:
        """Close, letting the last answer arrive first."""
        self._lingering = True
        if not wait or self._eof or self.transport.is_closing():
            self._close()
            return
        self._deadline = clock.monotonic() + LINGER_S
        self._read_on()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _close(self) -> None:
        """Close behind the last byte. A client that does not take it is waited for no longer than any."""
        self._lingering = True  # whatever it sends now comes too late
        if not self.transport.is_closing():  # asyncio's transport for TLS does not bear it twice
            self._expect_progress()
            self.transport.close()

    def _expect_progress(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._unsent_deadline = clock.monotonic() + self.server.limits.write_timeout_s

    def _read_on(self) -> None:
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()

    # From the patrol and the server ------------------------------------------------------------

    def check(self, now: float) -> None:
        exchange = self._exchange
        if now >= self._unsent_deadline:
            unsent = self.transport.get_write_buffer_size()
            if unsent >= self._unsent:
                self.transport.abort()
                return
            self._unsent, self._unsent_deadline = unsent, now + self.server.limits.write_timeout_s
        if self._deadline == IDLE_FROM_NOW:
            self._deadline = now + self.server.limits.keepalive_timeout_s
            self.reader.forget()
        elif now >= self._deadline:
            self._deadline = math.inf
            self._late()
        elif exchange is not None and now >= exchange.expires_at and self._strand is not None:
            exchange.expires_at = math.inf
            assert exchange.expiry_error is not None
            self._strand.throw(exchange.expiry_error())

    def _late(self) -> None:
        if self._awaits_body and self._strand is not None:
            self._strand.throw(errors.RequestTimeout("The request body stopped arriving. Send it again."))
        elif self._lingering or self.reader.idle:
            self._close()
        else:
            self._refuse(errors.RequestTimeout("The request's header did not arrive in time."))

    @property
    def busy(self) -> bool:
        return self._exchange is not None or self.transport.get_write_buffer_size() > 0

    def close_if_idle(self) -> None:
        """Close between two requests. Where none has begun yet, the first is on its way, and is answered."""
        if self._exchange is None and self._had_request and self.reader.idle and not self._lingering:
            self._linger(wait=False)

    def reset(self) -> None:
        """Close so that the other side sees an error and no end."""
        if self.transport.is_closing():
            return
        # Lingering for no time at all makes the kernel send RST instead of FIN (socket(7)).
        client = self.transport.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def abort(self) -> None:
        self.transport.abort()
