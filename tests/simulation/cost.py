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


def departure_us(claimed: int) -> float:
    """A request comes and is over, 500 times a second, while others wait for so many models that are off."""
    others = [f"other-{number}" for number in range(claimed)]
    limits = {name: ModelLimits(1, pinned=False, queue_max=1, load_s_guess=5.0) for name in ("a", *others)}
    scheduler = Scheduler(limits, 1, Herd(), Terms(30.0, 20.0, 1e9), 0.0)
    scheduler.model_is("a", ModelState.READY, 0.0)
    spent_s, now = 0.0, 0.0
    for number in range(DECISIONS):
        now += 0.002
        ticket = Ticket(Wish("a", "", prompt_tokens=100), now, 1e9)
        scheduler.arrive(ticket, now)
        if number == DECISIONS // 2:
            # In use by now, and worth its place to those who have not waited long.
            for name in others:
                assert scheduler.arrive(Ticket(Wish(name, ""), now, 1e9), now) == []
        began_at = time.process_time()
        assert scheduler.depart(ticket, now + 0.001, Usage(100, 50)) == []
        spent_s += (time.process_time() - began_at) * (number >= DECISIONS // 2)
    return spent_s / (DECISIONS // 2) * 1e6
