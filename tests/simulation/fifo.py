"""The policy to compare with: first come, first served, and the least recently used model makes way.

This is what a plain router of models does. One queue per model in the order of arrival; an idle model
goes at once when another one is wanted; a busy one takes no new requests as soon as a request for another
model is older than all of its own that wait. Classes, keys and prices of switches mean nothing to it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from corral import errors
from corral.formats.status import ModelState
from corral.policy import scheduler as real
from corral.policy.guard import EvictFirst, Place, Reason, Wait
from corral.policy.lifecycle import RESIDENT
from corral.policy.scheduler import (  # what a world asks its policy for
    Action,
    Admission,
    Drain,
    Grant,
    Load,
    ModelLimits,
    QueueStats,
    Refuse,
    Stop,
    Terms,
    Ticket,
    Usage,
    Wish,
)

__all__ = ["Drain", "Grant", "Load", "ModelLimits", "Refuse", "Scheduler", "Stop", "Ticket", "Usage", "Wish"]
LEAVING = (ModelState.DRAINING, ModelState.STOPPING)


class View:
    def __init__(self, name: str, limits: ModelLimits) -> None:
        self.name = name
        self.limits = limits
        self.state = ModelState.OFF
        self.waiting: OrderedDict[Ticket, None] = OrderedDict()
        self.running: set[Ticket] = set()
        self.used_at = 0.0

    @property
    def oldest(self) -> int:
        return next(iter(self.waiting)).number

    @property
    def is_idle(self) -> bool:
        return self.state is ModelState.READY and not self.running and not self.waiting


class Scheduler:
    def __init__(
        self,
        models: Mapping[str, ModelLimits],
        models_max: int,
        admission: Admission,
        _terms: Terms,
        _now: float,
    ) -> None:
        self._views = {name: View(name, limits) for name, limits in models.items()}
        self._models_max = models_max
        self._admission = admission
        self._arrivals = 0

    @property
    def anybody_waits(self) -> bool:
        return any(view.waiting for view in self._views.values())

    def depth(self, model: str) -> int:
        return len(self._views[model].waiting)

    def running(self, model: str) -> int:
        return len(self._views[model].running)

    def stats(self, model: str, _now: float) -> QueueStats:
        view = self._views[model]
        return QueueStats(len(view.waiting), len(view.running), view.limits.slots, 0.0, 0.0, 0, 0, 0)

    def slots_are(self, model: str, slots: int) -> None:
        self._views[model].limits = self._views[model].limits._replace(slots=slots)

    def arrive(self, ticket: Ticket, now: float) -> list[Action]:
        view = self._views[ticket.model]
        view.used_at = now
        if len(view.waiting) >= view.limits.queue_max:
            raise errors.QueueFull("full")
        self._arrivals += 1
        ticket.number = self._arrivals
        view.waiting[ticket] = None
        return self._decide(now)

    def depart(self, ticket: Ticket, now: float, _usage: real.Usage | None = None) -> list[Action]:
        if ticket.released:
            return []
        ticket.released = True
        view = self._views[ticket.model]
        view.used_at = now
        view.waiting.pop(ticket, None)
        view.running.discard(ticket)
        return self._decide(now)

    def abandon(self, _ticket: Ticket, _now: float) -> list[Action]:
        return []

    def overdue(self, now: float) -> list[Ticket]:
        return [ticket for view in self._views.values() for ticket in view.waiting if ticket.deadline <= now]

    def refuse_waiting(self, model: str, error: errors.CorralError) -> list[Action]:
        refused = tuple(self._views[model].waiting)
        self._views[model].waiting.clear()
        for ticket in refused:
            ticket.released = True
        return [Refuse(ticket, error) for ticket in refused]

    def model_is(self, model: str, state: ModelState, now: float) -> list[Action]:
        self._views[model].state = state
        return self._decide(now)

    def load_if_room(self, _model: str, _now: float) -> tuple[list[Action], bool]:
        return [], False

    def eject(self, model: str, _now: float) -> list[Action]:
        return self._take_away(self._views[model], "eject")

    def reconsider(self, now: float) -> list[Action]:
        return self._decide(now)

    def unload_idle(self, _now: float, _idle_timeout_s: float) -> list[Action]:
        return []

    def _decide(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for view in self._views.values():
            while view.state is ModelState.READY and view.waiting and len(view.running) < view.limits.slots:
                ticket, _ = view.waiting.popitem(last=False)
                view.running.add(ticket)
                ticket.granted_at = now
                actions.append(Grant(ticket))
            if view.state is ModelState.DRAINING and not view.running:
                actions.append(self._stop(view))
        return actions + self._make_loads()

    def _make_loads(self) -> list[Action]:
        wanted = [view for view in self._views.values() if view.waiting and view.state is ModelState.OFF]
        leaving = sum(view.state in LEAVING for view in self._views.values())
        actions: list[Action] = []
        for view in sorted(wanted, key=lambda view: view.oldest):
            resident = sum(each.state in RESIDENT for each in self._views.values())
            if resident < self._models_max:
                actions += self._admit(view)
            elif leaving:
                leaving -= 1
            elif victims := self._victims(view):
                actions += self._take_away(victims[0], "room")
        return actions

    def _admit(self, view: View) -> list[Action]:
        victims = self._victims(view)
        idle = [each.name for each in victims if each.is_idle]
        others = [each.name for each in self._views.values() if each.state in RESIDENT]
        busy = [name for name in others if name not in idle]
        match self._admission.decide(view.name, idle, busy):
            case Place(placement):
                self._admission.reserve(view.name, placement)
                view.state = ModelState.STARTING
                return [Load(view.name, placement)]
            case EvictFirst(models):
                chosen = [self._views[name] for name in models]
            case Wait(Reason.BUSY | Reason.FOREIGN, models):
                chosen = [each for each in victims if each.name in models]
            case _:
                chosen = []
        return [action for each in chosen for action in self._take_away(each, "room")]

    def _victims(self, wanted: View) -> list[View]:
        """Idle models first, then those whose own waiting requests are all younger; by last use."""
        found = [
            view
            for view in self._views.values()
            if view.state is ModelState.READY
            and not view.limits.pinned
            and (not view.waiting or view.oldest > wanted.oldest)
        ]
        return sorted(found, key=lambda view: (not view.is_idle, view.used_at))

    def _take_away(self, view: View, reason: str) -> list[Action]:
        view.state = ModelState.DRAINING
        return [Drain(view.name, reason), *([] if view.running else [self._stop(view)])]

    def _stop(self, view: View) -> Stop:
        view.state = ModelState.STOPPING
        self._admission.stopping(view.name)
        return Stop(view.name)


def summary(world: Any) -> dict[str, float]:
    """What a run comes to, whichever policy it had."""
    from tests.simulation.world import quantile

    served = [job for job in world.jobs if job.outcome == "served"]
    waits = world.waits()
    return {
        "served": len(served),
        "switches": world.switches,
        "switches_per_1000": 1000 * world.switches / max(1, len(world.jobs)),
        "mean_s": sum(waits) / max(1, len(waits)),
        "p50_s": quantile(waits, 0.5),
        "p95_s": quantile(waits, 0.95),
        "p99_s": quantile(waits, 0.99),
        "max_s": waits[-1] if waits else 0.0,
        "served_per_minute": 60 * len(served) / max(1.0, max(job.over_at or 0.0 for job in world.jobs)),
        "span_s": max((job.over_at or 0.0) for job in world.jobs),
    }
