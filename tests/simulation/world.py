"""A herd that does not exist: the real policy under a clock that is only a number.

The scheduler, the guard with its books, the placement and the table of lifecycles are the real ones;
requests, processes and memory are made up. A world plays the fleet's part: it carries out what the
scheduler decides, and reports what becomes of it. Whatever comes by chance comes from a seed, so every
run can be had again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, NamedTuple

from corral import errors
from corral.formats.status import ModelState
from corral.policy import scheduler as real_policy
from corral.policy.guard import Place
from corral.policy.lifecycle import Deaths, Event, next_state
from corral.policy.placement import Kind, Placement
from tests.simulation.traffic import Arrival

TICK_S = 0.25
STOP_S = 0.1
END_S = 100_000.0
SOMEWHERE = Placement(Kind.CPU, 0, (), (), 1)
REQUEST_TIMEOUT_S = 120.0
PROBATION_S = 30.0


class Spec(NamedTuple):
    """What a model is, in truth."""

    load_s: float
    slots: int = 1
    prompt_rate: float = 2000.0  # tokens a second, in each slot
    generation_rate: float = 50.0
    size_bytes: int = 1 << 30
    pinned: bool = False
    queue_max: int = 1000

    def service_s(self, arrival: Arrival) -> float:
        return arrival.prompt_tokens / self.prompt_rate + arrival.generated_tokens / self.generation_rate


class Troubles(NamedTuple):
    """What goes wrong, as a share of loads and of requests."""

    load_fails: float = 0.0
    dies: float = 0.0
    stalls: float = 0.0


@dataclass(eq=False, slots=True)
class Job:
    """One request, from its arrival to its end."""

    arrival: Arrival
    ticket: Any
    granted_at: float | None = None
    over_at: float | None = None
    outcome: str = ""  # served, refused, left, failed
    tries: int = 1

    @property
    def wait_s(self) -> float:
        """How long it waited for its turn, or in vain."""
        end = self.over_at if self.granted_at is None else self.granted_at
        assert end is not None
        return end - self.arrival.at


@dataclass(eq=False)
class Life:
    """A model's process: what was meant for an earlier one does not reach a later one."""

    state: ModelState = ModelState.OFF
    number: int = 0
    deaths: Deaths = field(default_factory=Deaths)
    ready_at: float = 0.0
    good_spell_s: float = 0.0
    running: dict[Any, Job] = field(default_factory=dict)


class Watch:
    """Somebody who looks on and has nothing to say; oracles.py has one who does."""

    def begins(self, world: World) -> None: ...
    def arrived(self, job: Job) -> None: ...
    def granted(self, job: Job) -> None: ...
    def departed(self, job: Job) -> None: ...
    def drained(self, model: str, reason: str) -> None: ...
    def loads(self, model: str) -> None: ...
    def happened(self) -> None: ...
    def ends(self) -> None: ...


class Herd(real_policy.Admission):
    """The memory of the machine. This one has room for everything; memory.py has one with a guard."""

    def decide(self, model: str, idle: Sequence[str], busy: Sequence[str]) -> Any:
        return Place(SOMEWHERE)

    def reserve(self, model: str, placement: Any) -> None: ...
    def stopping(self, model: str) -> None: ...
    def relieve(self, idle: Sequence[str]) -> Sequence[str]:
        return ()

    def refusal(self, impossible: Any) -> errors.CorralError:
        return errors.InsufficientVram("no room")

    # What the world tells it.
    def spawned(self, model: str) -> None: ...
    def loaded(self, model: str) -> None: ...
    def gone(self, model: str, now: float) -> float:
        """Its process has ended. After so many seconds its memory is back."""
        return 0.0

    def look(self, now: float) -> None: ...

    # What oracles ask.
    def check(self) -> None: ...
    def check_empty(self) -> None: ...


