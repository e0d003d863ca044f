"""The scheduler in worlds of chance: processes start and stop, requests come, go and are abandoned."""

from __future__ import annotations

import random

import pytest

from corral.formats.priority import Priority
from corral.formats.status import ModelState
from corral.policy.scheduler import Action, Drain, Grant, Load, ModelLimits, Scheduler, Stop, Ticket, Usage
from tests.policy.scheduler.guarded import TERMS, Guarded, a_ticket


class World:
    """Carries out what the scheduler says, at random speed: processes start, stop and die."""

    def __init__(self, seed: int) -> None:
        self.luck = random.Random(seed)
        self.models_max = self.luck.randint(1, 3)
        limits = {
            name: ModelLimits(self.luck.randint(1, 3), False, 1000)
            for name in "abcde"[: self.luck.randint(1, 5)]
        }
        self.limits = limits
        # Nobody is rescued from waiting for ever by the time limit of the queue.
        self.herd = Scheduler(
            limits, self.models_max, Guarded(), TERMS._replace(queue_timeout_s=1e9), now=0.0
        )
        self.parallel = {f"key{number}": self.luck.choice((None, 1, 2)) for number in range(4)}
        self.states = dict.fromkeys(limits, ModelState.OFF)
        self.now = 0.0
        self.tickets: list[Ticket] = []
        self.granted: set[Ticket] = set()

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Grant(ticket):
                    assert self.states[ticket.model] is ModelState.READY
                    assert ticket not in self.granted
                    self.granted.add(ticket)
                case Load(model, _placement):
                    assert self.states[model] is ModelState.OFF
                    self.states[model] = ModelState.STARTING
                case Drain(model, _reason):
                    assert self.states[model] is ModelState.READY
                    self.states[model] = ModelState.DRAINING
                case Stop(model):
                    assert self.states[model] is ModelState.DRAINING
                    assert not self.herd.at_work(model, self.now)
                    self.states[model] = ModelState.STOPPING
        self.check()

    def becomes(self, model: str, state: ModelState) -> None:
        self.states[model] = state
        self.carry_out(self.herd.model_is(model, state, self.now))

    def check(self) -> None:
        resident = [name for name, state in self.states.items() if state is not ModelState.OFF]
        assert len(resident) <= self.models_max
        running = [ticket for ticket in self.granted if not ticket.released]
        for name, limits in self.limits.items():
            assert self.herd.running(name) == sum(ticket.model == name for ticket in running) <= limits.slots
        for key, most in self.parallel.items():
            assert most is None or sum(ticket.key_id == key for ticket in running) <= most

    def comes(self) -> None:
        key = self.luck.choice(list(self.parallel))
        ticket = a_ticket(
            self.luck.choice(list(self.limits)),
            self.now,
            key_id=key,
            priority=self.luck.choice(list(Priority)),
            max_parallel=self.parallel[key],
            prompt_tokens=self.luck.randint(0, 1000),
        )
        self.tickets.append(ticket)
        actions = self.herd.arrive(ticket, self.now)
        if ticket.granted_at is not None:
            assert not actions
            assert self.states[ticket.model] is ModelState.READY
            self.granted.add(ticket)
        self.carry_out(actions)

    def leaves(self) -> None:
        live = [ticket for ticket in self.tickets if not ticket.released]
        leaving = [ticket for ticket in live if ticket in self.granted or self.luck.random() < 0.02]
        if not leaving or self.luck.random() > 0.6:
            return
        ticket = self.luck.choice(leaving)
        if ticket in self.granted and self.luck.random() < 0.1:
            self.carry_out(self.herd.abandon(ticket, self.now))
            return
        usage = self.luck.choice((None, Usage(self.luck.randint(1, 1000), self.luck.randint(0, 500))))
        self.carry_out(self.herd.depart(ticket, self.now, usage))

    def step(self, arrivals: bool) -> None:
        self.now += self.luck.random()
        if arrivals and self.luck.random() < 0.5:
            self.comes()
        self.leaves()
        model = self.luck.choice(list(self.limits))
        following = {
            ModelState.STARTING: ModelState.LOADING,
            ModelState.LOADING: ModelState.READY,
            ModelState.STOPPING: ModelState.OFF,
        }.get(self.states[model])
        if following is not None:
            self.becomes(model, following)
        self.carry_out(self.herd.reconsider(self.now))


@pytest.mark.parametrize("seed", range(60))
def test_in_any_order_of_events_nobody_is_lost_and_no_limit_is_broken(seed: int) -> None:
    world = World(seed)
    for _ in range(150):
        world.step(arrivals=True)
    for _ in range(6000):
        if all(ticket.released for ticket in world.tickets):
            break
        world.step(arrivals=False)
    assert all(ticket.released for ticket in world.tickets)
    assert all(world.herd.depth(name) == 0 and world.herd.running(name) == 0 for name in world.limits)
    assert not world.herd.anybody_waits
    assert world.herd._keys == {}
