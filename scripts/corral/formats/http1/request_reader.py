"""The server's side: requests come out, one after the other."""

from __future__ import annotations

from corral.errors import CorralError, InvalidRequest
from corral.formats.http1 import grammar
from corral.formats.http1.chunked import strip_framing
from corral.formats.http1.events import Data, Event, Limits, RequestHead
from corral.formats.http1.faults import REQUEST_HEAD
from corral.formats.http1.known_heads import Known, known_requests
from corral.formats.http1.reader import MessageReader
from corral.formats.http1.states import State, Step, move

# In names of their own, because an enum's members take four times as long to look up (on Python 3.11).
_IDLE, _DONE = State.IDLE, State.DONE
_NEXT = move(State.DONE, Step.NEXT)
_BEGUN = move(State.IDLE, Step.BEGIN)
_CHUNKED = move(State.HEAD, Step.CHUNKED)
_LENGTH = move(State.HEAD, Step.LENGTH)
_NO_BODY = move(State.HEAD, Step.NO_BODY)

# RFC 9112 2.2: a server SHOULD ignore at least one empty line before a request.
EMPTY_LINES_MAX = 4


class RequestReader(MessageReader):
    """The server's side: RequestHead, any number of Data, END; then, after `start_next`, again.

    `content_length` is what the last head said, None for nothing.
    """

    __slots__ = ("_empty_lines", "_known", "_likely")

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits, State.IDLE)
        self._known = known_requests(limits)
        self._likely: Known[RequestHead] | None = None  # what this peer said last
        self._empty_lines = 0

    def start_next(self) -> None:
        """Lets the next request be read, also one that waits in the buffer. Only after END."""
        self._state = _NEXT if self._state is _DONE else move(self._state, Step.NEXT)

    def forget(self) -> None:
        """Whoever is silent for long need not be known at a glance: so much is not kept for each of many."""
        self._likely = None

    def whole(self, data: bytes) -> tuple[RequestHead, bytes] | None:
        """A request in words that are known, if it is all of these bytes, which come next.

        Then it counts as read to its END: what `feed` and `next_event` would have said in four steps. None,
        and nothing is read, where the events must be asked.
        """
        if self._state is not _IDLE or self._buffer:
            return None
        recalled = self._known.recall(data, 0, self._likely)
        if recalled is None:
            return None
        known, (head_bytes, length) = recalled
        if not known.ends_by_length or len(data) - head_bytes != (length or 0):
            return None
        self._likely, self.content_length = known, length
        self._empty_lines = 0
        self._state = _DONE
        return known.head, data[head_bytes:]

    def _read_idle(self) -> Event | None:
        buffer = self._buffer
        if not buffer or (buffer.startswith(b"\r", self._at) and not self._skip_empty_lines()):
            return None
        self._empty_lines = 0
        self._state = _BEGUN
        return self._read_head()

    def _skip_empty_lines(self) -> bool:
        """Whether anything but empty lines has come. A single CR may be half of one."""
        while self._buffer.startswith(b"\r\n", self._at):
            self._empty_lines += 1
            if self._empty_lines > EMPTY_LINES_MAX:
                raise InvalidRequest(f"More than {EMPTY_LINES_MAX} empty lines come before the request line")
            self._consume(self._at + 2)
        return self._buffer[self._at : self._at + 2] not in (b"", b"\r")

    def next_event(self) -> Event | None:
        """The next event, or None. A head in the same words as one before is known at a glance."""
        buffer = self._buffer
        if self._state is _IDLE and type(buffer) is bytes:
            recalled = self._known.recall(buffer, self._at, self._likely)
            if recalled is not None:
                self._likely, (head_bytes, length) = recalled
                self._empty_lines = 0
                return self._begin_body(self._likely.head, length, self._at + head_bytes)
        return super().next_event()

    def _read_head(self) -> Event | None:
        end = self._block_end(REQUEST_HEAD)
        if end is None:
            return None
        head, length = self._known.read(self._solid()[self._at : end + 2])
        return self._begin_body(head, length, end + 2)

    def _begin_body(self, head: RequestHead, length: int | None, end: int) -> RequestHead:
        self._consume(end)
        self.content_length = length
        if head.chunked:
            self._state = _CHUNKED
        elif length:
            self._remaining = length
            self._state = _LENGTH
        else:
            # RFC 9112 6.3, rule 7: a request that says nothing has no body.
            self._state = _NO_BODY
        return head

    def _run(self, raw: bytes) -> Event:
        return Data(strip_framing(raw))

    def _opens_wrong(self, opening: bytes) -> bool:
        return not grammar.TOKEN.match(opening)

    def _cut_short(self) -> CorralError:
        part = "head" if self._state is State.HEAD else "body"
        return InvalidRequest(f"The connection was closed in the middle of the request's {part}")

    _HANDLERS = MessageReader.SHARED_HANDLERS | {
        State.IDLE: _read_idle,
        State.HEAD: _read_head,
    }