class World:
    def __init__(
        self,
        specs: Mapping[str, Spec],
        arrivals: Sequence[Arrival],
        *,
        models_max: int,
        terms: real_policy.Terms,
        policy: Any = real_policy,
        herd: Herd | None = None,
        troubles: Troubles = Troubles(),  # noqa: B008
        chance: random.Random | None = None,
        idle_timeout_s: float = 300.0,
        watch: Watch | None = None,
    ) -> None:
        self.specs = specs
        self.terms = terms
        self.policy = policy
        self.models_max = models_max
        self.herd = herd or Herd()
        self.troubles = troubles
        self.chance = chance or random.Random(0)
        self.now = 0.0
        limits = {
            name: policy.ModelLimits(spec.slots, spec.pinned, spec.queue_max, spec.load_s)
            for name, spec in specs.items()
        }
        self.scheduler = policy.Scheduler(limits, models_max, self.herd, terms, 0.0)
        self.lives = {name: Life() for name in specs}
        self.jobs: list[Job] = []
        self.loads = 0
        self.switches = 0
        self.steps = 0
        self._idle_timeout_s = idle_timeout_s
        self._arrivals = arrivals
        self._by_ticket: dict[Any, Job] = {}
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._ticks = False
        self._watch = watch or Watch()

    def run(self) -> World:
        """Everything that happens, until nobody is left."""
        self._watch.begins(self)
        upcoming = iter(self._arrivals)
        following = next(upcoming, None)
        while self._events or following is not None:
            if following is not None and (not self._events or following.at <= self._events[0][0]):
                self.now = following.at
                self._arrive(following)
                following = next(upcoming, None)
            else:
                self.now, _number, act, arguments = heappop(self._events)
                act(*arguments)
            self.steps += 1
            assert self.now < END_S, "somebody waits for ever"
            if not self._ticks and self.scheduler.anybody_waits:
                self._ticks = True
                self._later(TICK_S, self._tick)
            self._watch.happened()
        self._watch.ends()
        return self

    def _later(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        self._number += 1
        heappush(self._events, (self.now + seconds, self._number, act, arguments))

    # Requests ----------------------------------------------------------------------------------

    def _arrive(self, arrival: Arrival) -> None:
        wish = self.policy.Wish(
            arrival.model,
            "",
            arrival.key_id,
            arrival.priority,
            arrival.max_parallel,
            None,
            arrival.prompt_tokens,
        )
        job = Job(arrival, self.policy.Ticket(wish, self.now, self.now + self.terms.queue_timeout_s))
        self.jobs.append(job)
        self._queue(job)
        if arrival.leaves_after_s is not None:
            self._later(arrival.leaves_after_s, self._leave, job)

    def _queue(self, job: Job) -> None:
        self._by_ticket[job.ticket] = job
        self._watch.arrived(job)
        try:
            actions = self.scheduler.arrive(job.ticket, self.now)
        except errors.CorralError:
            self._end(job, "refused")
        else:
            self._carry_out(actions)
            if job.ticket.granted_at is not None and job.granted_at is None:
                self._grant(job)  # at once

    def _leave(self, job: Job) -> None:
        """The client has no more patience."""
        if job.outcome:
            return
        life = self.lives[job.arrival.model]
        if job.ticket in life.running and not job.arrival.is_stream:
            job.outcome = "left"  # and its engine goes on
            self._carry_out(self.scheduler.abandon(job.ticket, self.now))
            return
        life.running.pop(job.ticket, None)
        ticket = job.ticket
        self._end(job, "left")
        self._carry_out(self.scheduler.depart(ticket, self.now))

    def _finish(self, job: Job, ticket: Any) -> None:
        life = self.lives[job.arrival.model]
        if life.running.pop(ticket, None) is None:
            return
        self._end(job, job.outcome or "served")
        usage = self.policy.Usage(job.arrival.prompt_tokens, job.arrival.generated_tokens)
        self._carry_out(self.scheduler.depart(ticket, self.now, usage))

    def _end(self, job: Job, outcome: str) -> None:
        job.outcome, job.over_at = outcome, self.now
        self._by_ticket.pop(job.ticket, None)
        self._watch.departed(job)

    # What is decided ---------------------------------------------------------------------------

    def _carry_out(self, actions: Sequence[Any]) -> None:
        policy = self.policy
        for action in actions:
            kind = type(action)
            if kind is policy.Grant:
                self._grant(self._by_ticket[action.ticket])
            elif kind is policy.Refuse:
                self._end(self._by_ticket[action.ticket], "refused")
            elif kind is policy.Load:
                self._load(action.model)
            elif kind is policy.Drain:
                self._watch.drained(action.model, action.reason)
                self.switches += action.reason == "room"
                self._step(action.model, Event.DRAIN)
            else:
                self._step(action.model, Event.DRAINED)
                self._later(STOP_S, self._exited, action.model, self.lives[action.model].number)

    def _grant(self, job: Job) -> None:
        arrival, ticket = job.arrival, job.ticket
        job.granted_at = self.now
        self._watch.granted(job)
        self.lives[arrival.model].running[ticket] = job
        if self.troubles.stalls and self.chance.random() < self.troubles.stalls:
            self._later(REQUEST_TIMEOUT_S, self._stalled, job, ticket, self.lives[arrival.model].number)
            return
        self._later(self.specs[arrival.model].service_s(arrival), self._finish, job, ticket)

    # Models ------------------------------------------------------------------------------------

    def _step(self, model: str, event: Event) -> None:
        life = self.lives[model]
        life.state = next_state(life.state, event)

    def _move(self, model: str, event: Event) -> None:
        self._step(model, event)
        self._carry_out(self.scheduler.model_is(model, self.lives[model].state, self.now))

    def _load(self, model: str) -> None:
        self._watch.loads(model)
        life = self.lives[model]
        self._step(model, Event.RETRY if life.state is ModelState.BACKOFF else Event.LOAD)
        self.loads += 1
        life.number += 1
        self.herd.spawned(model)
        self._later(0.0, self._spawned, model, life.number)

    def _spawned(self, model: str, number: int) -> None:
        if self.lives[model].number != number:
            return
        self._move(model, Event.SPAWNED)
        load_s = self.specs[model].load_s
        if self.chance.random() < self.troubles.load_fails:
            self._later(load_s * self.chance.random(), self._die, model, number)
        else:
            self._later(load_s, self._ready, model, number)

    def _ready(self, model: str, number: int) -> None:
        life = self.lives[model]
        if life.number != number or life.state is not ModelState.LOADING:
            return
        life.ready_at = self.now
        self.herd.loaded(model)
        self._move(model, Event.ANSWERED)
        if self.chance.random() < self.troubles.dies:
            self._later(self.chance.expovariate(1 / 30), self._die, model, number)

    def _exited(self, model: str, number: int) -> None:
        """A process that was told to go is gone; those it worked on for nobody are over with it."""
        life = self.lives[model]
        for ticket, job in tuple(life.running.items()):
            del life.running[ticket]
            self._end(job, job.outcome)
            self._carry_out(self.scheduler.depart(ticket, self.now))
        self._later(self.herd.gone(model, self.now), self._released, model, number)

    def _released(self, model: str, _number: int) -> None:
        self.herd.look(self.now)
        self._move(model, Event.EXITED)

    def _stalled(self, job: Job, ticket: Any, number: int) -> None:
        """Its client has been told that nothing comes; the process is given a while, and is ended."""
        life = self.lives[job.arrival.model]
        if life.running.pop(ticket, None) is not None:
            self._end(job, job.outcome or "failed")
            self._carry_out(self.scheduler.depart(ticket, self.now))
            self._later(PROBATION_S, self._die, job.arrival.model, number)

    def _die(self, model: str, number: int) -> None:
        """Nobody asked it to go. Who was there may come again once; who waited for its load is refused."""
        life = self.lives[model]
        if life.number != number or life.state in (ModelState.STOPPING, ModelState.OFF):
            return
        was_loading = life.state in (ModelState.STARTING, ModelState.LOADING)
        life.number += 1
        lived_s = 0.0 if was_loading else self.now - life.ready_at
        life.deaths = life.deaths.another(lived_s=lived_s)
        lost, life.running = life.running, {}
        self.herd.gone(model, self.now)
        self._move(model, Event.DIED)
        for ticket, job in lost.items():
            self._lose(job, ticket)
        if life.deaths.too_many:
            self._move(model, Event.GIVE_UP)
        if was_loading or life.state is ModelState.FAILED:
            self._carry_out(self.scheduler.refuse_waiting(model, errors.ModelFailed("died")))
        if life.state is ModelState.BACKOFF:
            self._later(life.deaths.pause_s(self.chance.random()), self._try_again, model)
        else:
            self._later(60.0, self._reset, model)

    def _lose(self, job: Job, ticket: Any) -> None:
        again = not job.outcome and job.tries == 1 and self.chance.random() < 0.5
        if again:
            self._by_ticket.pop(ticket)
            self._watch.departed(job)
        else:
            self._end(job, job.outcome or "failed")
        self._carry_out(self.scheduler.depart(ticket, self.now))
        if again:
            job.tries, job.granted_at = 2, None
            job.ticket = self.policy.Ticket(ticket.wish, ticket.arrived_at, ticket.deadline)
            self._queue(job)

    def _reset(self, model: str) -> None:
        self.lives[model].deaths = Deaths()
        self._move(model, Event.RESET)

    # The clock ---------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.herd.look(self.now)
        for ticket in self.scheduler.overdue(self.now):
            self._end(self._by_ticket[ticket], "refused")
            self._carry_out(self.scheduler.depart(ticket, self.now))
        self._carry_out(self.scheduler.unload_idle(self.now, self._idle_timeout_s))
        self._carry_out(self.scheduler.reconsider(self.now))
        self._ticks = self.scheduler.anybody_waits
        if self._ticks:
            self._later(TICK_S, self._tick)

    def _try_again(self, model: str) -> None:
        if self.lives[model].state is not ModelState.BACKOFF:
            return
        self.herd.look(self.now)
        if self.scheduler.depth(model):
            self._move(model, Event.STOP)
            return
        actions, again = self.scheduler.load_if_room(model, self.now)
        self._carry_out(actions)
        if again:
            self._later(TICK_S, self._try_again, model)
        elif not actions:
            self._move(model, Event.STOP)

    def unload_everything(self) -> None:
        """The end of a run: whoever is still loaded goes, and everything that follows from it happens."""
        for name, life in self.lives.items():
            if life.state is ModelState.READY:
                self._carry_out(self.scheduler.eject(name, self.now))
        while self._events:
            self.now, _number, act, arguments = heappop(self._events)
            act(*arguments)

    # What was seen -----------------------------------------------------------------------------

    def waits(self, chosen: Callable[[Job], bool] = lambda _: True) -> list[float]:
        return sorted(job.wait_s for job in self.jobs if chosen(job))


def quantile(values: Sequence[float], part: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(part * len(values)))] if values else 0.0
