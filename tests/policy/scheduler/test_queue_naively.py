"""The queue against one with the same rules and no heap, told the same at random."""

from __future__ import annotations

import random
from math import inf

import pytest

from corral.formats.priority import Priority
from corral.policy.scheduler.queue import AGED, Queue
from corral.policy.scheduler.ticket import Ticket, Wish
from tests.policy.scheduler.desk import AGING_S, HIGH, LOW, NORMAL


class NaiveLine:
    def __init__(self, key: str, base: int) -> None:
        self.key, self.base, self.level = key, base, base
        self.tickets: list[Ticket] = []
        self.since = 0.0
        self.due, self.turn = inf, 0  # who is due at the same moment rises in the order of the turns
        self.held = False


class Naive:
    """The same rules without a heap: whoever is next is looked for among all."""

    def __init__(self) -> None:
        self.lines: list[NaiveLine] = []
        self.counters: dict[tuple[int, str], float] = {}
        self.floors = dict.fromkeys((HIGH, NORMAL, LOW), 0.0)
        self.turns = 0

    def line_of(self, key: str, base: int) -> NaiveLine | None:
        return next((line for line in self.lines if (line.key, line.base) == (key, base)), None)

    def competing(self) -> list[NaiveLine]:
        return [line for line in self.lines if not line.held]

    def lift(self, key: str, level: int) -> None:
        if level != AGED:
            floor = self.floors[Priority(level)]
            self.counters[level, key] = max(self.counters.get((level, key), floor), floor)

    def begin(self, line: NaiveLine, since: float, *, was_here: bool) -> None:
        """`was_here`: it competed in this class until now."""
        if not was_here:
            self.lift(line.key, line.base)
        line.since, line.level = since, line.base
        self.rises_next(line, inf if line.held else since + AGING_S)

    def rises_next(self, line: NaiveLine, due: float) -> None:
        self.turns += 1
        line.due, line.turn = due, self.turns

    def age(self, now: float) -> None:
        while due := [line for line in self.lines if line.due <= now]:
            line = min(due, key=lambda line: (line.due, line.turn))
            line.level -= 1
            self.lift(line.key, line.level)
            lasts = line.since + AGING_S * (line.base - line.level + 1)
            self.rises_next(line, inf if line.level == AGED else lasts)

    def add(self, ticket: Ticket, now: float, held: bool) -> None:
        line = self.line_of(ticket.key_id, ticket.priority)
        if line is None:
            line = NaiveLine(ticket.key_id, ticket.priority)
            line.held = held
            self.lines.append(line)
            line.tickets.append(ticket)
            self.begin(line, min(now, ticket.arrived_at), was_here=False)
        elif ticket.arrived_at < line.tickets[0].arrived_at:
            line.tickets.insert(0, ticket)
            self.begin(line, min(line.since, ticket.arrived_at), was_here=line.level == line.base)
        else:
            line.tickets.append(ticket)

    def out(self, ticket: Ticket) -> tuple[NaiveLine, bool]:
        line = self.line_of(ticket.key_id, ticket.priority)
        assert line is not None
        was_first = line.tickets[0] is ticket
        line.tickets.remove(ticket)
        if not line.tickets:
            self.lines.remove(line)
        return line, was_first and bool(line.tickets)

    def remove(self, ticket: Ticket) -> None:
        line, again = self.out(ticket)
        if again:
            since = max(line.since, line.tickets[0].arrived_at)
            self.begin(line, since, was_here=line.level == line.base)

    def order(self, line: NaiveLine) -> tuple[float, ...]:
        rank = 0.0 if line.level == AGED else self.counters[line.level, line.key]
        return (line.level, rank, line.tickets[0].arrived_at, line.tickets[0].number)

    def next(self, now: float) -> Ticket | None:
        self.age(now)
        line = min(self.competing(), key=self.order, default=None)
        return None if line is None else line.tickets[0]

    def let_through(self, ticket: Ticket, cost: float, now: float) -> None:
        line, again = self.out(ticket)
        level = line.level or line.base
        was_here = line.level == line.base
        if line.level != AGED:
            self.floors[Priority(level)] = max(self.floors[Priority(level)], self.counters[level, line.key])
        self.counters[level, line.key] += cost
        if again:
            self.begin(line, max(now, line.tickets[0].arrived_at), was_here=was_here)

    def settle(self, ticket: Ticket, correction: float) -> None:
        self.counters[ticket.charged_to, ticket.key_id] += correction

    def hold(self, key: str) -> None:
        for line in self.lines:
            if line.key == key:
                line.held, line.due = True, inf

    def release(self, key: str, now: float) -> None:
        for base in (HIGH, NORMAL, LOW):
            line = self.line_of(key, base)
            if line is not None and line.held:
                self.lift(key, line.base)
                line.held = False
                self.begin(line, max(now, line.tickets[0].arrived_at), was_here=True)

    def urgency(self, now: float) -> tuple[int, int] | None:
        self.age(now)
        lines = self.competing()
        return (min(line.level for line in lines), min(line.base for line in lines)) if lines else None

    def oldest(self) -> Ticket | None:
        firsts = [line.tickets[0] for line in self.competing()]
        return min(firsts, key=lambda ticket: (ticket.arrived_at, ticket.number), default=None)


