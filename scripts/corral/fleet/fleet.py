"""The fleet: the one door to a model, and the single writer of scheduler and lifecycle state.

Requests, processes, people and the clock report events; the fleet tells the scheduler and the lifecycle
table, and carries out what they answer. Between reading that state and changing it there is no `await`,
so no two events ever see the same free slot.

    with fleet.lease(wish) as lease:  # see lease.py for what comes next
        ... lease.address is a llama-server that is ready, and one of its slots is ours ...

A model that is wanted has a keeper: one coroutine that follows one process from its start to its end,
until its memory has come back. The keeper acts; what its reports mean, the table decides.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from corral import errors
from corral.drivers import clock, tasks
from corral.drivers.http_client import Address
from corral.fleet.abandoned import Abandoned
from corral.fleet.engines import Death, Engine, Engines
from corral.fleet.keeper import end, keep
from corral.fleet.lease import Lease
from corral.fleet.managed import ManagedModel, Memory, failure, queue_timeout, shutting_down, status
from corral.fleet.onlooker import Change, Gallery, Onlooker
from corral.fleet.preloading import Preloading
from corral.fleet.queue_view import QueueView
from corral.fleet.watchman import Watchman
from corral.formats.status import OFF, READY, ModelState, ModelStatus
from corral.metrics import Metrics
from corral.policy.lifecycle import RESIDENT, Deaths, Event, next_state
from corral.policy.placement import Placement
from corral.policy.plan import Plan
from corral.policy.scheduler import (
    Action,
    Drain,
    Grant,
    Load,
    ModelLimits,
    Refuse,
    Scheduler,
    Stop,
    Terms,
    Ticket,
    Usage,
    Wish,
)

log = logging.getLogger("corral.fleet")

TICK_S = 0.25
# After SIGTERM's and SIGKILL's own patience there is nothing left to hope for.
STOP_TIMEOUT_S = 30.0


class Fleet:
    def __init__(
        self,
        limits: Mapping[str, ModelLimits],
        engines: Engines,
        memory: Memory,
        metrics: Metrics,
        *,
        models_max: int,
        terms: Terms,
        idle_timeout_s: float | None,
        request_timeout_s: float,
        look_every_s: float,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._scheduler = Scheduler(limits, models_max, memory, terms, clock.monotonic())
        self._models = {name: ManagedModel(name) for name in limits}
        self.queue = QueueView(self._scheduler, limits)
        self._leases: dict[Ticket, Lease] = {}
        self._actions: deque[Action] = deque()
        self._is_acting = False
        self._engines = engines
        self.memory = memory
        self._metrics = metrics
        self._idle_timeout_s = idle_timeout_s
        self._queue_timeout_s = terms.queue_timeout_s
        self._request_timeout_s = request_timeout_s
        self._look_every_s, self._looked_at = look_every_s, 0.0
        self._on_change = on_change
        self._gallery = Gallery()
        self._closing = False
        self._preloading = Preloading(self._models, self._load_if_room)
        for model in self._models.values():
            model.publish(metrics)

    # From requests -----------------------------------------------------------------------------

    def lease(self, wish: Wish, asked_at: float | None = None) -> Lease:
        """A place in the queue. `asked_at`: since when the request has been waiting, if not since now."""
        arrived_at = clock.monotonic() if asked_at is None else asked_at
        return Lease(self, Ticket(wish, arrived_at, arrived_at + wish.patience_s(self._queue_timeout_s)))

    def arrive(self, lease: Lease) -> ManagedModel:
        if self._closing:
            raise shutting_down()
        ticket = lease.ticket
        model = self._models[ticket.model]
        if model.state is not READY:
            if model.state is ModelState.FAILED or (model.state is ModelState.BACKOFF and model.died_loading):
                raise failure(model)
            if model.state is OFF:
                self._engines.warm(model.name)
        self._leases[ticket] = lease
        actions = self._scheduler.arrive(ticket, clock.monotonic())
        if actions:
            self._carry_out(actions)
        return model

    def depart(self, lease: Lease) -> None:
        ticket, now = lease.ticket, clock.monotonic()
        if self._leases.pop(ticket, None) is None:
            return
        model = self._models[ticket.model]
        if lease.engine_goes_on and model.abandoned is not None and lease.engine.alive:
            model.abandoned.add(partial(self._forget, ticket, lease.usage))
            actions = self._scheduler.abandon(ticket, now)
        else:
            actions = self._scheduler.depart(ticket, now, lease.usage)
        if actions:
            self._carry_out(actions)
        if model.state is OFF and not self._scheduler.depth(ticket.model):
            self._engines.cool(ticket.model)

    def _forget(self, ticket: Ticket, usage: Usage | None) -> None:
        """The engine is through with an abandoned request."""
        self._carry_out(self._scheduler.depart(ticket, clock.monotonic(), usage))

    # What others may know ----------------------------------------------------------------------

    def state(self, model: str) -> ModelState:
        return self._models[model].state

    def position(self, ticket: Ticket) -> int:
        return self.queue.position(ticket)

    def statuses(self) -> dict[str, ModelStatus]:
        return {name: status(model, self.memory.held_bytes(name)) for name, model in self._models.items()}

    async def plan(self, models: Sequence[str]) -> list[Plan]:
        """What would become of a request for each of these. Nothing is changed, and nothing loaded."""
        await self.memory.study(models)
        return self.memory.plan(models, self._scheduler.outlook())

    def watch(self) -> AbstractContextManager[Onlooker]:
        """Follow every change from now on, until the end of the block."""
        return self._gallery.watch()

    @property
    def preload_settled(self) -> bool:
        return self._preloading.settled

    # From people -------------------------------------------------------------------------------

    def preload(self, names: tuple[str, ...]) -> None:
        """Load these at the start, as far as there is room for them; the others count as settled."""
        self._preloading.begin(names)
        self._announce()

    def _load_if_room(self, name: str) -> bool | None:
        """Whether a model that no request waits for is loaded; None: not now, but perhaps in a moment."""
        actions, again = self._scheduler.load_if_room(name, clock.monotonic())
        self._carry_out(actions)
        return None if again else bool(actions)

    async def load(self, name: str) -> Address:
        """Bring a model up, as a request for it would; when it is ready to serve, where."""
        model = self._models[name]
        if model.state is READY and model.engine is not None:
            return model.engine.address  # its queue may be full
        lease = self.lease(Wish(name, f"load of {name}"))
        try:
            self.arrive(lease)
            # Those who were there before get its slots, and this need not wait for one.
            await lease.granted(or_when=lambda: model.state is READY)
            model.hand_over(lease)
        finally:
            self.depart(lease)
        return lease.address

    def eject(self, name: str) -> bool:
        """Unload a model once what runs on it is through. False: there is nothing to unload."""
        model = self._models[name]
        if model.state in (ModelState.STARTING, ModelState.LOADING, ModelState.BACKOFF):
            self._move(model, Event.STOP)  # after a pause it would come back by itself
            return True
        if model.state is READY:
            self._carry_out(self._scheduler.eject(name, clock.monotonic()))
        return model.state in RESIDENT

    def reset(self, name: str) -> ManagedModel | None:
        """Forgive a model its deaths, so that it is tried again. What it was forgiven, or None."""
        model = self._models[name]
        if model.state not in (ModelState.FAILED, ModelState.BACKOFF):
            return None
        before = replace(model)
        model.deaths, model.died_loading, model.last_words = Deaths(), False, ""
        self._move(model, Event.RESET)
        return before

    def failed(self) -> list[ManagedModel]:
        """The models that were given up, or wait for their next try."""
        wrong = (ModelState.FAILED, ModelState.BACKOFF)
        return [replace(model) for model in self._models.values() if model.state in wrong]

    def limits_are(self, limits: Mapping[str, int | None]) -> None:
        """So many requests each of these keys may run at a time from now on, those that wait included."""
        self._carry_out(self._scheduler.limits_are(limits, clock.monotonic()))

    # From the clock ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at the fleet's own deadlines a few times a second, until it is stopped."""
        tick, closing = lambda: self.tick(clock.monotonic()), lambda: self._closing
        await tasks.every(TICK_S, tick, "the fleet's clock", until=closing)

    def tick(self, now: float) -> None:
        if self._closing:
            return
        for ticket in self._scheduler.overdue(now):
            try:
                self._refuse(ticket, queue_timeout(ticket, now, self._scheduler.depth(ticket.model) - 1))
            except Exception:  # what follows from one refusal must not keep the others waiting for ever
                log.exception("refusing request %s failed", ticket.wish.request_id)
        for model in self._models.values():
            if model.state is ModelState.BACKOFF and now >= model.retry_at:
                self._try_again(model)
        if self._idle_timeout_s is not None:
            self._carry_out(self._scheduler.unload_idle(now, self._idle_timeout_s))
        waited_for = self._scheduler.anybody_waits
        if self.memory.restless or waited_for or now - self._looked_at >= self._look_every_s:
            self._looked_at = now
            self.memory.look()
            self._carry_out(self._scheduler.reconsider(now))
            self._preloading.go_on()

    def _try_again(self, model: ManagedModel) -> None:
        """The pause after a death is over. Who waits for it may make room; else it must find some."""
        if self._scheduler.depth(model.name) or self._load_if_room(model.name) is False:
            self._move(model, Event.STOP)

    # Carrying out ------------------------------------------------------------------------------

    def _carry_out(self, actions: Sequence[Action]) -> None:
        """Do as was decided, in the order of the decisions: what an action leads to comes after the rest."""
        self._actions.extend(actions)
        if actions and not self._is_acting:
            self._is_acting = True
            try:
                while self._actions:
                    self._act(self._actions.popleft())
            finally:
                self._is_acting = False

    def _act(self, action: Action) -> None:
        match action:
            case Grant(ticket):
                self._leases[ticket].settle()
            case Refuse(ticket, error):
                self._refuse(ticket, error)
            case Load(name, placement):
                self._begin(self._models[name], placement)
            case Drain(name, reason):
                log.info("%s is unloaded (%s)", name, reason)
                self._metrics.model_evictions.labels(name, reason).inc()
                self._step(self._models[name], Event.DRAIN)
            case Stop(name):
                self._step(self._models[name], Event.DRAINED)

    def _begin(self, model: ManagedModel, placement: Placement) -> None:
        model.placement = placement
        if model.retry_at < math.inf:
            model.retry_at = math.inf
            self._metrics.model_restarts.labels(model.name).inc()
        self._step(model, Event.RETRY if model.state is ModelState.BACKOFF else Event.LOAD)

    def _refuse(self, ticket: Ticket, error: errors.CorralError) -> None:
        lease = self._leases.get(ticket)
        if lease is not None:
            self.depart(lease)
            lease.settle(error)

    def _move(self, model: ManagedModel, event: Event) -> None:
        """A step that the scheduler has not decided itself and must hear of."""
        self._step(model, event)
        self._carry_out(self._scheduler.model_is(model.name, model.state, clock.monotonic()))

    def _step(self, model: ManagedModel, event: Event) -> None:
        """One step in a model's life: by the table, then whatever the new state asks for."""
        model.state = next_state(model.state, event)
        model.publish(self._metrics)
        # Before the next state, into which what follows may lead within this very call.
        self._announce(Change(model.name, status(model, self.memory.held_bytes(model.name))))
        if model.state is ModelState.STARTING:
            model.load_began_at = clock.monotonic()
            tasks.spawn(keep(model, self._engines, self.memory, self), f"the keeper of {model.name}")
        elif model.state is OFF:
            model.settled = True  # ejected before it was up, or no more tries: nothing to wait for
        elif model.state is ModelState.STOPPING and model.engine is not None:
            tasks.spawn(end(model, model.engine, self.memory), f"the end of {model.name}")

    def _announce(self, *changes: Change) -> None:
        """Tell everybody who looks on; without a change, that something about the whole is new."""
        self._gallery.tell(*changes)
        self._on_change()

    # From processes ----------------------------------------------------------------------------

    def spawned(self, model: ManagedModel) -> None:
        self._move(model, Event.SPAWNED)

    def ready(self, model: ManagedModel, engine: Engine, slots: int | None) -> None:
        model.ready_at = clock.monotonic()
        model.settled = True
        self._engines.cool(model.name)
        if slots is not None:
            self._scheduler.slots_are(model.name, slots)
        watchman = model.watchman = Watchman(model.name, engine, lambda: self._scheduler.running(model.name))
        suspect, patience_s = watchman.suspect, self._request_timeout_s
        model.abandoned = Abandoned(model.name, engine, self._scheduler, suspect, patience_s)
        tasks.spawn(watchman.walk(), f"the watchman of {model.name}")
        seconds = model.ready_at - model.load_began_at
        self._metrics.model_load_seconds.labels(model.name).observe(seconds)
        log.info("%s is READY on port %d after %.2f s", model.name, engine.address.port, seconds)
        self._move(model, Event.ANSWERED)
        for ticket, lease in self._leases.items():
            if ticket.model == model.name:
                lease.settle()  # a load is through now, with or without a slot

    def stopped(self, model: ManagedModel) -> None:
        log.info("%s is off", model.name)
        self._end(model, Event.EXITED)

    def died(self, model: ManagedModel, how: str) -> None:
        """Nobody asked it to go. Pause and try again, or give up; tell those who waited for the load."""
        now = clock.monotonic()
        model.has_died(how, now, random.random())
        if self._is_curable(model):
            # Once more at once. Who waits, waits on.
            model.died_loading, model.retry_at, model.settled = False, now, False
        self.memory.gone(model.name, reaped=True)
        model.good_spell_s = 0.0
        log.warning("%s died (%d): %s", model.name, model.deaths.count, model.last_words)
        self._end(model, Event.DIED)
        if model.deaths.too_many:
            log.error("%s is given up after %d deaths", model.name, model.deaths.count)
            self._move(model, Event.GIVE_UP)
        if model.died_loading or model.state is ModelState.FAILED:
            self._carry_out(self._scheduler.refuse_waiting(model.name, failure(model)))

    def _end(self, model: ManagedModel, event: Event) -> None:
        """Its process is gone, and with it whatever it went on with that nobody waited for."""
        abandoned = model.lose_engine()
        self._move(model, event)
        if abandoned is not None:  # no sooner: the scheduler would grant the slots of a dead process
            abandoned.let_go()

    def _is_curable(self, model: ManagedModel) -> bool:
        """Whether what a load died of can be helped: another port, or everything idle out of the way."""
        death = model.engine.died_of() if model.died_loading and model.engine is not None else Death.OTHER
        if death is Death.MEMORY:
            log.warning("%s ran out of memory; more is reserved for it from now on", model.name)
            return self.memory.ran_out(model.name)
        return death is Death.PORT

    # The end -----------------------------------------------------------------------------------

    def refuse_waiting(self) -> None:
        """Take nobody new, and send away who waits: the first step of a stop."""
        self._closing = True
        for ticket in tuple(self._leases):
            if ticket.granted_at is None:
                self._refuse(ticket, shutting_down())
        self._announce()

    async def stop(self) -> None:
        """Stop every process, and return when all are gone."""
        self.refuse_waiting()
        for model in self._models.values():
            if model.state in RESIDENT and model.state is not ModelState.STOPPING:
                self._move(model, Event.STOP)
        deadline = clock.monotonic() + STOP_TIMEOUT_S
        while any(model.state in RESIDENT for model in self._models.values()):
            if clock.monotonic() >= deadline:
                log.error("some llama-servers can't be ended; they die with the gateway")
                return
            await asyncio.sleep(0.01)
