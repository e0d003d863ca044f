"""The models' side of the scheduler: who has a place on the machine, who gets one, and who makes way.

Models are loaded when somebody waits for them and the guard has room for them, at most `models_max` at a
time. To make room those go first that have nothing to do, the least recently used before others; then
those in use, once they are worth less than the wait (`switching`): they take no new requests, finish what
runs, and go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from corral import errors
from corral.formats.status import ModelState
from corral.policy.guard import Decision, EvictFirst, Impossible, Place, Reason, Wait
from corral.policy.lifecycle import RESIDENT
from corral.policy.placement import Placement
from corral.policy.scheduler import switching
from corral.policy.scheduler.actions import Action, Drain, Load, Outlook, Stop
from corral.policy.scheduler.model import ModelView
from corral.policy.scheduler.switching import Claimant, Resident, Terms

LEAVING = frozenset({ModelState.DRAINING, ModelState.STOPPING})


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


# Sends away everybody who waits for a model.
Refusal = Callable[[str, errors.CorralError], list[Action]]


class Claim(NamedTuple):
    """A model that is waited for and not loaded. Compared by class, then by how long that has been so."""

    level: int
    since: float
    number: int
    view: ModelView
    claimant: Claimant


class Settled(NamedTuple):
    """A model that is ready and may go at all, as it stands now."""

    view: ModelView
    resident: Resident


class Places:
    def __init__(
        self, models: Mapping[str, ModelView], models_max: int, admission: Admission, terms: Terms
    ) -> None:
        self._models = models
        self._models_max = models_max
        self._admission = admission
        self._terms = terms
        self._resident: dict[str, ModelView] = {}
        # Models that somebody waits for.
        self.wanted: dict[str, ModelView] = {}

    @property
    def full(self) -> bool:
        return len(self._resident) >= self._models_max

    @property
    def has_claims(self) -> bool:
        """Whether somebody may wait for a model that is not there."""
        if not self.wanted:
            return False
        return any(view.state is ModelState.OFF for view in self.wanted.values())

    def outlook(self) -> Outlook:
        idle = [view.name for view in self._idle()]
        others = self._others(idle)
        if not self.full:
            return Outlook(tuple(idle), tuple(others), None)
        on_their_way = [view.name for view in self._resident.values() if view.state in LEAVING]
        if idle and not on_their_way:
            return Outlook(tuple(idle), tuple(others), EvictFirst((idle[0],)))
        ready = [name for name in others if self._models[name].state is ModelState.READY]
        busy = sorted(ready, key=lambda name: bool(self._models[name].queue))
        return Outlook(tuple(idle), tuple(others), Wait(Reason.FULL, tuple((on_their_way or busy)[:1])))

    # Coming ------------------------------------------------------------------------------------

    def make_loads(self, refuse: Refusal, now: float, *, only_free_places: bool = False) -> list[Action]:
        """Load what is waited for, the most urgent first, as far as there is room or room can be made.

        Where room is being made for somebody, nobody less urgent gets it; and while somebody who has been
        patient waits for a tenure to end, nobody less urgent sends anybody away. Small models, which load
        quickly, would else take a large one's room piece by piece, for as long as they are wanted.
        """
        claims = self._claims(now)
        settled = self._settled(now) if claims else []
        on_their_way = self._on_their_way
        promised: set[str] = set()
        actions: list[Action] = []
        for claim in claims:
            if self.full and only_free_places:
                break
            if self.full and on_their_way > 0:
                on_their_way -= 1
                continue
            yielding = list(self._yielding(claim, settled))
            decision = self._ask(claim, yielding)
            follows = self._admit(claim, decision, yielding, promised, refuse, now)
            actions += follows
            waits = isinstance(decision, Place) or (
                isinstance(decision, Wait) and decision.reason is Reason.BUSY
            )
            if waits and not follows and self._has_been_patient(claim, settled):
                settled = []
        return actions

    def offer(self, view: ModelView, refuse: Refusal, now: float) -> list[Action]:
        """Nobody waits for this ready model any more: it may be worth less than its place to somebody.

        Hundreds may wait, and a busy model is through with a request every few milliseconds. So what
        was offered in vain just now is not offered again before the clock asks anyway.
        """
        if now - view.offered_at < switching.WORTH_HOLDING_S:
            return []
        resident = view.as_resident(now)
        for each in self.wanted.values():
            claimant = each.as_claimant(now) if each.state is ModelState.OFF else None
            if claimant is not None and switching.yields(resident, claimant, self._terms):
                if actions := self.make_loads(refuse, now):  # another may be the better one to go
                    return actions
                break
        view.offered_at = now
        return []

    @property
    def _on_their_way(self) -> int:
        """Places that are being given up."""
        return sum(view.state in LEAVING for view in self._resident.values())

    def _settled(self, now: float) -> list[Settled]:
        """Models that may be asked to go, in the order in which they would be: those at rest first."""
        ready = self._by_use(lambda view: view.state is ModelState.READY)
        ready.sort(key=lambda view: not view.is_idle)
        return [Settled(view, view.as_resident(now)) for view in ready]

    def _claims(self, now: float) -> list[Claim]:
        """The most urgent first."""
        claims = []
        for view in self.wanted.values():
            if view.state is ModelState.OFF and (claimant := view.as_claimant(now)) is not None:
                oldest = view.queue.oldest() or view.queue.oldest_held()
                assert oldest is not None
                level, since = claimant.level, oldest.arrived_at
                if since < view.gave_way_at:
                    # It lines up anew. If its oldest request counted, it would come back before the other
                    # model, for which it has just gone, and that one had waited for nothing.
                    since = view.gave_way_at
                    level = max(level, claimant.base - int((now - since) / self._terms.aging_s))
                claims.append(Claim(level, since, oldest.number, view, claimant))
        return sorted(claims, key=lambda claim: claim[:3])

    def _ask(self, claim: Claim, yielding: Sequence[ModelView]) -> Decision:
        """Ask the guard about a model that is waited for."""
        idle = [view.name for view in yielding if view.is_idle]
        would = [view.name for view in yielding if not view.is_idle]
        # The guard looks for the fewest that must go, from the front: first those that would.
        others = [name for name in self._others(idle) if name not in would]
        return self._admission.decide(claim.view.name, idle, [*would, *others])

    def _admit(
        self,
        claim: Claim,
        decision: Decision,
        yielding: Sequence[ModelView],
        promised: set[str],
        refuse: Refusal,
        now: float,
    ) -> list[Action]:
        """Do as the guard says."""
        would = [view.name for view in yielding]
        chosen: Sequence[str] = ()
        match decision:
            case Place(placement) if not promised.isdisjoint(placement.devices):
                pass  # that room is somebody else's
            case Place(placement) if not self.full:
                return [self.load(claim.view, placement, now)]
            case Place():
                chosen = would[:1]  # there is memory, but no place
            case EvictFirst(models):
                chosen = models
            case Wait(Reason.BUSY | Reason.FOREIGN, models) if not self._stay(models, would):
                chosen = [name for name in models if name in would]
                promised.update(*map(self._devices, models))
            case Wait(Reason.RELEASING | Reason.LOADING, models):
                promised.update(*map(self._devices, models))  # it will happen by itself
            case Impossible() as impossible:
                return refuse(claim.view.name, self._admission.refusal(impossible))
        promised.update(*map(self._devices, chosen))
        return [action for each in chosen for action in self._make_way(self._models[each], now)]

    def _stay(self, models: Iterable[str], would: Sequence[str]) -> bool:
        """Whether some of these models keep their place: then it is no use if the others go already."""
        return any(self._models[name].state not in LEAVING for name in models if name not in would)

    def _has_been_patient(self, claim: Claim, settled: Iterable[Settled]) -> bool:
        return any(
            switching.has_been_patient(resident, claim.claimant, self._terms) for _, resident in settled
        )

    def _devices(self, model: str) -> Sequence[str]:
        """Where a model is, or where it was last."""
        view = self._models.get(model)
        return () if view is None or view.placement is None else view.placement.devices

    def load_if_room(self, view: ModelView, now: float) -> tuple[list[Action], bool]:
        """Load a model if nothing has to go for it; and whether it is worth asking again in a moment."""
        if view.state not in (ModelState.OFF, ModelState.BACKOFF) or self.full:
            return [], False
        match self._admission.decide(view.name, [], []):
            case Place(placement):
                return [self.load(view, placement, now)], False
            case Wait(Reason.LOADING | Reason.RELEASING | Reason.UNREADABLE):
                return [], True
            case _:
                return [], False

    def load(self, view: ModelView, placement: Placement, now: float) -> Load:
        self._admission.reserve(view.name, placement)
        view.placement = placement
        self.becomes(view, ModelState.STARTING, now)
        return Load(view.name, placement)

    # Going -------------------------------------------------------------------------------------

    def relieve(self, now: float) -> list[Action]:
        """Idle models go whose memory others have taken."""
        models = self._admission.relieve([view.name for view in self._idle()])
        return [action for each in models for action in self.take_away(self._models[each], "foreign", now)]

    def unload_idle(self, now: float, idle_timeout_s: float) -> list[Action]:
        """Models go that have had nothing to do for so long."""
        idle = [view for view in self._idle() if now - view.used_at >= idle_timeout_s]
        return [action for view in idle for action in self.take_away(view, "idle", now)]

    def _make_way(self, view: ModelView, now: float) -> list[Action]:
        view.gave_way_at = now
        return self.take_away(view, "room", now)

    def take_away(self, view: ModelView, reason: str, now: float) -> list[Action]:
        self.becomes(view, ModelState.DRAINING, now)
        return [Drain(view.name, reason), *([] if view.is_at_work else [self.stop(view, now)])]

    def stop(self, view: ModelView, now: float) -> Stop:
        self.becomes(view, ModelState.STOPPING, now)
        # Before anything else is decided: its memory is on the move from now on.
        self._admission.stopping(view.name)
        return Stop(view.name)

    def becomes(self, view: ModelView, state: ModelState, now: float) -> None:
        view.becomes(state, now)
        if state in RESIDENT:
            self._resident[view.name] = view
        else:
            self._resident.pop(view.name, None)

    # Who may go --------------------------------------------------------------------------------

    def _yielding(self, claim: Claim, settled: Iterable[Settled]) -> Iterator[ModelView]:
        """Models that make way for this one now."""
        for view, resident in settled:
            if view.state is ModelState.READY and switching.yields(resident, claim.claimant, self._terms):
                yield view

    def _idle(self) -> list[ModelView]:
        return self._by_use(lambda view: view.is_idle)

    def _others(self, idle: list[str]) -> list[str]:
        """Models that hold memory now and may be asked to go one day, or have been already."""
        return [view.name for view in self._by_use(lambda _: True) if view.name not in idle]

    def _by_use(self, chosen: Callable[[ModelView], bool]) -> list[ModelView]:
        """Models that may go at all, the least recently used first."""
        found = [view for view in self._resident.values() if not view.pinned and chosen(view)]
        return sorted(found, key=lambda view: (view.used_at, view.name))

    # What to expect ----------------------------------------------------------------------------

    def wait_for_place_s(self, view: ModelView, now: float) -> float:
        """About how long it takes until a model that is waited for may begin to load."""
        claimant = view.as_claimant(now)
        if view.state is not ModelState.OFF or claimant is None or not self.full:
            return 0.0
        waits = (
            self._still_waits_s(each.as_resident(now), claimant)
            for each in self._resident.values()
            if each.state is ModelState.READY and not each.pinned
        )
        return min(waits, default=0.0)

    def _still_waits_s(self, resident: Resident, claimant: Claimant) -> float:
        return max(0.0, switching.patience_s(resident, claimant, self._terms) - claimant.waited_s)
