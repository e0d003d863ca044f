"""The HTTP client: kept-alive connections to the llama-servers, one answer at a time on each.

`send` writes a request and returns once the head of its answer is here. The caller then reads the body
whole, or pours it into a sink as it comes. Pouring happens inside the socket's own callback: bytes go
from `data_received` to the client's transport without waking the request's coroutine, which is stepped
again only at the end. A sink that can't keep up pauses this socket, and with it the llama-server.

An answer that is let go before its end closes its connection at once: for llama-server that is the one
signal to stop generating. A kept connection may turn out closed when it is used again; llama-server
closes one after 5 s of idleness and after 100 requests (measured). If not a byte of an answer came, the
request is sent once more on a new connection (RFC 9110, 9.2.2).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from corral import errors
from corral.drivers import clock, tasks
from corral.drivers.connections import connect
from corral.drivers.patrol import Patrol
from corral.formats import http1

IDLE_MAX_PER_ADDRESS = 64
# llama-server gives up an idle connection after 5 s; being first avoids the race.
IDLE_MAX_S = 4.0
CONNECT_TIMEOUT_S = 5.0
UNREAD_MAX_BYTES = 256 * 1024
HEAD_LIMITS = http1.Limits(headers_max=128, line_max_bytes=16 * 1024)


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host  # RFC 3986, 3.2.2
        return f"{host}:{self.port}"


class BackendGone(errors.UpstreamError):
    """The backend closed the connection, or refused it, before a byte of its answer came."""

    # Whether any of the request may have reached it.
    was_sent = True


# Asked what a long silence means; it answers later, by `wait_on` or `give_up`.
OnSilence = Callable[["ClientConnection"], None]


class Sink(Protocol):
    """Where a poured body goes."""

    def write(self, payload: bytes) -> None: ...
    def write_chunks(self, chunks: http1.Chunks) -> None: ...
    def pass_on(self, raw: bytes) -> None:
        """Whole plain chunks, as they are on the wire, at once."""

    def flush(self) -> None: ...


class Answer:
    """The answer to one request: its head is here, its body is on its way."""

    __slots__ = ("_connection", "head")

    def __init__(self, connection: ClientConnection, head: http1.ResponseHead) -> None:
        self.head = head
        self._connection: ClientConnection | None = connection

    async def body(self, limit_bytes: int) -> bytes:
        """The whole body, which must fit the limit."""
        parts: list[bytes] = []
        size = 0
        while self._connection is not None:
            event = await self._connection.next_event()
            if event is http1.END:
                self._done()
                break
            part = event.payload() if isinstance(event, http1.Chunks) else event.payload  # type: ignore[union-attr]
            size += len(part)
            if size > limit_bytes:
                self.close()
                raise errors.UpstreamError(f"The backend's answer is larger than {limit_bytes} bytes.")
            parts.append(part)
        return b"".join(parts)

    async def pour(self, sink: Sink) -> None:
        """Pass the body on as it comes, until its end."""
        if self._connection is not None:
            await self._connection.pour(sink)
            self._done()

    def whole(self) -> bytes | None:
        """The body and its end, if they have come together with the head; then this answer is done."""
        connection = self._connection
        body = None if connection is None else connection.whole_body()
        if body is not None:
            self._done()
        return body

    def pause(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def _done(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.give_back()

    def close(self) -> None:
        """Let go: an incomplete answer's connection is closed, a complete one's was kept. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()


