"""A request as handlers get it, on no connection: what is asked and answered can be looked at by value."""

from __future__ import annotations

from corral.drivers.http_server import Exchange
from corral.formats import http1
from corral.handlers.call import Call


class NoWire:
    """What carries an exchange that goes nowhere: keeps what is sent."""

    client = "192.0.2.7"
    write_paused = False
    body_max_bytes = 1000
    closing = False

    def __init__(self) -> None:
        self.reader = http1.RequestReader(http1.Limits())
        self.sent = b""

    def date_line(self) -> bytes:
        return b"date: now\r\n"

    def send(self, data: bytes) -> None:
        self.sent += data

    def send_together(self, *pieces: bytes) -> None:
        self.sent += b"".join(pieces)

    def reset(self) -> None:
        pass

    def hold_body(self, size: int) -> None:
        raise AssertionError("nobody sends as much")

    def let_go_of_body(self) -> None:
        pass

    async def more_body(self) -> None:
        raise AssertionError("nobody sends more")

    async def writable(self) -> None:
        pass


def call_for(sent: bytes) -> tuple[Call, NoWire]:
    """A request as handlers get it, without a connection."""
    wire = NoWire()
    wire.reader.feed(sent)
    head = wire.reader.next_event()
    assert isinstance(head, http1.RequestHead)
    return Call(Exchange(wire, head)), wire
