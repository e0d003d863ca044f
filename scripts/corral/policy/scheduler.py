"""Who is served next, and which models are on the machine: decided here, carried out by the fleet.

The scheduler holds the queues and a view of each model (its state, its slots, what runs on it). Every
method tells it one fact and returns the actions that follow, in order; it acts on nothing itself, so a
test, or a simulator, drives it with values alone. An action that it returns has happened in its view
already: who carries it out does not report it back, and reports only what comes from elsewhere.

The rule is plain: first come, first served, per model as many at once as the model has slots. Models
are loaded when somebody waits for them and the guard has room for them, at most `models_max` at a time.
To make room the least recently used models go that have nothing to do. If all are busy, the oldest
waiting request decides: a model all of whose own waiting requests are younger takes no new ones,
finishes what runs, and goes. So nobody waits for ever, and nothing that runs is cut off.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from corral import errors
from corral.formats.status import ModelState
from corral.policy.guard import Decision, EvictFirst, Impossible, Place, Reason, Wait
from corral.policy.lifecycle import RESIDENT
from corral.policy.placement import Placement


class Ticket:
    """One request's place in the queue, and later on a slot. Compared by identity."""

    __slots__ = ("arrived_at", "granted_at", "model", "number", "released", "request_id")

    def __init__(self, request_id: str, model: str, now: float) -> None:
        self.request_id = request_id
        self.model = model
        self.arrived_at = now
        self.number = 0  # in the order of arrival: two may come in one tick of the clock
        self.granted_at: float | None = None
        self.released = False


class Grant(NamedTuple):
    """This request may go to its model now."""

    ticket: Ticket


class Refuse(NamedTuple):
    """This request is answered with an error."""

    ticket: Ticket
    error: errors.CorralError


class Load(NamedTuple):
    """Bring this model onto the machine, there: the memory is reserved."""

    model: str
    placement: Placement


class Drain(NamedTuple):
    """Take no new requests for this model; it stops when it is idle."""

    model: str
    reason: str


class Stop(NamedTuple):
    """Nothing runs on this drained model any more."""

    model: str


Action = Grant | Refuse | Load | Drain | Stop


@dataclass(slots=True)
class ModelView:
    """The scheduler's view of one model."""

    slots: int
    pinned: bool
    queue_max: int
    state: ModelState
    waiting: OrderedDict[Ticket, None]
    running: set[Ticket]
    used_at: float


class ModelLimits(NamedTuple):
    """What the scheduler must know of a model beforehand."""

    slots: int
    pinned: bool
    queue_max: int


class Outlook(NamedTuple):
    """What a request for another model would find if it came now."""

    idle: tuple[str, ...]  # models that may be evicted, the least recently used first
    busy: tuple[str, ...]  # models that hold memory and may go some day
    place: EvictFirst | Wait | None  # what must happen because no more models may be loaded


class Admission(Protocol):
    """Who knows about memory."""

    def decide(self, model: str, idle: Sequence[str], busy: Sequence[str]) -> Decision:
        """Whether a model may be loaded now, where, and what must happen first."""

    def reserve(self, model: str, placement: Placement) -> None: ...
    def stopping(self, model: str) -> None:
        """It is about to be told to go."""

    def relieve(self, idle: Sequence[str]) -> Sequence[str]:
        """Idle models that must go because others have taken their memory."""

    def refusal(self, impossible: Impossible) -> errors.CorralError: ...


