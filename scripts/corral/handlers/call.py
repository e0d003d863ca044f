"""One request on its way through the gate: what is known of it so far, and what is left for the record."""

from __future__ import annotations

import itertools
import re
import uuid
from urllib.parse import parse_qs

from corral.drivers.http_server import Exchange
from corral.formats.priority import NORMAL, Priority
from corral.formats.usage import NOTHING_SAID

# An id that a client may choose: it goes into headers, logs and the engine's requests as it is.
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


# What makes an id has to be new, not hard to guess: chance is asked for once, and then it is counted on.
_ID_OF_THIS_PROCESS = str(uuid.uuid4())[:23]
_counted = itertools.count(uuid.uuid4().int >> 84)


class Call:
    """What the handlers of one request share. Made by the routes, recorded when it is over."""

    __slots__ = (
        "body",
        "ended_at",
        "error_code",
        "exchange",
        "first_byte_at",
        "gone",
        "id_line",
        "is_inference",
        "is_queued",
        "key_id",
        "lines",
        "lost_s",
        "model",
        "priority",
        "queue_wait_s",
        "reached_model",
        "request_id",
        "tokens",
        "waited_on_others_s",
        "wants_stream",
    )

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.request_id = request_id(exchange.head.fields.get(b"x-request-id"))
        self.body = b""  # from when it is here until an engine begins to answer
        self.key_id = "-"
        self.model = ""
        self.is_inference = False
        self.is_queued = False  # it waits for a slot, perhaps for another one
        self.reached_model = False
        self.id_line = b"x-request-id: %b\r\n" % self.request_id.encode()
        # Headers that every answer to this request carries, errors included, as they stand in its head.
        self.lines = self.id_line
        self.wants_stream = False
        self.priority: Priority = NORMAL
        self.queue_wait_s = 0.0
        self.lost_s = 0.0  # with an engine that died
        # For the client with its body and for the engine with its answer.
        self.waited_on_others_s = 0.0
        self.first_byte_at: float | None = None
        self.ended_at = 0.0
        # As the engine reported them.
        self.tokens = NOTHING_SAID
        # Not the error itself: it knows where it was raised, and so this call, in a circle.
        self.error_code: str | None = None
        self.gone = False

    def let_go_of_body(self) -> None:
        """Nobody will ask for it again. A picture has megabytes, and its answer may take minutes."""
        self.body = b""
        self.exchange.let_go_of_body()

    def query(self, name: str) -> str | None:
        """The first value of this name in the query."""
        values = parse_qs(self.exchange.head.query).get(name)
        return values[0] if values else None


def request_id(wished: bytes | None) -> str:
    """The client's own id if it is a sane one, else a new one."""
    if wished is not None and REQUEST_ID.fullmatch(wished):
        return wished.decode("ascii")
    return f"{_ID_OF_THIS_PROCESS}-{next(_counted):012x}"
