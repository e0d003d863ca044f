"""The fleet in all weathers: arrivals, departures, deaths, stops and moods of the guard, as chance has it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from corral.fleet import EngineDied
from corral.policy.guard import Decision, EvictFirst, Impossible, Place, Reason, Wait
from corral.policy.lifecycle import RESIDENT
from tests.fleet.herd import SOMEWHERE, FakeEngine, Herd, play
from tests.in_a_loop import turns

RESIDENT_WORDS = {state.value for state in RESIDENT}


class Weather:
    """Arrivals, departures, starts, deaths and stops in an order that chance decides.

    Where the queue has no time limit worth the name, nobody is rescued from waiting for ever by the clock.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        self.luck = random.Random(seed)
        monkeypatch.setattr("corral.fleet.fleet.random.random", self.luck.random)
        self.slots = {name: self.luck.randint(1, 3) for name in "abcd"[: self.luck.randint(1, 4)]}
        self.models_max = self.luck.randint(1, 2)
        self.herd = Herd(
            monkeypatch,
            self.slots,
            models_max=self.models_max,
            idle_timeout_s=self.luck.choice([None, 20.0]),
            queue_timeout_s=self.luck.choice([60.0, 10.0**9]),
            queue_max=5,
        )
        self.herd.engines.is_slow = True
        self.moods = 0.0
        monkeypatch.setattr(self.herd.memory, "decide", self.decide)

    def check(self) -> None:
        resident = [name for name, word in self.herd.states().items() if word in RESIDENT_WORDS]
        assert len(resident) <= self.models_max
        for name, slots in self.slots.items():
            assert self.herd.fleet.queue.running(name) <= slots
            living = [engine for engine in self.engines() if engine.model == name]
            assert len(living) <= 1
            assert not living or name in resident

    def decide(self, model: str, idle: Sequence[str], busy: Sequence[str]) -> Decision:
        """The guard's word: a place, or one of its reasons to have none yet, or none ever."""
        if self.luck.random() >= self.moods:
            return Place(SOMEWHERE)
        if idle and self.luck.random() < 0.3:
            return EvictFirst((self.luck.choice(idle),))
        if self.luck.random() < 0.1:
            return Impossible(model, 1, 1, 1, 1, False, False, (), (), {})
        return Wait(self.luck.choice(list(Reason)), tuple(busy[:1]))

    def engines(self) -> list[FakeEngine]:
        return [engine for engine in self.herd.engines.started if engine.alive]

    async def happens(self, arrivals: float, faults: float) -> None:
        """One thing of each kind, or not; and sometimes a turn of the loop, in which the woken run."""
        luck, herd = self.luck, self.herd
        self.moods = faults
        if luck.random() < faults / 10:
            luck.choice([herd.fleet.eject, herd.fleet.reset])(luck.choice(herd.models))
        if luck.random() < arrivals:
            herd.ask(luck.choice(herd.models))
        if (clients := [client for client in herd.clients if not client.is_over]) and luck.random() < 0.4:
            client = luck.choice(clients)
            if client.is_served:
                client.finishes()
            elif luck.random() < faults:
                client.goes()
        if herd.engines.waiting and luck.random() < 0.4:
            herd.engines.refusal = EngineDied("no port") if luck.random() < faults else None
            herd.engines.go_on()
        if (engines := self.engines()) and luck.random() < 0.4:
            engine = luck.choice(engines)
            if engine.stops or luck.random() < faults:
                engine.ends()
            else:
                engine.answers()
        herd.pass_time(luck.choice([0.0, 0.1, 1.0]))
        self.check()
        if luck.random() < 0.5:
            await turns(1)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_no_slot_leaks_and_nobody_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    async def scenario(herd: Herd) -> None:
        for _ in range(300):
            await weather.happens(arrivals=0.4, faults=0.3)
        for _ in range(3000):
            # Good weather, and nobody new: in the end everybody has been served or refused.
            if all(client.is_over for client in herd.clients):
                return
            await weather.happens(arrivals=0.0, faults=0.0)
        raise AssertionError(f"somebody still waits: {herd.states()}")

    weather = Weather(monkeypatch, seed)
    asyncio.run(play(weather.herd, scenario))


@pytest.mark.parametrize("seed", range(20))
def test_the_end_may_come_at_any_moment(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    async def scenario(herd: Herd) -> None:
        for _ in range(weather.luck.randint(5, 60)):
            await weather.happens(arrivals=0.6, faults=0.2)
        await herd.stop()
        assert not weather.engines()
        # What still comes finds the fleet closed, and its clock may tick on.
        await weather.happens(arrivals=1.0, faults=0.0)
        assert not weather.engines()

    weather = Weather(monkeypatch, seed)
    asyncio.run(play(weather.herd, scenario))