class ClientConnection(asyncio.Protocol):
    """One socket to one backend."""

    def __init__(self, client: HttpClient, address: Address) -> None:
        self.address = address
        self.transport: asyncio.Transport
        self._client = client
        self._reader = http1.ResponseReader(HEAD_LIMITS)
        self._bell = tasks.Bell()
        self._sink: Sink | None = None
        self._error: errors.CorralError | None = None
        self._answering = False
        self._heard = False
        self._keep_alive = False
        self._poured = False
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
        self._client.enter(self)

    def data_received(self, data: bytes) -> None:
        if not self._answering:
            self.abort()  # bytes that no request asked for: this connection can't be trusted
            return
        self._heard = True
        self._suspected = False
        self._deadline = clock.monotonic() + self._silence_s
        sink = self._sink
        if sink is not None:
            if self._reader.passes(data):
                sink.pass_on(data)
            else:
                self._reader.feed(data)
                self._pour_on(sink)
        else:
            self._reader.feed(data)
            if self._reader.buffered_bytes > UNREAD_MAX_BYTES:
                self.pause()
            self._bell.ring()

    def eof_received(self) -> bool:
        if self._answering and self._heard:
            self._reader.feed_eof()
            if self._sink is not None:
                self._pour_on(self._sink)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._client.forget(self)
        if self._answering:
            self._fail(self._lost(error))

    def _lost(self, error: Exception | None) -> errors.CorralError:
        reason = f" ({error})" if error is not None else ""
        if not self._heard:
            return BackendGone(f"The backend at {self.address} closed the connection unanswered{reason}.")
        return errors.UpstreamError(
            f"The backend at {self.address} closed the connection in the middle of its answer{reason}."
        )

    def _fail(self, error: errors.CorralError) -> None:
        if self._error is None:
            self._error = error
        self._bell.ring()

    # One request -------------------------------------------------------------------------------

    async def ask(
        self, method: str, head: bytes, body: bytes, silence_s: float, on_silence: OnSilence | None
    ) -> Answer:
        """Send a request; return when the head of its answer is here."""
        self._heard = False
        if self.transport.is_closing():
            raise self._error or self._lost(None)
        self._answering, self._poured = True, False
        self._silence_s, self._on_silence = silence_s, on_silence
        self._deadline = clock.monotonic() + silence_s
        reader = self._reader
        try:
            reader.expect(method)
            if body:
                self.transport.writelines((head, body))
            else:
                self.transport.write(head)
            while (answer := reader.next_event()) is None:
                if self._error is not None:
                    raise self._error
                if self._paused:
                    self.resume()
                await self._bell
        except BaseException:
            self.abort()
            raise
        assert type(answer) is http1.ResponseHead
        self._keep_alive = answer.keep_alive
        if self._paused:
            self.resume()  # what came together with the head may have been too much to read on
        return Answer(self, answer)

    async def next_event(self) -> http1.Event:
        while True:
            event = self._reader.next_event()
            if event is not None:
                return event
            if self._error is not None:
                raise self._error
            self.resume()
            await self._bell

    def whole_body(self) -> bytes | None:
        return self._reader.whole_body()

    async def pour(self, sink: Sink) -> None:
        self._sink = sink
        try:
            self._pour_on(sink)
            while not self._poured:
                if self._error is not None:
                    raise self._error
                await self._bell
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
                    self._bell.ring()
                    return
        except errors.CorralError as error:
            self._fail(error)
        sink.flush()

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
        self._answering = False
        if not self._keep_alive or self.transport.is_closing() or self._reader.buffered_bytes:
            self.abort()
            return
        if self._paused:
            self.resume()
        self._deadline = clock.monotonic() + IDLE_MAX_S
        self._client.keep(self)

    def abort(self) -> None:
        self._answering = False
        self.transport.abort()

    def cut(self) -> None:
        """Close, and tell whoever waits for an answer, or is about to ask."""
        self._fail(errors.UpstreamError(f"The backend at {self.address} was stopped."))
        self.transport.abort()

    def check(self, now: float) -> None:
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
        if self._suspected:
            self._suspected = False
            self._deadline = clock.monotonic() + self._silence_s

    def give_up(self, error: errors.CorralError) -> None:
        """The silence means that no answer will come. Unless one has begun meanwhile, that is the answer."""
        if self._suspected and self._answering:
            self._suspected = False
            self._fail(error)


class HttpClient:
    """All connections to all backends."""

    def __init__(self, patrol: Patrol) -> None:
        self._patrol = patrol
        self._idle: dict[Address, list[ClientConnection]] = {}
        self._open: dict[Address, set[ClientConnection]] = {}

    async def send(
        self,
        address: Address,
        method: str,
        head: bytes,
        body: bytes = b"",
        *,
        silence_s: float,
        on_silence: OnSilence | None = None,
    ) -> Answer:
        """Send `head` and `body`, a whole request together, and return its answer once its head is here.

        Raises BackendGone if no connection can be had or it closes unanswered, UpstreamError for an
        answer that is not HTTP. After `silence_s` without a byte, and after as long again each time,
        `on_silence` is asked; without one that is an UpstreamTimeout.
        """
        was_sent = False
        if idle := self._idle.get(address):
            try:
                return await idle.pop().ask(method, head, body, silence_s, on_silence)
            except BackendGone:
                was_sent = True  # on a kept connection: it may have been closed long before
        try:
            connection = await self._connect(address)
        except BackendGone as gone:
            gone.was_sent = was_sent
            raise
        return await connection.ask(method, head, body, silence_s, on_silence)

    async def _connect(self, address: Address) -> ClientConnection:
        connection = ClientConnection(self, address)
        try:
            await connect(address.host, address.port, lambda: connection, CONNECT_TIMEOUT_S)
        except OSError as error:
            raise BackendGone(f"No connection to the backend at {address}: {error}.") from error
        return connection

    def enter(self, connection: ClientConnection) -> None:
        self._open.setdefault(connection.address, set()).add(connection)
        self._patrol.join(connection)

    def keep(self, connection: ClientConnection) -> None:
        idle = self._idle.setdefault(connection.address, [])
        if len(idle) < IDLE_MAX_PER_ADDRESS:
            idle.append(connection)
        else:
            connection.abort()

    def forget(self, connection: ClientConnection) -> None:
        self._patrol.leave(connection)
        for group in (self._idle.get(connection.address), self._open.get(connection.address)):
            if group and connection in group:
                group.remove(connection)

    def close(self, address: Address) -> None:
        """Cut every connection to a backend, busy ones too: what a llama-server needs before SIGTERM."""
        self._idle.pop(address, None)
        for connection in self._open.pop(address, set()):
            connection.cut()
