"""The queue of one model: who of all that wait is next.

    class      high before normal before low; a line that waits long rises
    key        within a class, the key with the fewest tokens served there
    arrival    within a key, and between keys that are level

Requests of one key and one priority stand in one `Line`, and only its first can be next. So it is lines
that compete, not requests: a key with 500 waiting has one line like a key with one.

**Fairness.** Each key has a counter of tokens per class (virtual token counters, as in Sheng et al.,
"Fairness in Serving Large Language Models", OSDI 2024). It is charged an estimate when a request is let
through, and settled when the engine has reported. The line of the key with the lowest counter is next. A
key that comes back after a rest is lifted to where those that waited meanwhile have got, so that nobody
can save up the right to be served alone for an hour.

**Aging.** A line rises one class for every `aging_s` that it has waited *for others*: since its last
request was let through, or since its first one came. From the top class it rises once more, to where the
time of arrival alone decides, before every counter: so nobody starves. That a request stands behind
others of its own key does not age it. Otherwise 500 requests of a batch key would, after a minute, go
before everybody who came later, and the classes would mean nothing just when they matter.

Every step costs O(log n) of the number of lines. The heaps hold entries that may be out of date: a line
knows its own valid entry, and others are dropped when they come to the top.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sized
from heapq import heapify, heappop, heappush
from math import inf
from typing import NamedTuple

from corral.formats.priority import Priority
from corral.policy.scheduler.ticket import Ticket

# Above the classes: lines that have waited so long that only their age counts.
AGED = 0
TOP, BOTTOM = int(Priority.HIGH), int(Priority.LOW)
# A key that is not here begins at the lowest counter that is, so that forgetting a key that rests costs
# nobody much. With keys in a file there are far fewer; addresses of clients without a key may be more.
# Those that wait come on top.
COUNTERS_MAX = 4096
# Of entries that are out of date a heap may hold as many as of good ones, and so many more.
STALE_MAX = 64


class Entry(NamedTuple):
    """A line's place in a heap: compared by rank, then by arrival."""

    rank: float
    arrived_at: float
    number: int  # of its first request
    stamp: int  # no two entries share it, so that a comparison ends here
    line: Line


class Line:
    """Requests of one key with one priority, in the order of their arrival."""

    __slots__ = ("base", "entry", "is_held", "key_id", "level", "since", "tickets", "turn")

    def __init__(self, key_id: str, base: int) -> None:
        self.key_id = key_id
        self.base = base  # its class by priority
        self.level = base  # its class by now
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()
        self.since = 0.0  # since when it waits for others
        self.turn = 0  # the stamp of its entry among those that will rise; 0: it won't
        self.entry: Entry | None = None  # its place among those that compete; None: it doesn't
        self.is_held = False  # its key may not run more than it does

    @property
    def first(self) -> Ticket:
        return next(iter(self.tickets))


