"""Feeds a reader in pieces and puts what comes out into a form that does not depend on the pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from corral.errors import CorralError
from corral.formats.http1 import (
    END,
    Chunks,
    Data,
    Limits,
    RequestHead,
    RequestReader,
    ResponseHead,
    ResponseReader,
)

LIMITS = Limits()


class Message(NamedTuple):
    """One message as the reader told it; `ended` only when END came."""

    head: RequestHead | ResponseHead
    content_length: int | None
    body: bytes
    ended: bool


class Outcome(NamedTuple):
    messages: list[Message]
    state: str
    error: tuple[type[CorralError], str] | None


def pieces(data: bytes, size: int) -> list[bytes]:
    """`data` cut into pieces of `size` bytes."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def every_split(data: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, in threes, and cut once at every place."""
    yield [data]
    yield pieces(data, 1)
    yield pieces(data, 3)
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


def read_requests(feeds: Iterable[bytes], *, eof: bool = False, limits: Limits = LIMITS) -> Outcome:
    """All requests in the feeds; each next one is asked for as soon as one is over."""
    return _read(RequestReader(limits), feeds, None, eof)


def read_answers(
    feeds: Iterable[bytes],
    methods: Sequence[str] = ("GET",),
    *,
    eof: bool = False,
    limits: Limits = LIMITS,
) -> Outcome:
    """The answers to requests with these methods."""
    return _read(ResponseReader(limits), feeds, list(methods), eof)


def _read(
    reader: RequestReader | ResponseReader, feeds: Iterable[bytes], methods: list[str] | None, eof: bool
) -> Outcome:
    messages: list[Message] = []
    if isinstance(reader, ResponseReader) and methods:
        reader.expect(methods.pop(0))
    try:
        for data in feeds:
            reader.feed(data)
            _drain(reader, messages, methods)
        if eof:
            reader.feed_eof()
            _drain(reader, messages, methods)
    except CorralError as error:
        return Outcome(messages, reader.state.name, (type(error), error.message))
    return Outcome(messages, reader.state.name, None)


def _drain(
    reader: RequestReader | ResponseReader, messages: list[Message], methods: list[str] | None
) -> None:
    while (event := reader.next_event()) is not None:
        if isinstance(event, RequestHead | ResponseHead):
            messages.append(Message(event, reader.content_length, b"", False))
        elif isinstance(event, Data):
            assert event.payload
            messages[-1] = messages[-1]._replace(body=messages[-1].body + event.payload)
        elif isinstance(event, Chunks):
            messages[-1] = messages[-1]._replace(body=messages[-1].body + event.payload())
        else:
            assert event is END
            messages[-1] = messages[-1]._replace(ended=True)
            if isinstance(reader, RequestReader):
                reader.start_next()
            elif methods:
                reader.expect(methods.pop(0))
