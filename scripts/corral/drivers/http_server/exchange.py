"""One request and its answer, as a handler sees them.

Output is gathered and leaves with the next `flush`, so that a head and the body that is already there
cost one system call. Whole chunks that come from upstream with the framing that this answer has anyway
pass through untouched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from corral import errors
from corral.drivers import clock
from corral.drivers.http_server.body_room import SMALL_BODY_BYTES
from corral.drivers.socket_transport import JOIN_MAX_BYTES
from corral.formats import http1

Headers = Sequence[tuple[bytes, bytes]]

# What is kept of an answer's end, and of its beginning, is read in pieces of about that size.
PIECE_MAX_BYTES = 4096


class Source(Protocol):
    """Where an answer's bytes come from, as far as a slow reader needs to slow it down."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Wire(Protocol):
    """What an exchange needs from the connection that carries it."""

    client: str
    reader: http1.RequestReader
    write_paused: bool

    @property
    def body_max_bytes(self) -> int: ...
    @property
    def closing(self) -> bool: ...
    def date_line(self) -> bytes: ...
    def send(self, data: bytes) -> None: ...
    def send_together(self, *pieces: bytes) -> None: ...
    def reset(self) -> None: ...
    def hold_body(self, size: int) -> None: ...
    def let_go_of_body(self) -> None: ...
    async def more_body(self) -> None: ...
    async def writable(self) -> None: ...


