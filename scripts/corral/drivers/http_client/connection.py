"""One kept-alive connection to one backend: an asyncio Protocol around one `ResponseReader`.

Pouring happens inside the socket's own callback: bytes go from `data_received` to the client's transport
without waking the request's coroutine, which is stepped again only at the end. A sink that can't keep up
pauses this socket, and with it the llama-server.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from typing import NamedTuple, Protocol

from corral import errors
from corral.drivers import clock, tasks
from corral.drivers.http_client.answer import Answer, Sink
from corral.drivers.socket_transport import JOIN_MAX_BYTES
from corral.formats import http1

# llama-server gives up an idle connection after 5 s; being first avoids the race.
IDLE_MAX_S = 4.0
UNREAD_MAX_BYTES = 256 * 1024
HEAD_LIMITS = http1.Limits(headers_max=128, line_max_bytes=16 * 1024)
# The state of a connection that a reset has ended, as Linux numbers it (include/net/tcp_states.h).
TCP_CLOSE = 7


class Address(NamedTuple):
    host: str
    port: int
    socket_path: str = ""  # where the same server listens too, if it does

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host  # RFC 3986, 3.2.2
        return f"{host}:{self.port}"


class BackendGone(errors.UpstreamError):
    """The backend closed the connection, or refused it, before a byte of its answer came."""

    # Whether the request may have reached it.
    was_sent = True


# Asked what a long silence means; it answers later, by `wait_on` or `give_up`.
OnSilence = Callable[["ClientConnection"], None]


class Pool(Protocol):
    """Who keeps connections, as one of them sees it."""

    def enter(self, connection: ClientConnection) -> None: ...
    def keep(self, connection: ClientConnection) -> None: ...
    def forget(self, connection: ClientConnection) -> None: ...


class ClientConnection(asyncio.Protocol):
    """One socket to one backend."""

    def __init__(self, pool: Pool, address: Address) -> None:
        self.address = address
        self.transport: asyncio.Transport
        self._pool = pool
        self._reader = http1.ResponseReader(HEAD_LIMITS)
        self.bell = tasks.Bell()
        self._sink: Sink | None = None
        self._error: errors.CorralError | None = None
        self._answering = False
        self._heard = False
        self._counts_anew = False  # how long it has been silent: from the patrol's next look
        self._came_too_late = False  # for the backend to read its request
        self._keep_alive = False
        self._poured = False
        self._whole: tuple[http1.ResponseHead, bytes] | None = None
        self._paused = False
        self._silence_s = math.inf
        self._on_silence: OnSilence | None = None
        self._suspected = False
        self._deadline = math.inf

    # From the event loop -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # Whoever wanted it may have left while it was made. Unless somebody asks, it goes like an idle one.
        self._deadline = clock.monotonic() + IDLE_MAX_S
        self._pool.enter(self)

    def data_received(self, data: bytes) -> None:
        if not self._answering:
            self.abort()  # bytes that no request asked for: this connection can't be trusted
            return
        self._heard = self._counts_anew = True
        sink = self._sink
        if sink is not None:
            if self._reader.passes(data):
                sink.pass_on(data)
            else:
                self._reader.feed(data)
                self._pour_on(sink)
            return
        self._whole = self._reader.whole(data)
        if self._whole is None:
            self._reader.feed(data)
            if self._reader.buffered_bytes > UNREAD_MAX_BYTES:
                self.pause()
        self.bell.ring()

    def eof_received(self) -> bool:
        if self._answering and self._heard:
            self._reader.feed_eof()
            if self._sink is not None:
                self._pour_on(self._sink)
        elif self._answering:
            self._came_too_late = self._was_closed_before()
        return False

    def _was_closed_before(self) -> bool:
        """Whether an end that came unanswered came before the request did.

        What reaches a socket that its process has closed, the kernel answers with a reset; within one
        machine that has come by the time the request is sent. A process that dies over a request has read
        it, and leaves an orderly end. Without a port there is no such state: who is too late has an error.
        """
        if self.transport.get_write_buffer_size():
            return True  # not all of it has left
        ended: socket.socket = self.transport.get_extra_info("socket")
        if ended.family == socket.AF_UNIX or not hasattr(socket, "TCP_INFO"):
            return False
        return ended.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.forget(self)
        if self._answering:
            # What it would not take, or has left unread.
            self._came_too_late |= isinstance(error, (BrokenPipeError, ConnectionResetError))
            self._fail(self._lost(error))

    def _lost(self, error: Exception | None) -> errors.CorralError:
        reason = f" ({error})" if error is not None else ""
        if not self._heard:
            gone = BackendGone(f"The backend at {self.address} closed the connection unanswered{reason}.")
            gone.was_sent = not self._came_too_late
            return gone
        return errors.UpstreamError(
            f"The backend at {self.address} closed the connection in the middle of its answer{reason}."
        )

    def _fail(self, error: errors.CorralError) -> None:
        if self._error is None:
            self._error = error
        self.bell.ring()

    # One request -------------------------------------------------------------------------------

    def ask(
        self, method: str, head: bytes, body: bytes, silence_s: float, on_silence: OnSilence | None
    ) -> None:
        """Send a request."""
        self._heard = False
        if self.transport.is_closing():
            self._came_too_late = True
            raise self._error or self._lost(None)
        self._answering, self._poured, self._whole = True, False, None
        self._silence_s, self._on_silence = silence_s, on_silence
        self._counts_anew = True
        self._reader.expect(method)
        if len(body) <= JOIN_MAX_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))

    def answer(self) -> Answer | None:
        """The answer to it, once its head is here: until then, wait for the bell, and ask again."""
        if self._whole is not None:
            head, body = self._whole
            self._whole = None
            self._keep_alive = head.keep_alive
            self.give_back()
            return Answer(head, None, body)
        answer = self._reader.next_event()
        if answer is None:
            if self._error is not None:
                raise self._error
            if self._paused:
                self.resume()
            return None
        assert type(answer) is http1.ResponseHead
        self._keep_alive = answer.keep_alive
        if self._paused:
            self.resume()  # what came together with the head may have been too much to read on
        return Answer(answer, self)

    @property
    def content_length(self) -> int | None:
        return self._reader.content_length

    async def next_event(self) -> http1.Event:
        while True:
            event = self._reader.next_event()
            if event is not None:
                return event
            if self._error is not None:
                raise self._error
            self.resume()
            await self.bell

    def whole_body(self) -> bytes | None:
        return self._reader.whole_body()

    async def pour(self, sink: Sink) -> None:
        self._sink = sink
        try:
            self._pour_on(sink)
            while not self._poured:
                if self._error is not None:
                    raise self._error
                await self.bell
        finally:
            self._sink = None

    def _pour_on(self, sink: Sink) -> None:
        try:
            while (event := self._reader.next_event()) is not None:
                if type(event) is http1.Chunks:
                    sink.write_chunks(event)
                elif type(event) is http1.Data:
                    sink.write(event.payload)
                else:
                    # The sink's own ending goes out with the last bytes: it flushes when it finishes.
                    self._poured = True
                    self.bell.ring()
                    return
        except errors.CorralError as error:
            self._fail(error)
        sink.flush()

    @property
    def is_held_up(self) -> bool:
        return self._answering and self._paused

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._deadline = clock.monotonic() + self._silence_s
            self.transport.resume_reading()

    def give_back(self) -> None:
        """The answer is complete: keep the connection if both sides want to."""
        # Whoever comes next starts afresh: no silence is asked about.
        self._answering = self._suspected = False
        self._counts_anew = True
        transport = self.transport
        # An answer may come before its request is through, and what is left of that is no request.
        if (
            not self._keep_alive
            or transport.is_closing()
            or self._reader.buffered_bytes
            or transport.get_write_buffer_size()
        ):
            self.abort()
            return
        if self._paused:
            self.resume()
        self._pool.keep(self)

    def abort(self) -> None:
        self._answering = False
        self.transport.abort()

    def cut(self) -> None:
        """Close, and tell whoever waits for an answer, or is about to ask."""
        self._fail(errors.UpstreamError(f"The backend at {self.address} was stopped."))
        self.transport.abort()

    def check(self, now: float) -> None:
        if self._counts_anew:
            # A silence is counted from here, a tick too late at most: no request and no chunk need look at
            # the clock for it.
            self._counts_anew = self._suspected = False
            self._deadline = now + (self._silence_s if self._answering else IDLE_MAX_S)
            return
        if now < self._deadline or self._paused:
            return
        self._deadline = math.inf
        if not self._answering:
            self.transport.close()
        elif self._on_silence is not None:
            self._suspected = True
            self._on_silence(self)
        else:
            self._fail(errors.UpstreamTimeout(f"{self.address} sent nothing for {self._silence_s:g} s."))

    def wait_on(self) -> None:
        """The silence means nothing bad: grant it as much time again."""
        if self._suspected and not self._counts_anew:
            self._suspected = False
            self._deadline = clock.monotonic() + self._silence_s

    def give_up(self, error: errors.CorralError) -> None:
        """The silence means that no answer will come. Unless one has begun meanwhile, that is the answer."""
        if self._suspected and self._answering and not self._counts_anew:
            self._suspected = False
            self._fail(error)
