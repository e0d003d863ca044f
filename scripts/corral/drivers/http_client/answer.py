"""The answer to one request, as whoever asked sees it, and where its body may be poured."""

from __future__ import annotations

from typing import Protocol

from corral import errors
from corral.formats import http1


class Carrier(Protocol):
    """What an answer needs from the connection on which it comes."""

    @property
    def content_length(self) -> int | None: ...
    async def next_event(self) -> http1.Event: ...
    async def pour(self, sink: Sink) -> None: ...
    def whole_body(self) -> bytes | None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def give_back(self) -> None: ...
    def abort(self) -> None: ...


class Sink(Protocol):
    """Where a poured body goes."""

    def write(self, payload: bytes) -> None: ...
    def write_chunks(self, chunks: http1.Chunks) -> None: ...
    def pass_on(self, raw: bytes) -> None:
        """Whole plain chunks, as they are on the wire, at once."""

    def flush(self) -> None: ...


class Answer:
    """The answer to one request: its head is here, its body is on its way."""

    __slots__ = ("_body", "_connection", "head")

    def __init__(
        self, head: http1.ResponseHead, connection: Carrier | None, body: bytes | None = None
    ) -> None:
        """`body`, and no connection, if all of it has come."""
        self.head = head
        self._body = body
        self._connection = connection

    @property
    def content_length(self) -> int | None:
        """What its head says of a body that is still to be taken, or that there is none, as after HEAD."""
        return self._connection.content_length if self._connection is not None else len(self._body or b"")

    async def body(self, limit_bytes: int) -> bytes:
        """The whole body, which must fit the limit."""
        parts: list[bytes] = []
        size = 0
        while (part := await self._next_part()) is not None:
            size += len(part)
            if size > limit_bytes:
                self.close()
                raise errors.UpstreamError(f"The backend's answer is larger than {limit_bytes} bytes.")
            parts.append(part)
        return b"".join(parts)

    async def _next_part(self) -> bytes | None:
        if self._connection is None:
            part, self._body = self._body, None
            return part
        event = await self._connection.next_event()
        if event is http1.END:
            self._done()
            return None
        return event.payload() if isinstance(event, http1.Chunks) else event.payload  # type: ignore[union-attr]

    async def pour(self, sink: Sink) -> None:
        """Pass the body on as it comes, until its end."""
        if self._connection is not None:
            await self._connection.pour(sink)
            self._done()
        elif self._body is not None:
            sink.write(self._body)

    def whole(self) -> bytes | None:
        """The body, if it and its end have come together with the head; then this answer is done."""
        if self._connection is None:
            return self._body
        body = self._connection.whole_body()
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
