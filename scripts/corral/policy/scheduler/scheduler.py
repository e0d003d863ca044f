"""The scheduler: facts in, actions out.

It holds the queues and a view of each model (its state, its slots, what runs on it). Every method tells
it one fact and returns the actions that follow, in order; it acts on nothing itself, so a test, or a
simulator, drives it with values alone. An action that it returns has happened in its view already: who
carries it out does not report it back, and reports only what comes from elsewhere.

A free slot goes to whomever the model's queue says (`queue`), within what the key may run at a time.
Which models have a place on the machine, `places` says. So nobody waits for ever, nothing that runs is
cut off, and models don't take turns faster than is good for anybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

from corral import errors
from corral.formats.status import READY, ModelState
from corral.policy.lifecycle import RESIDENT
from corral.policy.scheduler.actions import Action, Grant, Outlook, Refuse
from corral.policy.scheduler.model import ModelLimits, ModelView, QueueStats
from corral.policy.scheduler.places import Admission, Places
from corral.policy.scheduler.queue import STALE_MAX
from corral.policy.scheduler.switching import Terms
from corral.policy.scheduler.ticket import Ticket, Usage


class Key:
    """The requests of one key, on all models together."""

    __slots__ = ("limited", "running", "waiting")

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.limited = 0  # of those that wait, how many may not run beside too many others


class Scheduler:
    def __init__(
        self,
        models: Mapping[str, ModelLimits],
        models_max: int,
        admission: Admission,
        terms: Terms,
        now: float,
    ) -> None:
        self._models = {name: ModelView(name, limits, terms.aging_s, now) for name, limits in models.items()}
        self._places = Places(self._models, models_max, admission, terms)
        self._wanted = self._places.wanted
        self._keys: dict[str, Key] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._arrivals = 0
        self._waiting = 0

    # What others may know ----------------------------------------------------------------------

    def depth(self, model: str) -> int:
        return len(self._models[model].queue)

    def running(self, model: str) -> int:
        return len(self._models[model].running)

    def at_work(self, model: str, before: float) -> int:
        """How many run that somebody waits for, and were let through before that time."""
        return self._models[model].at_work(before)

    @property
    def anybody_waits(self) -> bool:
        return bool(self._wanted)

    def stats(self, model: str, now: float) -> QueueStats:
        stats = self._models[model].stats(now)
        return (
            stats
            if not stats.waiting
            else stats._replace(next_wait_s=self.wait_s(model, stats.waiting + 1, now))
        )

    def waiting(self, model: str, now: float) -> list[Ticket]:
        """All who wait for a model, as they would be let through."""
        return self._models[model].queue.in_order(now)

    def position(self, ticket: Ticket, now: float) -> int:
        """Which it is in its queue, as far as one can know: 1 is next."""
        return self._models[ticket.model].queue.position(ticket, now)

    def wait_s(self, model: str, position: int, now: float) -> float:
        """About how long it takes until so many have been let through to a model."""
        view = self._models[model]
        return self._places.wait_for_place_s(view, now) + view.wait_s(position, now)

    def outlook(self) -> Outlook:
        return self._places.outlook()

    # Facts about requests ----------------------------------------------------------------------

    def arrive(self, ticket: Ticket, now: float) -> list[Action]:
        """A request came. Raises QueueFull or ConcurrencyLimitExceeded instead of queueing without bound.

        One that needs not wait has its slot when this returns: its ticket says so, and nobody has to act.
        """
        view = self._models[ticket.model]
        view.used_at = now
        view.arrived += 1
        view.pace.arrived(now)
        key = self._keys.get(ticket.key_id)
        if key is None:
            key = self._keys[ticket.key_id] = Key()
        held = ticket.wish.is_over(key.running)
        # The common case in one step: nobody is before it, a slot is free.
        if view.has_free_slot and not held and (not view.queue.size or view.queue.next(now) is None):
            view.queue.pass_by(ticket, view.estimate(ticket))
            self._let_run(view, key, ticket, now)
            return []
        try:
            self._refuse_surplus(view, key, ticket, now)
        except errors.CorralError:
            ticket.released = True
            self._forget_if_gone(ticket.key_id, key)
            raise
        self._arrivals += 1
        ticket.number = self._arrivals
        view.queue.add(ticket, now, held=held)
        key.waiting += 1
        key.limited += ticket.wish.max_parallel is not None
        self._waiting += 1
        self._note_deadline(ticket)
        if view.name in self._wanted:
            return []  # what it needs, others have asked for
        self._wanted[view.name] = view
        return self._make_loads(now) if view.state is ModelState.OFF else []

    def _note_deadline(self, ticket: Ticket) -> None:
        heappush(self._deadlines, (ticket.deadline, ticket.number, ticket))
        if len(self._deadlines) > 2 * self._waiting + STALE_MAX:
            self._deadlines = [each for each in self._deadlines if each[2].waits]
            heapify(self._deadlines)

    def _refuse_surplus(self, view: ModelView, key: Key, ticket: Ticket, now: float) -> None:
        if len(view.queue) >= view.queue_max:
            view.refused += 1
            raise errors.QueueFull(
                f"{len(view.queue)} requests are waiting for {ticket.model!r} already. Try again later.",
                retry_after_s=self._places.wait_for_place_s(view, now) + view.promise_place(now),
            )
        if ticket.wish.max_waiting is not None and key.waiting >= ticket.wish.max_waiting:
            view.refused += 1
            raise errors.ConcurrencyLimitExceeded(
                f"{key.running} requests of this key are running and {key.waiting} are waiting, as many as "
                "it may have. Try again when some are through.",
                retry_after_s=self.wait_s(ticket.model, 1, now),
            )

    def depart(self, ticket: Ticket, now: float, usage: Usage | None = None) -> list[Action]:
        """A request is over, granted or not, whatever happened. Idempotent."""
        if ticket.released:
            return []
        view = self._models[ticket.model]
        view.used_at = now
        if ticket.granted_at is None:
            key = self._keys[ticket.key_id]
            self._leave_queue(view, ticket)
            if key.limited or ticket.wish.max_parallel is not None:
                self._look_at_lines(ticket.key_id, key, now)
            return self._go_on([view], now)
        ticket.released = True
        view.finished(ticket, usage, now)
        key = self._keys[ticket.key_id]
        key.running -= 1
        freed = self._look_at_lines(ticket.key_id, key, now) if key.limited else ()
        if not key.running:
            self._forget_if_gone(ticket.key_id, key)
        if not freed and not view.queue.size and view.state is READY and not self._wanted:
            return []  # the common case: nobody waits for anything
        return self._go_on([*freed, view], now)

    def abandon(self, ticket: Ticket, now: float) -> list[Action]:
        """Nobody waits for its answer any more, but its engine may still work on it and keep a slot busy."""
        if ticket.released or ticket.abandoned:
            return []
        ticket.abandoned = True
        view = self._models[ticket.model]
        view.abandoned += 1
        return self._go_on([view], now)

    def limits_are(self, limits: Mapping[str, int | None], now: float) -> list[Action]:
        """So many requests these keys may run at a time from now on, those that wait already included."""
        changed: dict[str, Key] = {}
        for view in self._wanted.values():
            for ticket in view.queue.tickets():
                before = ticket.wish.max_parallel
                after = limits.get(ticket.key_id, before)
                if after != before:
                    ticket.wish = ticket.wish._replace(max_parallel=after)
                    key = changed[ticket.key_id] = self._keys[ticket.key_id]
                    key.limited += (after is not None) - (before is not None)
        freed = [view for each in changed.items() for view in self._look_at_lines(*each, now)]
        return self._go_on(freed, now)

    def overdue(self, now: float) -> list[Ticket]:
        """Requests that have waited for longer than they may."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now:
            ticket = heappop(self._deadlines)[2]
            if ticket.waits:
                self._models[ticket.model].refused += 1
                found.append(ticket)
        return found

    def refuse_waiting(self, model: str, error: errors.CorralError) -> list[Action]:
        """Nobody can be served by this model soon: tell everybody who waits for it."""
        view = self._models[model]
        refused = sorted(view.queue.tickets(), key=lambda ticket: ticket.number)
        for ticket in refused:
            view.refused += 1
            self._leave_queue(view, ticket)
        return [Refuse(ticket, error) for ticket in refused]

    # Facts about models ------------------------------------------------------------------------

    def model_is(self, model: str, state: ModelState, now: float) -> list[Action]:
        """A model went into another state."""
        view = self._models[model]
        if state is READY:
            view.used_at = now  # the time that its load took is no time without use
        self._places.becomes(view, state, now)
        return self._go_on([view], now)

    def slots_are(self, model: str, slots: int) -> None:
        """The process itself says how many requests it works on at a time."""
        self._models[model].slots = slots

    def eject(self, model: str, now: float) -> list[Action]:
        """Somebody wants this ready model off the machine: at once if it is idle, else when it is through."""
        return self._places.take_away(self._models[model], "eject", now)

    def load_if_room(self, model: str, now: float) -> tuple[list[Action], bool]:
        """Load a model that no request waits for, if nothing has to go for it.

        The second value: whether it may be different in a moment, so that asking again makes sense.
        """
        return self._places.load_if_room(self._models[model], now)

    def reconsider(self, now: float) -> list[Action]:
        """Time has passed, and there are new readings: see who has to go, and who may come."""
        return self._places.relieve(now) + self._make_loads(now)

    def unload_idle(self, now: float, idle_timeout_s: float) -> list[Action]:
        """Time has passed: models that have had nothing to do for so long go."""
        return self._places.unload_idle(now, idle_timeout_s)

    # Decisions ---------------------------------------------------------------------------------

    def _go_on(self, views: Sequence[ModelView], now: float) -> list[Action]:
        """Something has changed about these models: serve whom they can serve now, and see what follows."""
        actions: list[Action] = []
        for view in views:
            while view.has_free_slot and (ticket := view.queue.next(now)) is not None:
                actions.append(self._grant(view, ticket, now))
            if view.state is ModelState.DRAINING and not view.is_at_work:
                actions.append(self._places.stop(view, now))
        if not self._places.has_claims:
            return actions
        for view in views:
            if view.state not in RESIDENT:
                actions += self._places.make_loads(self.refuse_waiting, now, only_free_places=True)
            elif view.state is READY and not view.queue:
                # While others wait for it, it keeps its place until the clock says otherwise.
                actions += self._places.offer(view, self.refuse_waiting, now)
        return actions

    def _make_loads(self, now: float) -> list[Action]:
        return self._places.make_loads(self.refuse_waiting, now) if self._places.has_claims else []

    def _grant(self, view: ModelView, ticket: Ticket, now: float) -> Grant:
        key = self._keys[ticket.key_id]
        view.queue.let_through(ticket, view.estimate(ticket), now)
        self._left_queue(view, key, ticket)
        self._let_run(view, key, ticket, now)
        return Grant(ticket)

    def _let_run(self, view: ModelView, key: Key, ticket: Ticket, now: float) -> None:
        view.running.add(ticket)
        key.running += 1
        ticket.granted_at = now
        if key.limited:
            self._look_at_lines(ticket.key_id, key, now)

    def _look_at_lines(self, key_id: str, key: Key, now: float) -> list[ModelView]:
        """What a key has waiting competes only while it may run more. The models that may go on with it."""
        lines = [(view, line) for view in self._wanted.values() for line in view.queue.lines_of(key_id)]
        # Whatever of it has waited longest comes first: it may be the only one that it may run.
        lines.sort(key=lambda each: (each[1].first.arrived_at, each[1].first.number))
        released = []
        for view, line in lines:
            is_over = line.first.wish.is_over(key.running)
            if is_over and not line.is_held:
                view.queue.hold(line)
            elif line.is_held and not is_over:
                view.queue.release(line, now)
                released.append(view)
        return released

    def _leave_queue(self, view: ModelView, ticket: Ticket) -> None:
        """Out of the queue without having been served."""
        ticket.released = True
        key = self._keys[ticket.key_id]
        view.queue.remove(ticket)
        self._left_queue(view, key, ticket)
        self._forget_if_gone(ticket.key_id, key)

    def _left_queue(self, view: ModelView, key: Key, ticket: Ticket) -> None:
        self._waiting -= 1
        key.waiting -= 1
        key.limited -= ticket.wish.max_parallel is not None
        if not view.queue:
            self._wanted.pop(view.name, None)

    def _forget_if_gone(self, key_id: str, key: Key) -> None:
        if not key.running and not key.waiting:
            self._keys.pop(key_id, None)
