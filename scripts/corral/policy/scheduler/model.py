"""The scheduler's view of one model: its state, its slots, its queue, what runs, and how fast it is."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from corral.formats.status import READY, ModelState
from corral.policy.placement import Placement
from corral.policy.scheduler.pace import Pace
from corral.policy.scheduler.queue import Queue
from corral.policy.scheduler.switching import Claimant, Resident
from corral.policy.scheduler.ticket import NOTHING, Ticket, Usage, cost


class ModelLimits(NamedTuple):
    """What the scheduler must know of a model beforehand."""

    slots: int
    pinned: bool
    queue_max: int
    load_s_guess: float = 1.0


class QueueStats(NamedTuple):
    """How one model's queue stands, and what has become of all who came."""

    waiting: int
    running: int
    slots: int
    oldest_wait_s: float
    next_wait_s: float  # about how long a request would wait that came now
    arrived: int
    served: int
    refused: int


class ModelView:
    __slots__ = (
        "abandoned",
        "arrived",
        "gave_way_at",
        "name",
        "offered_at",
        "pace",
        "pinned",
        "place_at",
        "placement",
        "queue",
        "queue_max",
        "refused",
        "running",
        "served",
        "since",
        "slots",
        "state",
        "used_at",
    )

    def __init__(self, name: str, limits: ModelLimits, aging_s: float, now: float) -> None:
        self.name = name
        self.slots = limits.slots
        self.pinned = limits.pinned
        self.queue_max = limits.queue_max
        self.pace = Pace(limits.load_s_guess)
        self.queue = Queue(aging_s)
        self.state = ModelState.OFF
        self.since = now  # that it is in this state
        self.placement: Placement | None = None  # where it is, or was last
        self.running: set[Ticket] = set()
        self.abandoned = 0  # of those that run
        self.used_at = now
        self.gave_way_at = -inf  # when it was last sent away for another model
        self.offered_at = -inf  # when its place was last offered, and nobody was worth it
        self.place_at = now  # when the next place in a full queue comes free that is promised to nobody
        self.arrived = self.served = self.refused = 0

    @property
    def has_free_slot(self) -> bool:
        return self.state is READY and len(self.running) < self.slots

    @property
    def is_at_work(self) -> bool:
        """Whether anything runs that somebody waits for."""
        return len(self.running) > self.abandoned

    def at_work(self, before: float) -> int:
        """How many run that somebody waits for, and were let through before that time."""
        return sum(
            not ticket.abandoned and ticket.granted_at is not None and ticket.granted_at <= before
            for ticket in self.running
        )

    @property
    def is_idle(self) -> bool:
        return self.state is READY and not self.is_at_work and not self.queue

    def becomes(self, state: ModelState, now: float) -> None:
        if (self.state, state) == (ModelState.STARTING, ModelState.LOADING):
            self.state = state  # of one load, whose time is measured as a whole
            return
        if state is READY and self.state in (ModelState.STARTING, ModelState.LOADING):
            self.pace.load_s.learn(now - self.since)
        self.state, self.since = state, now

    # Costs -------------------------------------------------------------------------------------

    def estimate(self, ticket: Ticket) -> float:
        """What a request will probably cost its key."""
        if not ticket.wish.prompt_tokens:
            return 0.0  # nothing to read, nothing to write
        usual, most = self.pace.generated_tokens.value, ticket.wish.max_tokens
        return cost(ticket.wish.prompt_tokens, usual if most is None or usual < most else most)

    def finished(self, ticket: Ticket, usage: Usage | None, now: float) -> None:
        """A request is through: its key pays what it has cost, and the model's pace is known better."""
        assert ticket.granted_at is not None
        self.running.discard(ticket)
        self.abandoned -= ticket.abandoned
        self.served += 1
        if ticket.wish.prompt_tokens and usage != NOTHING:  # else it says nothing of how long work takes
            self.pace.service_s.learn(now - ticket.granted_at)
        if usage is not None:
            prompt, generated = usage
            self.queue.settle(ticket, cost(prompt, generated))
            if generated:
                self.pace.generated_tokens.learn(generated)

    # Switching ---------------------------------------------------------------------------------

    def as_resident(self, now: float) -> Resident:
        level, base = self.queue.urgency(now) or (None, None)
        return Resident(self.pace.load_s.value, now - self.since, level, base, self.pace.gap_s(now))

    def as_claimant(self, now: float) -> Claimant | None:
        """None if nobody waits who could be served."""
        urgency, oldest = self.queue.urgency(now), self.queue.oldest()
        if urgency is None or oldest is None:
            # A key that runs as many as it may will run this one too, when its time has come.
            oldest = self.queue.oldest_held()
            if oldest is None:
                return None
            urgency = int(oldest.priority), int(oldest.priority)
        return Claimant(self.pace.load_s.value, now - oldest.arrived_at, *urgency)

    # Forecasts ---------------------------------------------------------------------------------

    @property
    def seconds_per_request(self) -> float:
        """How often a slot comes free while all are in use."""
        return self.pace.service_s.value / self.slots

    def until_ready_s(self, now: float) -> float:
        if self.state is READY:
            return 0.0
        loads = self.state in (ModelState.STARTING, ModelState.LOADING)
        return max(0.0, self.pace.load_s.value - (now - self.since if loads else 0.0))

    def promise_place(self, now: float) -> float:
        """In how many seconds somebody who finds the queue full may try again.

        Each is told a time of its own: if all came back for the one place, all but one would be refused.
        """
        soonest = now + self.until_ready_s(now)
        latest = soonest + self.queue_max * self.seconds_per_request
        self.place_at = min(latest, max(soonest, self.place_at) + self.seconds_per_request)
        return self.place_at - now

    def stats(self, now: float) -> QueueStats:
        oldest = self.queue.oldest()
        waits = bool(self.queue) or not self.has_free_slot
        return QueueStats(
            waiting=len(self.queue),
            running=len(self.running),
            slots=self.slots,
            oldest_wait_s=0.0 if oldest is None else now - oldest.arrived_at,
            next_wait_s=self.wait_s(len(self.queue) + 1, now) if waits else 0.0,
            arrived=self.arrived,
            served=self.served,
            refused=self.refused,
        )

    def wait_s(self, position: int, now: float) -> float:
        """About how long it takes until so many have been let through."""
        return self.until_ready_s(now) + position * self.seconds_per_request
