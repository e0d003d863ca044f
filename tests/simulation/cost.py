"""What a decision costs, in microseconds of processor time, with so many requests waiting."""

from __future__ import annotations

import time

from corral.formats.status import ModelState
from corral.policy.scheduler import Grant, ModelLimits, Scheduler, Terms, Ticket, Usage, Wish
from tests.simulation.world import Herd

DECISIONS = 2000


def crowd(waiting: int, keys: int) -> tuple[Scheduler, Ticket]:
    """A model with one slot, one request that runs, and so many that wait, of so many keys."""
    limits = {"a": ModelLimits(1, pinned=False, queue_max=waiting + DECISIONS)}
    scheduler = Scheduler(limits, 1, Herd(), Terms(30.0, 20.0, 1e9), 0.0)
    scheduler.model_is("a", ModelState.READY, 0.0)
    tickets = [_ticket(number, keys) for number in range(waiting + 1)]
    for ticket in tickets:
        scheduler.arrive(ticket, ticket.arrived_at)
    return scheduler, tickets[0]


def _ticket(number: int, keys: int) -> Ticket:
    return Ticket(Wish("a", "", f"key-{number % keys}", prompt_tokens=100), number * 1e-4, 1e9)


def decision_us(waiting: int, keys: int) -> float:
    """One request comes, one is over, the next is let through: a third of what that takes."""
    scheduler, running = crowd(waiting, keys)
    now = 10.0
    began_at = time.process_time()
    for number in range(DECISIONS):
        now += 0.01
        newcomer = _ticket(number, keys)
        newcomer.arrived_at = now
        scheduler.arrive(newcomer, now)
        (granted,) = scheduler.depart(running, now, Usage(100, 50))
        assert isinstance(granted, Grant)
        running = granted.ticket
    return (time.process_time() - began_at) / DECISIONS / 3 * 1e6
