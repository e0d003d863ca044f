"""How the queues stand, for people, for probes and for those who wait. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from corral.drivers import clock
from corral.policy.scheduler import QueueStats, Scheduler, Ticket

# Each costs a look at all the others.
WAITERS_MAX = 100


class Waiter(NamedTuple):
    """A request that waits, and how it stands."""

    ticket: Ticket
    position: int
    waited_s: float
    still_s: float  # about how long it will still wait


class QueueView:
    def __init__(self, scheduler: Scheduler, models: Iterable[str]) -> None:
        self._scheduler = scheduler
        self._models = tuple(models)

    def depth(self, model: str) -> int:
        return self._scheduler.depth(model)

    def running(self, model: str) -> int:
        return self._scheduler.running(model)

    @property
    def active(self) -> int:
        """Requests that hold a slot."""
        return sum(map(self._scheduler.running, self._models))

    def stats(self, model: str) -> QueueStats:
        return self._scheduler.stats(model, clock.monotonic())

    def position(self, ticket: Ticket) -> int:
        """Which one of those it is who wait for its model."""
        return self._scheduler.position(ticket, clock.monotonic())

    def waiters(self, model: str, chosen: Callable[[Ticket], bool]) -> list[Waiter]:
        """Some of those who wait for a model, the next one first; not more than anybody would read."""
        now = clock.monotonic()
        waiters = []
        for ticket in self._scheduler.waiting(model, chosen)[:WAITERS_MAX]:
            position = self._scheduler.position(ticket, now)
            still_s = self._scheduler.wait_s(model, position, now)
            waiters.append(Waiter(ticket, position, now - ticket.arrived_at, still_s))
        return sorted(waiters, key=lambda waiter: waiter.position)