class Match:
    """Both queues are told the same, at random, and asked the same."""

    def __init__(self, seed: int) -> None:
        self.luck = random.Random(seed)
        self.queue, self.naive = Queue(AGING_S), Naive()
        self.keys = [f"key{number}" for number in range(self.luck.randint(1, 8))]
        self.held: set[str] = set()
        self.waiting: list[Ticket] = []
        self.served: list[Ticket] = []
        self.now = 0.0
        self.pace_s = self.luck.choice((0.1, 3.0, 20.0))
        self.number = 0

    def comes(self) -> None:
        self.number += 1
        key, priority = self.luck.choice(self.keys), self.luck.choice((HIGH, NORMAL, LOW))
        arrived_at = self.now
        if self.served and self.luck.random() < 0.05:  # it comes back
            lost = self.luck.choice(self.served)
            key, priority, arrived_at = lost.key_id, lost.priority, lost.arrived_at
        ticket = Ticket(Wish("m", str(self.number), key_id=key, priority=priority), arrived_at, inf)
        ticket.number = self.number
        self.waiting.append(ticket)
        self.queue.add(ticket, self.now, held=key in self.held)
        self.naive.add(ticket, self.now, key in self.held)

    def goes(self) -> None:
        if self.waiting:
            ticket = self.waiting.pop(self.luck.randrange(len(self.waiting)))
            self.queue.remove(ticket)
            self.naive.remove(ticket)

    def is_served(self) -> None:
        ticket = self.queue.next(self.now)
        assert ticket is self.naive.next(self.now)
        if ticket is None:
            return
        cost = float(self.luck.choice((1, 10, 500)))
        self.waiting.remove(ticket)
        self.served.append(ticket)
        self.naive.let_through(ticket, cost, self.now)
        self.queue.let_through(ticket, cost, self.now)

    def is_settled(self) -> None:
        if self.served:
            ticket = self.served.pop(self.luck.randrange(len(self.served)))
            cost = float(self.luck.choice((1, 10, 500)))
            self.naive.settle(ticket, cost - ticket.charged)
            self.queue.settle(ticket, cost)

    def is_held(self) -> None:
        key = self.luck.choice(self.keys)
        if key in self.held:
            self.held.discard(key)
            self.naive.release(key, self.now)
            for line in self.queue.lines_of(key):
                self.queue.release(line, self.now)
        else:
            self.held.add(key)
            self.naive.hold(key)
            for line in self.queue.lines_of(key):
                self.queue.hold(line)

    def step(self) -> None:
        self.now += self.luck.random() * self.pace_s
        self.luck.choice((self.comes, self.comes, self.goes, self.is_served, self.is_settled, self.is_held))()
        assert self.queue.next(self.now) is self.naive.next(self.now)
        assert self.queue.urgency(self.now) == self.naive.urgency(self.now)
        assert self.queue.oldest() is self.naive.oldest()
        assert len(self.queue) == len(self.waiting)
        assert set(self.queue.tickets()) == set(self.waiting)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_the_same_one_is_next_as_by_looking_at_all(seed: int) -> None:
    match = Match(seed)
    for _ in range(300):
        match.step()
    for key in tuple(match.held):
        match.naive.release(key, match.now)
        for line in match.queue.lines_of(key):
            match.queue.release(line, match.now)
    while match.waiting:
        match.is_served()
    assert match.queue.next(match.now) is None
