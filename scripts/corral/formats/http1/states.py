"""Where a reader stands in a message, as a table: state × step → state.

A connection carries messages one after the other, and each is a head, perhaps a body, and nothing
else to mark its end: whoever loses count reads the body of one message as the head of the next, and
that is what request smuggling lives on. So the count is kept in one place that can be read at a
glance. A reader changes its state only by `move`; a pair that the table does not name is a fault of
the program (never of the peer) and raises `IllegalMove`.

    IDLE ── HEAD ─┬─ no body ─────────────────────────────────────┐
                  ├─ LENGTH_BODY ─────────────────────────────────┤
                  ├─ CHUNK_HEAD ⇄ CHUNK_DATA, CHUNK_END; TRAILERS ┼─ COMPLETE ── DONE ── IDLE
                  └─ CLOSE_BODY (answers only) ───────────────────┘

COMPLETE means that every byte of the message was read; DONE, that the caller was told so. Between
DONE and IDLE stands the caller's own decision (`start_next`, `expect`): a pipelined request waits in
the buffer until the one before it has been answered (RFC 9112 9.3.2).

States and steps are IntEnums because an Enum's hash is a Python function and an int's is not. Where a
reader knows the state that it is in, it has asked the table once, when it was loaded.
"""

from __future__ import annotations

from enum import IntEnum, auto


class State(IntEnum):
    """Where the reader stands."""

    IDLE = auto()  # no byte of the next message was seen
    HEAD = auto()  # inside the first line and the header fields
    LENGTH_BODY = auto()  # Content-Length says how much is left
    CHUNK_HEAD = auto()  # before a chunk's size
    CHUNK_DATA = auto()  # inside a chunk
    CHUNK_END = auto()  # before the CRLF that ends a chunk
    TRAILERS = auto()  # after the last chunk's size
    CLOSE_BODY = auto()  # an answer that goes on until the connection closes
    COMPLETE = auto()  # all read; END not yet given out
    DONE = auto()  # END given out
    CLOSED = auto()  # the peer closed between two messages
    ERROR = auto()  # nothing on this connection can be trusted any more


class Step(IntEnum):
    """What can happen to a reader."""

    BEGIN = auto()  # the first byte of a message
    INTERIM = auto()  # an interim answer (1xx); the real head is still to come
    NO_BODY = auto()  # the head is read, and how its body is framed is known: not at all,
    LENGTH = auto()  # by its length,
    CHUNKED = auto()  # by chunks,
    UNTIL_CLOSE = auto()  # or by the end of the connection
    CHUNK_OPENS = auto()
    CHUNK_FULL = auto()
    CHUNK_CLOSES = auto()
    LAST_CHUNK = auto()
    BODY_ENDS = auto()
    TELL = auto()  # END is given out
    NEXT = auto()  # the caller asks for the next message
    EOF = auto()  # the peer has sent all that it will ever send
    FAULT = auto()  # the peer broke the rules


TABLE: dict[State, dict[Step, State]] = {
    State.IDLE: {Step.BEGIN: State.HEAD, Step.EOF: State.CLOSED, Step.FAULT: State.ERROR},
    State.HEAD: {
        Step.INTERIM: State.HEAD,
        Step.NO_BODY: State.COMPLETE,
        Step.LENGTH: State.LENGTH_BODY,
        Step.CHUNKED: State.CHUNK_HEAD,
        Step.UNTIL_CLOSE: State.CLOSE_BODY,
        Step.EOF: State.ERROR,
        Step.FAULT: State.ERROR,
    },
    State.LENGTH_BODY: {
        Step.BODY_ENDS: State.COMPLETE,
        Step.EOF: State.ERROR,
        Step.FAULT: State.ERROR,
    },
    State.CHUNK_HEAD: {
        Step.CHUNK_OPENS: State.CHUNK_DATA,
        Step.LAST_CHUNK: State.TRAILERS,
        Step.EOF: State.ERROR,
        Step.FAULT: State.ERROR,
    },
    State.CHUNK_DATA: {
        Step.CHUNK_FULL: State.CHUNK_END,
        Step.EOF: State.ERROR,
        Step.FAULT: State.ERROR,
    },
    State.CHUNK_END: {
        Step.CHUNK_CLOSES: State.CHUNK_HEAD,
        Step.EOF: State.ERROR,
        Step.FAULT: State.ERROR,
    },
    State.TRAILERS: {
        Step.BODY_ENDS: State.COMPLETE,
        Step.EOF: State.ERROR,
        Step.FAULT: State.ERROR,
    },
    State.CLOSE_BODY: {Step.EOF: State.COMPLETE, Step.FAULT: State.ERROR},
    State.COMPLETE: {Step.TELL: State.DONE},
    # After the end of input a pipelined request may still wait in the buffer, so DONE stays DONE.
    State.DONE: {Step.NEXT: State.IDLE, Step.EOF: State.DONE, Step.FAULT: State.ERROR},
    State.CLOSED: {Step.EOF: State.CLOSED},
    State.ERROR: {},
}


class IllegalMove(RuntimeError):
    """The program asked a reader for something that its state does not allow."""


def move(state: State, step: Step) -> State:
    """The state after `step`."""
    try:
        return TABLE[state][step]
    except KeyError:
        raise IllegalMove(f"{step.name} is not possible in the state {state.name}") from None
