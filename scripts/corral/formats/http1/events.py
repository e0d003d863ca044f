"""What the two readers hand out, and the limits that they keep.

Pieces of a body are NamedTuples and not frozen dataclasses because they are made all the time: a frozen
dataclass assigns its fields one by one through `object.__setattr__` and takes about three times as long to
make. A head is made once, for all messages in the same words (see known_heads), and its fields are read
dozens of times, for which a slot takes a third of the time. A body is a run of `Data` and `Chunks`, and
`END` closes every message, also one without a body, so that the caller has one place to finish.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from corral.formats.http1.chunked import strip_framing

# Names are lower-cased and values stripped of the white space around them.
Headers = list[tuple[bytes, bytes]]
Version = tuple[int, int]


class Limits(NamedTuple):
    """How much of a peer's head is read before it is refused. Lines are counted without their CRLF."""

    headers_max: int = 64
    line_max_bytes: int = 8192
    head_max_bytes: int = 65536


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request line and its header fields. Nothing is percent-decoded here.

    Content-Length is not among them: it is what differs from one request to the next while all else is the
    same, so the reader tells it beside the head (`content_length`).
    """

    method: str
    target: str  # as it was sent
    path: str  # begins with "/", or is "*"
    query: str
    version: Version
    headers: Headers
    fields: dict[bytes, bytes]  # repeated fields joined by b", "
    chunked: bool
    keep_alive: bool
    expects_continue: bool
    words: bytes = b""  # the same for all heads that differ in nothing but the length; empty if not known

    def header(self, name: bytes) -> str | None:
        """The value of the field called `name` (lower case), as text."""
        value = self.fields.get(name)
        return None if value is None else value.decode("latin-1")


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A status line and its header fields but Content-Length, as with a request.

    A body with neither a length nor chunks goes on until the connection closes.
    """

    status: int
    reason: bytes
    version: Version
    headers: Headers
    fields: dict[bytes, bytes]
    chunked: bool
    keep_alive: bool
    words: bytes = b""  # the same for all heads that differ in nothing but the length; empty if not known

    def header(self, name: bytes) -> str | None:
        """The value of the field called `name` (lower case), as text."""
        value = self.fields.get(name)
        return None if value is None else value.decode("latin-1")


class Data(NamedTuple):
    """Bytes of a body, without any framing, as soon as they come. Never empty."""

    payload: bytes


class Chunks(NamedTuple):
    """A whole number of plain chunks, framed as they were on the wire: ready to be passed on.

    Plain means without a chunk extension. The last chunk (of size 0) is never among them.
    """

    raw: bytes

    def payload(self) -> bytes:
        """The bytes of the body within."""
        return strip_framing(self.raw)


class End(Enum):
    """The type of `END`. An enum, because an empty tuple would be false."""

    END = "end"


END: Final = End.END

Event = RequestHead | ResponseHead | Data | Chunks | End
