"""What the bodies of requests may take of the memory, all together.

A limit for one body does not bound what many clients send at a time, and each body is held until an engine
begins to answer it: it may wait in a queue for minutes, and is sent again if an engine dies. So large bodies
share a room. What is announced is taken before it is read; where nothing is announced, as it comes.

It is one room for everybody: whoever announces much and sends slowly holds his part until his request's time
is over. Where a body comes in pieces, these and the whole are there together for a moment, and count once.

Small ones do not count, and pay nothing for it. There can be no more of them than there are connections.
"""

from __future__ import annotations

from corral import errors
from corral.formats.size import amount

SMALL_BODY_BYTES = 64 * 1024
RETRY_AFTER_S = 5.0


class BodyRoom:
    def __init__(self, total_bytes: int) -> None:
        self.free_bytes = total_bytes
        self._total_bytes = total_bytes

    def take(self, size_bytes: int) -> None:
        """Raises TooManyLargeBodies."""
        if size_bytes > self.free_bytes:
            raise errors.TooManyLargeBodies(
                f"Large bodies of other requests hold the {amount(self._total_bytes)} that all may have "
                "together. Try again in a moment.",
                retry_after_s=RETRY_AFTER_S,
            )
        self.free_bytes -= size_bytes

    def give_back(self, size_bytes: int) -> None:
        self.free_bytes += size_bytes
