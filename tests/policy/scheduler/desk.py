"""A queue for tests, with its tickets by name."""

from __future__ import annotations

from corral.formats.priority import Priority
from corral.policy.scheduler.queue import Queue
from corral.policy.scheduler.ticket import Ticket, Wish

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW
AGING_S = 30.0


class Desk:
    """A queue, and tickets by name. Every request costs 100 unless the test says otherwise."""

    def __init__(self) -> None:
        self.queue = Queue(AGING_S)
        self.tickets: dict[str, Ticket] = {}
        self.served: list[str] = []

    def make(self, name: str, now: float, key: str | None = None, priority: Priority = NORMAL) -> Ticket:
        ticket = Ticket(Wish("m", name, key_id=key or name, priority=priority), now, now + 300.0)
        ticket.number = len(self.tickets) + 1
        self.tickets[name] = ticket
        return ticket

    def add(
        self,
        name: str,
        now: float = 0.0,
        key: str | None = None,
        priority: Priority = NORMAL,
        *,
        held: bool = False,
    ) -> Ticket:
        ticket = self.make(name, now, key, priority)
        self.queue.add(ticket, now, held=held)
        return ticket

    def serve(self, now: float = 0.0, cost: float = 100.0) -> str:
        """Let the next one through."""
        ticket = self.queue.next(now)
        assert ticket is not None
        self.queue.let_through(ticket, cost, now)
        self.served.append(ticket.wish.request_id)
        return ticket.wish.request_id

    def serve_all(self, now: float = 0.0, cost: float = 100.0) -> list[str]:
        return [self.serve(now, cost) for _ in range(len(self.queue))]

    def next(self, now: float = 0.0) -> str | None:
        ticket = self.queue.next(now)
        return None if ticket is None else ticket.wish.request_id

    def position(self, name: str, now: float = 0.0) -> int:
        return self.queue.position(self.tickets[name], now)

    def hold(self, key: str) -> None:
        for line in self.queue.lines_of(key):
            self.queue.hold(line)

    def release(self, key: str, now: float) -> None:
        for line in self.queue.lines_of(key):
            self.queue.release(line, now)
