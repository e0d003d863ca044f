"""The client's side: for each request that was sent, an answer comes out."""

from __future__ import annotations

from dataclasses import replace

from corral.errors import CorralError, InvalidRequest, UpstreamError
from corral.formats.http1.chunked import is_plain
from corral.formats.http1.events import Chunks, Event, Limits, ResponseHead
from corral.formats.http1.faults import RESPONSE_HEAD
from corral.formats.http1.known_heads import BODILESS, Known, known_responses
from corral.formats.http1.reader import MessageReader
from corral.formats.http1.states import State, Step, move

# In names of their own, because an enum's members take four times as long to look up (on Python 3.11).
_IDLE, _DONE, _CHUNK_HEAD = State.IDLE, State.DONE, State.CHUNK_HEAD
_NEXT = move(State.DONE, Step.NEXT)
_BEGUN = move(State.IDLE, Step.BEGIN)
_INTERIM = move(State.HEAD, Step.INTERIM)
_CHUNKED = move(State.HEAD, Step.CHUNKED)
_LENGTH = move(State.HEAD, Step.LENGTH)
_NO_BODY = move(State.HEAD, Step.NO_BODY)
_UNTIL_CLOSE = move(State.HEAD, Step.UNTIL_CLOSE)

# 102 and 103 may come more than once; a peer that goes on sending them is refused.
INTERIM_HEADS_MAX = 16


class ResponseReader(MessageReader):
    """The client's side: after each `expect`, ResponseHead, any number of Data and Chunks, END.

    Interim answers (1xx) are swallowed. An end of input before the first byte of an answer is no
    fault of HTTP: `next_event` returns None and the state is CLOSED.

    `content_length` is what the last head said, None for nothing; it may say it where no body follows.
    """

    __slots__ = ("_head_only", "_interim_heads", "_known", "_likely")

    def __init__(self, limits: Limits) -> None:
        # No answer is expected before a request was sent.
        super().__init__(limits, State.DONE)
        self._known = known_responses(limits)
        self._likely: Known[ResponseHead] | None = None  # what this peer said last
        self._head_only = False
        self._interim_heads = 0

    def expect(self, method: str) -> None:
        """A request with this method was sent. At first, and after each END.

        Raises when the connection holds bytes already: they would be taken for the new answer.
        """
        if self._error is not None:
            raise self._error
        following = _NEXT if self._state is _DONE else move(self._state, Step.NEXT)
        if self._buffer:
            self.next_event()
        self._state = following
        self._head_only = method == "HEAD"
        self._interim_heads = 0

    def passes(self, data: bytes) -> bool:
        """Whether these bytes, which come next, are whole plain chunks and nothing else.

        Then they count as read, and may be passed on as they are: what `feed` and `next_event` would have
        said in more words.
        """
        return self._state is _CHUNK_HEAD and not self._buffer and is_plain(data)

    def whole(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """An answer in words that are known, if it is all of these bytes, which come next.

        Then it counts as read to its END: what `feed` and `next_event` would have said in four steps. None,
        and nothing is read, where the events must be asked.
        """
        if self._state is not _IDLE or self._buffer or self._head_only:
            return None
        recalled = self._known.recall(data, 0, self._likely)
        if recalled is None:
            return None
        known, (head_bytes, length) = recalled
        if not known.ends_by_length or len(data) - head_bytes != length:
            return None
        self._likely, self.content_length = known, length
        self._state = _DONE
        return known.head, data[head_bytes:]

    def _read_idle(self) -> Event | None:
        if not self._buffer:
            return None
        self._state = _BEGUN
        return self._read_head()

    def next_event(self) -> Event | None:
        """The next event, or None. A head in the same words as one before is known at a glance."""
        buffer = self._buffer
        if self._state is _IDLE and type(buffer) is bytes:
            recalled = self._known.recall(buffer, self._at, self._likely)
            if recalled is not None and recalled[0].head.status >= 200:
                self._likely, (head_bytes, length) = recalled
                return self._begin_body(self._likely.head, length, self._at + head_bytes)
        return super().next_event()

    def _read_head(self) -> Event | None:
        end = self._block_end(RESPONSE_HEAD)
        if end is None:
            return None
        head, length = self._known.read(self._solid()[self._at : end + 2])
        if head.status < 200:
            self._consume(end + 2)
            self._state = _INTERIM
            self._check_interim(head.status)
            return self._read_head()
        return self._begin_body(head, length, end + 2)

    def _begin_body(self, head: ResponseHead, length: int | None, end: int) -> ResponseHead:
        self._consume(end)
        self.content_length = length
        if self._head_only or head.status in BODILESS:
            self._state = _NO_BODY
        elif head.chunked:
            self._state = _CHUNKED
        elif length is None:
            head = replace(head, keep_alive=False)
            self._state = _UNTIL_CLOSE
        elif length:
            self._remaining = length
            self._state = _LENGTH
        else:
            self._state = _NO_BODY
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
