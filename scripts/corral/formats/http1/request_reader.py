"""The server's side: requests come out, one after the other."""

from __future__ import annotations

from corral.errors import CorralError, InvalidRequest
from corral.formats.http1 import grammar
from corral.formats.http1.chunked import strip_framing
from corral.formats.http1.events import Data, Event, Limits
from corral.formats.http1.faults import REQUEST_HEAD
from corral.formats.http1.head import parse_request_head
from corral.formats.http1.reader import MessageReader
from corral.formats.http1.states import State, Step, move

# RFC 9112 2.2: a server SHOULD ignore at least one empty line before a request.
EMPTY_LINES_MAX = 4


class RequestReader(MessageReader):
    """The server's side: RequestHead, any number of Data, END; then, after `start_next`, again."""

    __slots__ = ("_empty_lines",)

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits, State.IDLE)
        self._empty_lines = 0

    def start_next(self) -> None:
        """Lets the next request be read, also one that waits in the buffer. Only after END."""
        self._state = move(self._state, Step.NEXT)

    def _read_idle(self) -> Event | None:
        if not self._buffer or (self._buffer.startswith(b"\r", self._at) and not self._skip_empty_lines()):
            return None
        self._empty_lines = 0
        self._state = move(self._state, Step.BEGIN)
        return None

    def _skip_empty_lines(self) -> bool:
        """Whether anything but empty lines has come. A single CR may be half of one."""
        while self._buffer.startswith(b"\r\n", self._at):
            self._empty_lines += 1
            if self._empty_lines > EMPTY_LINES_MAX:
                raise InvalidRequest(f"More than {EMPTY_LINES_MAX} empty lines come before the request line")
            self._consume(self._at + 2)
        return self._buffer[self._at : self._at + 2] not in (b"", b"\r")

    def _read_head(self) -> Event | None:
        end = self._block_end(REQUEST_HEAD)
        if end is None:
            return None
        head = parse_request_head(self._solid(), self._at, end, self._limits)
        self._consume(end + 2)
        if head.chunked:
            step = Step.CHUNKED
        elif head.content_length:
            self._remaining = head.content_length
            step = Step.LENGTH
        else:
            # RFC 9112 6.3, rule 7: a request that says nothing has no body.
            step = Step.NO_BODY
        self._state = move(self._state, step)
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
