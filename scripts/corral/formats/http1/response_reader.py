"""The client's side: for each request that was sent, an answer comes out."""

from __future__ import annotations

from corral.errors import CorralError, InvalidRequest, UpstreamError
from corral.formats.http1.events import Chunks, Event, Limits
from corral.formats.http1.faults import RESPONSE_HEAD
from corral.formats.http1.head import parse_response_head
from corral.formats.http1.reader import MessageReader
from corral.formats.http1.states import State, Step, move

# 102 and 103 may come more than once; a peer that goes on sending them is refused.
INTERIM_HEADS_MAX = 16


class ResponseReader(MessageReader):
    """The client's side: after each `expect`, ResponseHead, any number of Data and Chunks, END.

    Interim answers (1xx) are swallowed. An end of input before the first byte of an answer is no
    fault of HTTP: `next_event` returns None and the state is CLOSED.
    """

    __slots__ = ("_head_only", "_interim_heads")

    def __init__(self, limits: Limits) -> None:
        # No answer is expected before a request was sent.
        super().__init__(limits, State.DONE)
        self._head_only = False
        self._interim_heads = 0

    def expect(self, method: str) -> None:
        """A request with this method was sent. At first, and after each END.

        Raises when the connection holds bytes already: they would be taken for the new answer.
        """
        if self._error is not None:
            raise self._error
        following = move(self._state, Step.NEXT)
        if self._buffer:
            self.next_event()
        self._state = following
        self._head_only = method == "HEAD"
        self._interim_heads = 0

    def _read_idle(self) -> Event | None:
        if self._buffer:
            self._state = move(self._state, Step.BEGIN)
        return None

    def _read_head(self) -> Event | None:
        end = self._block_end(RESPONSE_HEAD)
        if end is None:
            return None
        head = parse_response_head(self._solid(), self._at, end, self._limits)
        self._consume(end + 2)
        if head.status < 200:
            self._state = move(self._state, Step.INTERIM)
            self._check_interim(head.status)
            return self._read_head()
        if self._head_only or head.status in (204, 304):
            # RFC 9112 6.3, rule 1: whatever the fields say, these end with their head.
            step = Step.NO_BODY
        elif head.chunked:
            step = Step.CHUNKED
        elif head.content_length is None:
            head = head._replace(keep_alive=False)
            step = Step.UNTIL_CLOSE
        elif head.content_length:
            self._remaining = head.content_length
            step = Step.LENGTH
        else:
            step = Step.NO_BODY
        self._state = move(self._state, step)
        return head

    def _check_interim(self, status: int) -> None:
        if status == 101:
            raise InvalidRequest("It switches protocols (101), which no request asked for")
        self._interim_heads += 1
        if self._interim_heads > INTERIM_HEADS_MAX:
            raise InvalidRequest(
                f"More than {INTERIM_HEADS_MAX} interim answers (1xx) come before the real one"
            )

    def _read_done(self) -> Event | None:
        if self._buffer:
            raise UpstreamError("The upstream server sent bytes that no request asked for")
        return None

    def _run(self, raw: bytes) -> Event:
        return Chunks(raw)

    def _opens_wrong(self, opening: bytes) -> bool:
        return not b"HTTP/".startswith(opening)

    def _worded(self, error: CorralError) -> CorralError:
        if isinstance(error, UpstreamError):
            return error
        return UpstreamError(f"The upstream server's answer is not valid HTTP/1.1. {error.message}")

    def _cut_short(self) -> CorralError:
        return UpstreamError("The upstream server closed the connection in the middle of its answer")

    _HANDLERS = MessageReader.SHARED_HANDLERS | {
        State.IDLE: _read_idle,
        State.HEAD: _read_head,
        State.DONE: _read_done,
    }
