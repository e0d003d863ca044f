"""What both readers share: bytes go in as they come, events come out in order.

    reader.feed(data)
    while (event := reader.next_event()) is not None:
        ...

None means that more bytes are needed, that the message is over and the next one was not yet asked
for, or that the peer closed between two messages (`state` tells which). A fault is raised by
`next_event`, and again by every further call: after it nothing on that connection can be trusted.
RequestReader raises the errors that the client is to be told. ResponseReader raises UpstreamError.

The unread bytes are `_buffer[_at:]`, and the buffer is empty when nothing is unread. As long as one
piece is read before the next one comes, which is the rule, it is the very object that was fed, and
bodies leave it without a copy. Only a piece that comes on top of unread bytes turns it into a
bytearray, which grows in amortised constant time: bytes added to bytes copy everything again for each
piece, and a head that arrives byte by byte would cost the square of its size. For the same reason
`_at` moves instead of the buffer being cut, and no search looks again at what it has seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from corral.errors import CorralError, InvalidRequest
from corral.formats.http1 import grammar
from corral.formats.http1.chunked import EXTENSIONS_MAX_BYTES, chunk_head_fault, plain_run
from corral.formats.http1.events import END, Data, Event, Limits
from corral.formats.http1.faults import TRAILERS, Block, first_fault
from corral.formats.http1.head import check_trailers
from corral.formats.http1.states import State, Step, move

_BETWEEN_MESSAGES = frozenset({State.IDLE, State.DONE, State.CLOSED})

_LENGTH_BODY = State.LENGTH_BODY
_COMPLETE = move(State.LENGTH_BODY, Step.BODY_ENDS)
_BODY_TOLD = move(_COMPLETE, Step.TELL)

# What a reader does in a state: give an event, or None when it moved on or lacks bytes.
Handlers = dict[State, Callable[[Any], Event | None]]


class MessageReader(ABC):
    """What both roles share: the buffer, the way through the states, and the body."""

    __slots__ = (
        "_at",
        "_buffer",
        "_eof",
        "_error",
        "_extension_bytes",
        "_limits",
        "_line_at",
        "_remaining",
        "_searched",
        "_state",
        "content_length",
    )

    _HANDLERS: ClassVar[Handlers]

    def __init__(self, limits: Limits, state: State) -> None:
        self._limits = limits
        self._state = state
        self._buffer: bytes | bytearray = b""
        self._at = 0  # what comes before was read
        self._searched = 0  # what comes before holds no end of a head
        self._line_at = 0  # where the last line that was searched begins
        self.content_length: int | None = None
        self._remaining = 0  # bytes left of a length body or of a chunk
        self._extension_bytes = 0
        self._eof = False
        self._error: CorralError | None = None

    @property
    def state(self) -> State:
        """Where in a message the reader stands."""
        return self._state

    @property
    def idle(self) -> bool:
        """Between two messages, and no byte of the next one was seen."""
        return self._state in _BETWEEN_MESSAGES and not self._buffer

    @property
    def buffered_bytes(self) -> int:
        """How many bytes were fed and not yet read."""
        return len(self._buffer) - self._at

    def feed(self, data: bytes) -> None:
        """Takes bytes as they came. After an error they are dropped."""
        buffer = self._buffer
        if not buffer:
            if self._error is None:
                self._buffer = data
        elif type(buffer) is bytearray:
            buffer += data
        else:
            grown = bytearray(memoryview(buffer)[self._at :])
            grown += data
            self._rebase(grown)

    def feed_eof(self) -> None:
        """The peer will send no more."""
        self._eof = True

    def next_event(self) -> Event | None:
        """The next event, or None. Raises what is wrong, and the same again from then on."""
        if self._error is not None:
            raise self._error
        try:
            while True:
                state = self._state
                event = self._HANDLERS[state](self)
                if event is not None:
                    return event
                if self._state is state and not (self._eof and self._end_of_input()):
                    return None
        except CorralError as error:
            self._state = move(self._state, Step.FAULT)
            self._consume(len(self._buffer))
            self._error = self._worded(error)
            raise self._error from None

    def whole_body(self) -> bytes | None:
        """The rest of this message, if it is a body with a length and has come: what its events would give.

        None, and nothing is read, where the events must be asked.
        """
        at = self._at
        end = at + self._remaining
        buffer = self._buffer
        if self._state is not _LENGTH_BODY or type(buffer) is not bytes or len(buffer) < end:
            return None
        self._remaining = 0
        self._consume(end)
        self._state = _BODY_TOLD
        return buffer[at:end]

    def _end_of_input(self) -> bool:
        """What the end of input means in this state; whether it leads to another."""
        state = move(self._state, Step.EOF)
        if state is State.ERROR:
            raise self._cut_short()
        moved = state is not self._state
        self._state = state
        return moved

    def _worded(self, error: CorralError) -> CorralError:
        """A fault as this role reports it."""
        return error

    @abstractmethod
    def _cut_short(self) -> CorralError:
        """The fault that is an end of input inside a message."""

    # The buffer ---------------------------------------------------------------------------------

    def _consume(self, end: int) -> None:
        """Everything before `end` was read. A buffer read to its end is let go of at once."""
        if end == len(self._buffer):
            self._buffer = b""
            end = 0
        self._at = self._searched = self._line_at = end

    def _rebase(self, unread: bytes | bytearray) -> None:
        """Puts the unread bytes in the buffer's place."""
        self._buffer = unread
        self._searched -= self._at
        self._line_at -= self._at
        self._at = 0

    def _solid(self) -> bytes:
        """The buffer as bytes: for what is known to be all there, since this may copy it once."""
        buffer = self._buffer
        if type(buffer) is not bytes:
            buffer = bytes(memoryview(buffer)[self._at :])
            self._rebase(buffer)
        return buffer

    def _take(self, size_max: int) -> bytes:
        """Up to so many bytes. A slice of a whole bytes object is that object."""
        buffer = self._solid()
        start = self._at
        end = min(start + size_max, len(buffer))
        self._consume(end)
        return buffer[start:end]

    def _block_end(self, block: Block) -> int | None:
        """Where the last line of a block ends, once the empty line behind it has come.

        While it has not, this refuses what no further byte can make right.
        """
        buffer = self._buffer
        found = buffer.find(b"\r\n\r\n", self._searched)
        if found >= 0:
            size = found + 2 - self._at
            if type(buffer) is not bytes:
                self._solid()
            return self._at + size
        limits = self._limits
        if (
            self._long_line_came()
            # One more than the limit, since the last byte may be the first of the empty line.
            or len(buffer) - self._at > limits.head_max_bytes + 1
            or grammar.BARE_LINE_END.search(buffer, self._searched)
            or (self._state is State.HEAD and self._opens_wrong(bytes(buffer[self._at : self._at + 5])))
        ):
            raise first_fault(block, bytes(buffer[self._at :]), limits)
        self._searched = max(self._at, len(buffer) - 3)
        return None

    def _long_line_came(self) -> bool:
        """Whether a line is too long, of those since the last one that had no end."""
        start = self._line_at
        buffer = self._buffer
        line_end = buffer.rfind(b"\n", self._searched)
        if line_end >= 0:
            self._line_at = line_end + 1
        line_max_bytes = self._limits.line_max_bytes
        if len(buffer) - start <= line_max_bytes:
            return False
        lines = bytes(buffer[start:]).removesuffix(b"\r").split(b"\r\n")
        return max(map(len, lines)) > line_max_bytes

    @abstractmethod
    def _opens_wrong(self, opening: bytes) -> bool:
        """Whether a message can't begin with these (up to five) bytes."""

    # The states that both roles share -----------------------------------------------------------

    def _read_nothing(self) -> Event | None:
        return None

    def _read_counted(self) -> Event | None:
        """A body with a length, or the data of a chunk that is passed on in pieces."""
        payload = self._take(self._remaining)
        self._remaining -= len(payload)
        if self._remaining == 0:
            step = Step.BODY_ENDS if self._state is State.LENGTH_BODY else Step.CHUNK_FULL
            self._state = move(self._state, step)
        return Data(payload) if payload else None

    def _read_until_close(self) -> Event | None:
        payload = self._take(len(self._buffer))
        return Data(payload) if payload else None

    def _read_chunk_head(self) -> Event | None:
        if not self._buffer:
            return None
        buffer = self._solid()
        start = self._at
        end = plain_run(buffer, start)
        if end > start:
            self._consume(end)
            return self._run(buffer[start:end])
        head = grammar.CHUNK_HEAD.match(buffer, start)
        if head is not None:
            self._open_chunk(int(head[1], 16), head[2] or b"", head.end())
        elif not grammar.CHUNK_HEAD_BEGUN.fullmatch(buffer, start):
            raise chunk_head_fault(buffer[start : start + 512])
        return None

    @abstractmethod
    def _run(self, raw: bytes) -> Event:
        """The event for a run of whole plain chunks."""

    def _open_chunk(self, size: int, extension: bytes, end: int) -> None:
        self._extension_bytes += len(extension)
        if self._extension_bytes > EXTENSIONS_MAX_BYTES:
            raise InvalidRequest(
                f"The extensions of the body's chunks are longer than {EXTENSIONS_MAX_BYTES} bytes together"
            )
        self._remaining = size
        if size:
            self._consume(end)
            self._state = move(self._state, Step.CHUNK_OPENS)
        else:
            # The CRLF stays: behind it, trailers end at an empty line even where there are none.
            self._consume(end - 2)
            self._extension_bytes = 0
            self._state = move(self._state, Step.LAST_CHUNK)

    def _read_chunk_end(self) -> Event | None:
        seen = bytes(self._buffer[self._at : self._at + 2])
        if seen == b"\r\n":
            self._consume(self._at + 2)
            self._state = move(self._state, Step.CHUNK_CLOSES)
        elif seen not in (b"", b"\r"):
            raise InvalidRequest("The data of a chunk is not followed by CRLF")
        return None

    def _read_trailers(self) -> Event | None:
        end = self._block_end(TRAILERS)
        if end is not None:
            check_trailers(self._solid(), self._at, end, self._limits)
            self._consume(end + 2)
            self._state = move(self._state, Step.BODY_ENDS)
        return None

    def _read_complete(self) -> Event | None:
        self._state = move(self._state, Step.TELL)
        return END

    SHARED_HANDLERS: ClassVar[Handlers] = {
        State.LENGTH_BODY: _read_counted,
        State.CHUNK_HEAD: _read_chunk_head,
        State.CHUNK_DATA: _read_counted,
        State.CHUNK_END: _read_chunk_end,
        State.TRAILERS: _read_trailers,
        State.CLOSE_BODY: _read_until_close,
        State.COMPLETE: _read_complete,
        State.DONE: _read_nothing,
        State.CLOSED: _read_nothing,
    }