class Exchange:
    """One request and its answer, as the handler sees them."""

    __slots__ = (
        "_before_last",
        "_body",
        "_chunked",
        "_ends_with_connection",
        "_first",
        "_last",
        "_last_is_framed",
        "_last_is_part",
        "_out",
        "_source",
        "_wire",
        "body_done",
        "bytes_sent",
        "client",
        "closes",
        "content_length",
        "expires_at",
        "expiry_error",
        "finished",
        "head",
        "is_event_stream",
        "received_at",
        "status",
    )

    def __init__(self, wire: Wire, head: http1.RequestHead, body: bytes | None = None) -> None:
        """`body`: if the whole of it has come with the head."""
        self.head = head
        self.content_length = content_length = wire.reader.content_length
        self._body = body
        self.client = wire.client
        self.received_at = clock.monotonic()
        self.status = 0
        self.bytes_sent = 0
        self.expires_at = math.inf
        self.expiry_error: Callable[[], errors.CorralError] | None = None
        self._wire = wire
        self._out: list[bytes] = []
        self._chunked = False  # there is a body, and it is sent in chunks
        self.closes = not head.keep_alive
        self._ends_with_connection = False
        self.finished = False
        self.body_done = body is not None or (not content_length and not head.chunked)
        self._source: Source | None = None
        # Of the answer's body: who has written it may want to know how it began and ended.
        self._first = b""
        self._before_last = b""
        self._last = b""
        self._last_is_framed = False
        self._last_is_part = False
        self.is_event_stream = False

    # The request's body ------------------------------------------------------------------------

    def whole_body(self) -> bytes | None:
        """The whole body, if it is here already: once, for it may be large, and whoever asks keeps it.

        Raises PayloadTooLarge, or that there is no room for it.
        """
        length = self.content_length
        if length is not None and length > self._wire.body_max_bytes:
            raise self._too_large(self._wire.body_max_bytes)
        if self.body_done:
            body, self._body = self._body, None
            if body is None and (length or self.head.chunked):
                raise RuntimeError("a request's body is handed over once")
            return body or b""
        if length is not None and length > SMALL_BODY_BYTES:
            self._wire.hold_body(length)
        whole = self._wire.reader.whole_body()
        self.body_done = whole is not None
        return whole

    async def body(self, max_bytes: int | None = None) -> bytes:
        """The whole body. Raises as `whole_body` does, RequestTimeout, or what is wrong with its framing.

        `max_bytes`: if that is less than a body may have at all.
        """
        limit = self._wire.body_max_bytes if max_bytes is None else min(max_bytes, self._wire.body_max_bytes)
        if (self.content_length or 0) > limit:
            raise self._too_large(limit)
        whole = self.whole_body()
        if whole is not None:
            return whole
        parts: list[bytes] = []
        size = 0
        wire = self._wire
        if self.head.expects_continue and wire.reader.buffered_bytes == 0:
            wire.send(http1.CONTINUE)
        while True:
            event = wire.reader.next_event()
            if event is None:
                await wire.more_body()
            elif event is http1.END:
                self.body_done = True
                return parts[0] if len(parts) == 1 else b"".join(parts)
            elif isinstance(event, http1.Data):
                size += len(event.payload)
                if size > limit:
                    raise self._too_large(limit)
                if size > SMALL_BODY_BYTES:
                    wire.hold_body(size)
                parts.append(event.payload)

    def let_go_of_body(self) -> None:
        """Whoever had the body has it no more: there is room for another one."""
        self._wire.let_go_of_body()

    def _too_large(self, limit: int) -> errors.PayloadTooLarge:
        or_raise = "" if limit < self._wire.body_max_bytes else ", or raise MAX_REQUEST_BODY_SIZE"
        return errors.PayloadTooLarge(f"The request body is larger than {limit} bytes. Send less{or_raise}.")

    # The answer --------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether the status is out, so that no other answer can be given any more."""
        return self.status != 0

    def respond(self, status: int, headers: Headers, body: bytes = b"", lines: bytes = b"") -> None:
        """A complete answer in one write. `lines` are more headers, as http1.header_lines gives them."""
        if status >= 200 and status not in (204, 304):
            lines += b"content-length: %d\r\n" % len(body)
        head = self._head(status, headers, lines)
        self.finished = True
        if body and self.head.method != "HEAD":
            self._first = self._last = body
            self.bytes_sent += len(body)
            if len(body) <= JOIN_MAX_BYTES:
                self._wire.send(head + body)
            else:
                self._wire.send_together(head, body)
        else:
            self._wire.send(head)

    def start(
        self, status: int, headers: Headers, content_length: int | None = None, lines: bytes = b""
    ) -> None:
        """Begin an answer whose body follows through `write`. It leaves with the next flush."""
        if status in (204, 304):
            pass  # never a body, so nothing that would frame one (RFC 9110, 8.6)
        elif content_length is not None:
            headers = [*headers, (b"content-length", b"%d" % content_length)]
        elif self.head.version >= (1, 1):
            self._chunked = self.head.method != "HEAD"
            headers = [*headers, (b"transfer-encoding", b"chunked")]
        else:
            # HTTP/1.0 knows an end only by the connection's (RFC 9112, 6.3)
            self.closes = self._ends_with_connection = True
        self._out.append(self._head(status, headers, lines))

    def _head(self, status: int, headers: Headers, lines: bytes) -> bytes:
        if self.status:
            raise RuntimeError("an answer was started twice")
        self.status = status
        lines = self._wire.date_line() + lines
        if self.closes or self._wire.closing or (not self.body_done and self._leaves_body()):
            self.closes = True
            lines += b"connection: close\r\n"
        elif self.head.version < (1, 1):
            lines += b"connection: keep-alive\r\n"
        return http1.response_head(status, headers, lines)

    def _leaves_body(self) -> bool:
        """Whether a part of the request's body is still to come, that nobody is going to read.

        Waiting for it would cost more than a new connection does, and after `Expect: 100-continue`
        it may never be sent (RFC 9110, 10.1.1).
        """
        length = self.content_length
        return length is None or self._wire.reader.buffered_bytes < length

    def write(self, payload: bytes, *, aside: bool = False) -> None:
        """A piece of the body, framed as this answer needs it. `aside`: it is no part of what is answered."""
        if payload and self.head.method != "HEAD":
            if not aside:
                self._note(payload, is_framed=False, is_part=True)
            self.bytes_sent += len(payload)
            self._out.append(http1.chunk(payload) if self._chunked else payload)

    def write_chunks(self, chunks: http1.Chunks) -> None:
        """Whole chunks from upstream: passed on as they are where the framing is the same."""
        if self._chunked:
            self._note(chunks.raw, is_framed=True)
            self.bytes_sent += len(chunks.raw)
            self._out.append(chunks.raw)
        elif self.head.method != "HEAD":
            payload = chunks.payload()
            self._note(payload, is_framed=False)
            self.bytes_sent += len(payload)
            self._out.append(payload)

    def pass_on(self, raw: bytes) -> None:
        """Whole plain chunks as they came, and at once: what nearly every token of a stream is."""
        if self._chunked and not self._out:
            # As `_note` does it, which would take a sixth of the time that a chunk takes in here.
            if not self._first:
                self._first = raw
            self._before_last, self._last = self._last, raw
            self._last_is_framed, self._last_is_part = True, False
            self.bytes_sent += len(raw)
            self._wire.send(raw)
        else:
            self.write_chunks(http1.Chunks(raw))
            self.flush()

    def _note(self, piece: bytes, *, is_framed: bool, is_part: bool = False) -> None:
        """Remember how the body began and ends. Parts that follow each other are one piece, up to a size."""
        if not self._first:
            self._first = piece
        elif is_part and self._last_is_part and len(self._last) < PIECE_MAX_BYTES:
            self._last += piece
            return
        self._before_last, self._last = self._last, piece
        self._last_is_framed, self._last_is_part = is_framed, is_part

    def flush(self) -> None:
        out = self._out
        if out:
            self._wire.send(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def finish(self) -> None:
        """End the body: its terminator, and whatever was not flushed, leave in one write."""
        if self._chunked:
            self._out.append(http1.LAST_CHUNK)
        self.finished = True
        self.flush()

    def close_after(self) -> None:
        """Make this answer the connection's last one."""
        self.closes = True

    def break_off(self) -> None:
        """Send what is there and close without the terminator: the client must see that it is not whole."""
        self.flush()
        self.closes = True
        self.finished = True
        if self._ends_with_connection:
            self._wire.reset()  # an orderly close would be the terminator

    async def drain(self) -> None:
        """Wait until a slow reader has taken enough."""
        self.flush()
        await self._wire.writable()

    @property
    def at_event_boundary(self) -> bool:
        """Whether what was sent of an event stream ends with a whole event."""
        last = http1.Chunks(self._last).payload() if self._last_is_framed else self._last
        return not last or last.endswith((b"\n\n", b"\r\n\r\n"))

    @property
    def first_bytes(self) -> bytes:
        """How the body began, framed or not."""
        return self._first

    @property
    def last_bytes(self) -> bytes:
        """How it ended: its last two pieces, which in a stream are events, framed or not."""
        return self._before_last + self._last

    # Times and flow ----------------------------------------------------------------------------

    def expire(self, at: float, error: Callable[[], errors.CorralError]) -> None:
        """Raise an error in the handler, where it waits, once the clock passes `at`."""
        self.expires_at, self.expiry_error = at, error

    def feed_from(self, source: Source | None) -> None:
        """Let a slow reader slow down `source` from now on (None: nobody)."""
        self._source = source
        if source is not None and self._wire.write_paused:
            source.pause()

    def on_write_paused(self, paused: bool) -> None:
        if self._source is not None:
            if paused:
                self._source.pause()
            else:
                self._source.resume()