class Queue:
    def __init__(self, aging_s: float) -> None:
        self._aging_s = aging_s
        self._lines: dict[tuple[str, int], Line] = {}
        self._heaps: tuple[list[Entry], ...] = tuple([] for _ in range(BOTTOM + 1))
        self._rising: list[tuple[float, int, Line]] = []  # (due, stamp, line)
        self._by_age: list[tuple[float, int, int, Line]] = []  # (arrived_at, number, stamp, line)
        self._competing = [0] * (BOTTOM + 1)  # lines that do, by their class by priority
        self._counters: tuple[dict[str, float], ...] = tuple({} for _ in range(BOTTOM + 1))
        # The counter of whom was let through last, in each class: the lowest there was.
        self._floors = [0.0] * (BOTTOM + 1)
        self.size = 0  # how many wait
        self._stamp = 0

    def __len__(self) -> int:
        return self.size

    # Coming and going --------------------------------------------------------------------------

    def add(self, ticket: Ticket, now: float, *, held: bool = False) -> None:
        """A request waits from now on. `held`: its key runs as many as it may."""
        where = _where(ticket)
        line = self._lines.get(where)
        if line is None:
            line = self._lines[where] = Line(*where)
            line.is_held = held
        ticket.waits = True
        line.tickets[ticket] = None
        self.size += 1
        if len(line.tickets) == 1:
            self._lift(line.key_id, line.base)
            self._begin(line, min(now, ticket.arrived_at))
        elif ticket.arrived_at < line.first.arrived_at:
            # It was through already and has lost its engine: it goes on where it was.
            line.tickets.move_to_end(ticket, last=False)
            self._begin(line, min(line.since, ticket.arrived_at))

    def remove(self, ticket: Ticket) -> None:
        """It does not wait any more. Those behind it have waited for others as long as it has."""
        if not ticket.waits:
            return
        line = self._lines[_where(ticket)]
        was_first = line.first is ticket
        self._take_out(line, ticket)
        if was_first and line.tickets:
            self._begin(line, max(line.since, line.first.arrived_at))

    def next(self, now: float) -> Ticket | None:
        """Whose turn it is, if anybody's."""
        if not self.size:
            return None
        self._age(now)
        for heap in self._heaps:
            if (entry := self._top(heap)) is not None:
                return entry.line.first
        return None

    def let_through(self, ticket: Ticket, estimate: float, now: float) -> None:
        """Its turn has come: it leaves the queue, and its key is charged what it will probably cost."""
        line = self._lines[_where(ticket)]
        level = line.level if line.level != AGED else line.base
        self._take_out(line, ticket)
        if line.level != AGED:  # whoever goes by its age may have had more than all others
            self._floors[level] = max(self._floors[level], self._counter(line.key_id, level))
        self.charge(ticket, level, estimate)
        if line.tickets:
            self._begin(line, max(now, line.first.arrived_at))

    def pass_by(self, ticket: Ticket, estimate: float) -> None:
        """Nobody waits and a slot is free: it is charged like everybody else, and never waits."""
        level, floor = int(ticket.priority), self._floors[ticket.priority]
        count = self._counters[level].get(ticket.key_id, floor)
        if count > floor:
            self._floors[level] = count
        else:
            count = floor  # as with `_lift`
        ticket.charged_to, ticket.charged = level, estimate
        self._write(ticket.key_id, level, count + estimate)

    def hold(self, line: Line) -> None:
        """Its key runs as many as it may: until that changes, it does not compete, and does not age."""
        self._retire(line)
        line.is_held = True
        line.turn = 0

    def release(self, line: Line, now: float) -> None:
        if line.is_held:
            line.is_held = False
            self._lift(line.key_id, line.base)
            self._begin(line, max(now, line.first.arrived_at))

    def _take_out(self, line: Line, ticket: Ticket) -> None:
        if line.first is ticket:
            self._retire(line)
        del line.tickets[ticket]
        ticket.waits = False
        self.size -= 1
        if not line.tickets:
            line.turn = 0
            del self._lines[line.key_id, line.base]

    # Charging ----------------------------------------------------------------------------------

    def charge(self, ticket: Ticket, level: int, tokens: float) -> None:
        ticket.charged_to = level
        ticket.charged = tokens
        self._add(ticket.key_id, level, tokens)

    def settle(self, ticket: Ticket, tokens: float) -> None:
        """What it has really cost is known now."""
        correction, ticket.charged = tokens - ticket.charged, tokens
        if correction:
            self._add(ticket.key_id, ticket.charged_to, correction)

    def _add(self, key_id: str, level: int, tokens: float) -> None:
        self._write(key_id, level, self._counter(key_id, level) + tokens)

    def _counter(self, key_id: str, level: int) -> float:
        return self._counters[level].get(key_id, self._floors[level])

    def _write(self, key_id: str, level: int, count: float) -> None:
        counters = self._counters[level]
        counters[key_id] = count
        if len(counters) > COUNTERS_MAX and len(counters) > COUNTERS_MAX + 2 * len(self._lines):
            self._forget(level)
        if not self._lines:
            return
        for base in range(level, BOTTOM + 1):
            line = self._lines.get((key_id, base))
            if line is not None and line.entry is not None and line.level == level:
                self._file(line)

    def _lift(self, key_id: str, level: int) -> None:
        """Who begins to compete in a class starts no lower than the one that was served there last.

        Not for a line that goes on in its class with its next request: what it has had less than others is
        its due.
        """
        floor = self._floors[level]
        self._write(key_id, level, max(self._counters[level].get(key_id, floor), floor))

    def _forget(self, level: int) -> None:
        """Drop the counters of keys that have nothing waiting."""
        waiting = {key_id for key_id, _base in self._lines}
        kept = {key_id: count for key_id, count in self._counters[level].items() if key_id in waiting}
        self._counters[level].clear()
        self._counters[level].update(kept)

    # Order -------------------------------------------------------------------------------------

    def _begin(self, line: Line, since: float) -> None:
        """A line has another first request: it waits for others from then on, in the class it asked for."""
        if line.level != line.base:
            self._lift(line.key_id, line.base)
        line.since, line.level = since, line.base
        if not line.is_held:
            self._enter(line)
            self._note_age(line)

    def _enter(self, line: Line) -> None:
        """Take its place in its class, and note when it rises."""
        if line.level != AGED:
            line.turn = self._next_stamp()
            due = line.since + self._aging_s * (line.base - line.level + 1)
            heappush(self._rising, (due, line.turn, line))
            if self._is_stale(self._rising):
                self._rising[:] = [each for each in self._rising if each[2].turn == each[1]]
                heapify(self._rising)
        else:
            line.turn = 0
        self._file(line)

    def _note_age(self, line: Line) -> None:
        heappush(self._by_age, self._age_of(line))
        if self._is_stale(self._by_age):
            lines = self._lines.values()
            self._by_age[:] = [self._age_of(each) for each in lines if each.entry is not None]
            heapify(self._by_age)

    def _age_of(self, line: Line) -> tuple[float, int, int, Line]:
        return line.first.arrived_at, line.first.number, self._next_stamp(), line

    def _file(self, line: Line) -> None:
        heap, first = self._heaps[line.level], line.first
        rank = self._counter(line.key_id, line.level) if line.level != AGED else 0.0
        if line.entry is None:
            self._competing[line.base] += 1
        line.entry = Entry(rank, first.arrived_at, first.number, self._next_stamp(), line)
        heappush(heap, line.entry)
        if self._is_stale(heap):
            heap[:] = [entry for entry in heap if entry.line.entry is entry]
            heapify(heap)

    def _is_stale(self, heap: Sized) -> bool:
        """Whether it is worth clearing a heap of entries that are out of date."""
        return len(heap) > 2 * len(self._lines) + STALE_MAX

    def _retire(self, line: Line) -> None:
        """It does not compete any more."""
        if line.entry is not None:
            line.entry = None
            self._competing[line.base] -= 1

    def _next_stamp(self) -> int:
        self._stamp += 1
        return self._stamp

    def _age(self, now: float) -> None:
        while self._rising and self._rising[0][0] <= now:
            _due, stamp, line = heappop(self._rising)
            if line.turn == stamp:
                line.level -= 1
                if line.level != AGED:
                    self._lift(line.key_id, line.level)
                self._enter(line)

    @staticmethod
    def _top(heap: list[Entry]) -> Entry | None:
        while heap:
            if heap[0].line.entry is heap[0]:
                return heap[0]
            heappop(heap)
        return None

    # What others may know ----------------------------------------------------------------------

    def urgency(self, now: float) -> tuple[int, int] | None:
        """The class of the most urgent line by now, and by priority alone; None if nobody competes."""
        self._age(now)
        level = next((level for level, heap in enumerate(self._heaps) if self._top(heap)), None)
        if level is None:
            return None
        return level, next(base for base, count in enumerate(self._competing) if count)

    def oldest(self) -> Ticket | None:
        """Who has waited longest of those who compete, whether it is next or not."""
        heap = self._by_age
        while heap:
            _arrived_at, number, _stamp, line = heap[0]
            if line.entry is not None and line.first.number == number:
                return line.first
            heappop(heap)
        return None

    def oldest_held(self) -> Ticket | None:
        """Who has waited longest of those whose keys run as many as they may."""
        firsts = [line.first for line in self._lines.values() if line.is_held]
        return min(firsts, key=lambda ticket: (ticket.arrived_at, ticket.number), default=None)

    def in_order(self, now: float) -> list[Ticket]:
        """All who wait, as they would be let through if nobody else came and all cost the same."""
        self._age(now)
        places = []
        for line in self._lines.values():
            rank = (line.entry.rank, line.entry.arrived_at) if line.entry is not None else (inf, inf)
            for turn, ticket in enumerate(line.tickets):
                level = line.base if turn else line.level
                places.append((line.is_held, level, turn, rank, ticket.number, ticket))
        places.sort(key=lambda place: place[:-1])
        return [place[-1] for place in places]

    def tickets(self, chosen: Callable[[Ticket], bool] = lambda _: True) -> list[Ticket]:
        return [ticket for line in self._lines.values() for ticket in line.tickets if chosen(ticket)]

    def lines_of(self, key_id: str) -> list[Line]:
        found = (self._lines.get((key_id, base)) for base in range(TOP, BOTTOM + 1))
        return [line for line in found if line is not None]

    def position(self, ticket: Ticket, now: float) -> int:
        """Which it will be to be let through, if nobody else comes and every request costs the same."""
        mine = self._lines[_where(ticket)]
        self._age(now)
        before = list(mine.tickets).index(ticket)
        level = mine.base if before else mine.level
        return (
            1
            + before
            + sum(_ahead(line, mine, level, before) for line in self._lines.values() if line is not mine)
        )


def _where(ticket: Ticket) -> tuple[str, int]:
    """In which line it belongs."""
    return ticket.key_id, int(ticket.priority)


def _ahead(line: Line, mine: Line, level: int, before: int) -> int:
    """How many of another line go before the request that has so many before it in its own."""
    if line.is_held:
        return 0
    if line.base < level:
        return len(line.tickets)
    first_goes_before = line.level < level or (
        line.level == level and line.entry is not None and mine.entry is not None and line.entry < mine.entry
    )
    if line.base > level:
        return int(first_goes_before)
    # Of one class: they take turns.
    return min(len(line.tickets), before + first_goes_before)
