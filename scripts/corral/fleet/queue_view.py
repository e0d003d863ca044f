"""How the queues stand, for people, for probes and for those who wait. Nothing is decided here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

from corral.drivers import clock
from corral.policy.scheduler import QueueStats, Scheduler, Ticket

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
        places = enumerate(self._scheduler.waiting(model, now), 1)
        shown = itertools.islice(((n, ticket) for n, ticket in places if chosen(ticket)), WAITERS_MAX)
        return [
            Waiter(ticket, position, now - ticket.arrived_at, self._scheduler.wait_s(model, position, now))
            for position, ticket in shown
        ]