class Scheduler:
    def __init__(
        self, models: Mapping[str, ModelLimits], models_max: int, admission: Admission, now: float
    ) -> None:
        self._models_max = models_max
        self._admission = admission
        self._arrivals = 0
        self._models = {
            name: ModelView(
                limits.slots, limits.pinned, limits.queue_max, ModelState.OFF, OrderedDict(), set(), now
            )
            for name, limits in models.items()
        }

    # What others may know ----------------------------------------------------------------------

    def depth(self, model: str) -> int:
        return len(self._models[model].waiting)

    def running(self, model: str) -> int:
        return len(self._models[model].running)

    def outlook(self) -> Outlook:
        idle = self._idle()
        place: EvictFirst | Wait | None = None
        if self._full:
            leaving = (ModelState.DRAINING, ModelState.STOPPING)
            on_their_way = [name for name, view in self._models.items() if view.state in leaving]
            if on_their_way or not idle:
                next_to_go = on_their_way or self._drainable(self._arrivals + 1)
                place = Wait(Reason.FULL, tuple(next_to_go[:1]))
            else:
                place = EvictFirst((idle[0],))
        return Outlook(tuple(idle), tuple(self._busy(idle)), place)

    # Facts -------------------------------------------------------------------------------------

    def arrive(self, ticket: Ticket, now: float) -> list[Action]:
        """A request came. Raises QueueFull instead of queueing without bound."""
        view = self._models[ticket.model]
        view.used_at = now
        # The common case in one step: nobody waits, a slot is free.
        if view.state is ModelState.READY and not view.waiting and len(view.running) < view.slots:
            return [self._grant(view, ticket, now)]
        if len(view.waiting) >= view.queue_max:
            raise errors.QueueFull(
                f"{len(view.waiting)} requests are waiting for {ticket.model!r} already. Try again later.",
                retry_after_s=1,
            )
        self._arrivals += 1
        ticket.number = self._arrivals
        view.waiting[ticket] = None
        return self._decide(now)

    def depart(self, ticket: Ticket, now: float) -> list[Action]:
        """A request is over, granted or not, whatever happened. Idempotent."""
        if ticket.released:
            return []
        ticket.released = True
        view = self._models[ticket.model]
        view.used_at = now
        view.waiting.pop(ticket, None)
        view.running.discard(ticket)
        if view.state is ModelState.READY and not view.waiting and self._nobody_else_waits(view):
            return []
        return self._decide(now)

    def model_is(self, model: str, state: ModelState, now: float) -> list[Action]:
        """A model went into another state."""
        view = self._models[model]
        view.state = state
        if state is ModelState.READY:
            view.used_at = now  # the time that its load took is no time without use
        return self._decide(now)

    def refuse_waiting(self, model: str, error: errors.CorralError) -> list[Action]:
        """Nobody can be served by this model soon: tell everybody who waits for it."""
        waiting = self._models[model].waiting
        refused = tuple(waiting)
        waiting.clear()
        for ticket in refused:
            ticket.released = True
        return [Refuse(ticket, error) for ticket in refused]

    def eject(self, model: str) -> list[Action]:
        """Somebody wants this ready model off the machine: at once if it is idle, else when it is through."""
        return self._take_away(model, "eject")

    def load_if_room(self, model: str) -> tuple[list[Action], bool]:
        """Load a model that no request waits for, if nothing has to go for it.

        The second value: whether it may be different in a moment, so that asking again makes sense.
        """
        if self._models[model].state not in (ModelState.OFF, ModelState.BACKOFF) or self._full:
            return [], False
        match self._admission.decide(model, [], []):
            case Place(placement):
                return [self._load(model, placement)], False
            case Wait(Reason.LOADING | Reason.RELEASING | Reason.UNREADABLE):
                return [], True
            case _:
                return [], False

    def reconsider(self, now: float) -> list[Action]:
        """There are new readings: idle models go whose memory others have taken; who waits is looked at."""
        models = self._admission.relieve(self._idle())
        actions = [action for each in models for action in self._take_away(each, "foreign")]
        return actions + self._decide(now)

    def unload_idle(self, now: float, idle_timeout_s: float) -> list[Action]:
        """Time has passed: models that have had nothing to do for so long go."""
        actions: list[Action] = []
        for name, view in self._models.items():
            idle = view.state is ModelState.READY and not view.running and not view.waiting
            if idle and not view.pinned and now - view.used_at >= idle_timeout_s:
                actions += self._take_away(name, "idle")
        return actions

    # Decisions ---------------------------------------------------------------------------------

    def _grant(self, view: ModelView, ticket: Ticket, now: float) -> Grant:
        view.waiting.pop(ticket, None)
        view.running.add(ticket)
        ticket.granted_at = now
        return Grant(ticket)

    def _nobody_else_waits(self, view: ModelView) -> bool:
        return not any(other.waiting for other in self._models.values() if other is not view)

    def _decide(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for name, view in self._models.items():
            if view.state is ModelState.READY:
                while view.waiting and len(view.running) < view.slots:
                    actions.append(self._grant(view, next(iter(view.waiting)), now))
            elif view.state is ModelState.DRAINING and not view.running:
                actions.append(self._stop(name))
        actions += self._make_loads()
        return actions

    def _make_loads(self) -> list[Action]:
        """Load what the longest waiting requests need, as far as there is room or room can be made."""
        wanted = sorted(
            (next(iter(view.waiting)).number, name)
            for name, view in self._models.items()
            if view.waiting and view.state is ModelState.OFF
        )
        leaving = sum(
            view.state in (ModelState.DRAINING, ModelState.STOPPING) for view in self._models.values()
        )
        actions: list[Action] = []
        for number, name in wanted:
            if not self._full:
                actions += self._admit(name, number)
            elif leaving > 0:
                leaving -= 1  # a place is on its way
            elif victims := [*self._idle(), *self._drainable(number)]:
                actions += self._take_away(victims[0], "room")
        return actions

    @property
    def _full(self) -> bool:
        return sum(view.state in RESIDENT for view in self._models.values()) >= self._models_max

    def _admit(self, name: str, number: int) -> list[Action]:
        """Ask the guard about a model that the request of this number waits for, and do as it says."""
        idle = self._idle()
        match self._admission.decide(name, idle, self._busy(idle)):
            case Place(placement):
                return [self._load(name, placement)]
            case EvictFirst(models):
                return [action for each in models for action in self._take_away(each, "room")]
            case Wait(Reason.BUSY | Reason.FOREIGN, models):
                drainable = self._drainable(number)
                chosen = [each for each in models if each in drainable]
                return [action for each in chosen for action in self._take_away(each, "room")]
            case Impossible() as impossible:
                return self.refuse_waiting(name, self._admission.refusal(impossible))
            case _:
                return []  # what is waited for will happen

    def _load(self, name: str, placement: Placement) -> Load:
        self._admission.reserve(name, placement)
        self._models[name].state = ModelState.STARTING
        return Load(name, placement)

    def _idle(self) -> list[str]:
        """Ready models that nobody uses and nobody wants kept, the least recently used first."""
        return self._by_use(
            lambda view: view.state is ModelState.READY and not view.running and not view.waiting
        )

    def _busy(self, idle: list[str]) -> list[str]:
        """Models that hold memory now and may be asked to go one day, or have been already."""
        return [name for name in self._by_use(lambda view: view.state in RESIDENT) if name not in idle]

    def _drainable(self, number: int) -> list[str]:
        """Models in use all of whose waiting requests came after the one of this number."""
        return self._by_use(
            lambda view: (
                view.state is ModelState.READY
                and bool(view.running or view.waiting)
                and (not view.waiting or next(iter(view.waiting)).number > number)
            )
        )

    def _by_use(self, chosen: Callable[[ModelView], bool]) -> list[str]:
        found = [
            (view.used_at, name) for name, view in self._models.items() if not view.pinned and chosen(view)
        ]
        return [name for _, name in sorted(found)]

    def _take_away(self, name: str, reason: str) -> list[Action]:
        view = self._models[name]
        if view.running:
            view.state = ModelState.DRAINING
            return [Drain(name, reason)]
        return [Drain(name, reason), self._stop(name)]

    def _stop(self, name: str) -> Stop:
        self._models[name].state = ModelState.STOPPING
        # Before anything else is decided: its memory is on the move from now on.
        self._admission.stopping(name)
        return Stop(name)
