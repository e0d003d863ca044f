"""A fleet whose processes, requests and clock are played by the test.

An engine here does nothing by itself: the test says when it has started, is ready, dies or is gone, and
the fleet hears of it within that very call. So every interleaving can be written down, in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import pytest

from corral import errors
from corral.drivers import clock, tasks
from corral.drivers.http_client import Address
from corral.drivers.http_server import ClientGone
from corral.fleet import Engine, EngineDied, Fleet, Lease
from corral.fleet.engines import Death
from corral.formats.slots import Slot
from corral.metrics import Metrics
from corral.policy.guard import Decision, Impossible, Place
from corral.policy.liveness import Sample
from corral.policy.memory_report import Report
from corral.policy.placement import Kind, Placement
from corral.policy.plan import Plan
from corral.policy.scheduler import ModelLimits, Outlook, Terms, Wish
from tests.in_a_loop import DEADLINE_S, turns
from tests.waiting import eventually

FIRST_PORT = 9001
LOG_TAIL = ["loading", "no such tensor"]


SOMEWHERE = Placement(Kind.CPU, 0, (), (), 1)


class FakeEngine:
    def __init__(self, model: str, port: int) -> None:
        self.model = model
        self.address = Address("127.0.0.1", port)
        self.stops = 0
        self.stopped = False
        self.alive = True
        self.death = Death.OTHER
        self.total_slots: int | None = None  # as it says itself
        self.busy = 0  # on so many tasks, the same ones as long as it is not fewer
        self._is_ready = False
        self._ending = ""
        self._bell = tasks.Bell()

    # What the fleet needs ----------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self.address.port * 10

    async def until_ready(self) -> None:
        while not self._is_ready:
            if not self.alive:
                raise EngineDied(self._ending)
            await self._bell

    async def slots(self) -> int | None:
        return self.total_slots

    async def busy_slots(self) -> tuple[Slot, ...] | None:
        return tuple(Slot(number, number, 0) for number in range(self.busy))

    async def until_exit(self) -> str:
        while self.alive:
            await self._bell
        return self._ending

    async def stop(self) -> bool:
        self.stops += 1
        self.stopped = True
        return True

    def died_of(self) -> Death:
        return self.death

    async def says_healthy(self) -> bool:
        return self._is_ready

    async def sample(self) -> Sample:
        return Sample(clock.monotonic(), (), 0.0, 0)

    def kill(self, reason: str) -> None:
        self.ends(reason)

    def log_tail(self, lines: int) -> list[str]:
        return LOG_TAIL[-lines:]

    # What the test says ------------------------------------------------------------------------

    def answers(self) -> None:
        self._is_ready = True
        self._bell.ring()

    def ends(self, how: str = "exit code 1") -> None:
        self.alive = False
        self._ending = how
        self._bell.ring()


class FakeEngines:
    """Starts engines at once, unless told to take its time or to fail."""

    def __init__(self) -> None:
        self.started: list[FakeEngine] = []
        self.warmed: list[str] = []
        self.refusal: Exception | None = None
        self.is_slow = False
        self._bells: list[tasks.Bell] = []

    def warm(self, model: str) -> None:
        self.warmed.append(model)

    def cool(self, model: str) -> None:
        self.warmed = [name for name in self.warmed if name != model]

    async def start(self, model: str, placement: Placement) -> Engine:
        if self.is_slow:
            bell = tasks.Bell()
            self._bells.append(bell)
            await bell
        if self.refusal is not None:
            raise self.refusal
        engine = FakeEngine(model, FIRST_PORT + len(self.started))
        self.started.append(engine)
        return engine

    @property
    def waiting(self) -> int:
        return len(self._bells)

    def go_on(self) -> None:
        """Let the oldest start that takes its time come to its end."""
        self._bells.pop(0).ring()

    def of(self, model: str) -> FakeEngine:
        """The newest engine of a model."""
        return [engine for engine in self.started if engine.model == model][-1]


class FakeMemory:
    """Has room for everything, unless the test says otherwise, and gives back what nobody holds."""

    restless = False

    def __init__(self) -> None:
        self.says: dict[str, Decision] = {}
        self.held: set[str] = set()
        self.retries: set[str] = set()

    def decide(self, model: str, idle: Sequence[str], busy: Sequence[str]) -> Decision:
        return self.says.get(model, Place(SOMEWHERE))

    def reserve(self, model: str, placement: Placement) -> None:
        assert model not in self.held
        self.held.add(model)

    def relieve(self, idle: Sequence[str]) -> Sequence[str]:
        return ()

    def refusal(self, impossible: Impossible) -> errors.CorralError:
        return errors.InsufficientVram(f"no room for {impossible.model}")

    def spawned(self, model: str, pid: int) -> None:
        assert model in self.held

    def loaded(self, model: str) -> None:
        assert model in self.held

    def stopping(self, model: str) -> None:
        assert model in self.held

    def ran_out(self, model: str) -> bool:
        return model in self.retries

    def gone(self, model: str, *, reaped: bool) -> None:
        if reaped:
            self.held.discard(model)

    def never_started(self, model: str) -> None:
        self.held.discard(model)

    def holds(self, model: str) -> bool:
        return model in self.held

    def held_bytes(self, model: str) -> int:
        return 0

    def look(self) -> Sequence[str]:
        return ()

    async def study(self, models: Iterable[str]) -> None:
        pass

    def plan(self, models: Iterable[str], outlook: Outlook) -> list[Plan]:
        return []

    def report(self) -> Report:
        return Report((), (), None)

    def publish(self) -> None:
        pass


class Client:
    """A request: waits for its lease, and holds it until the test lets it go."""

    def __init__(self, fleet: Fleet, wish: Wish) -> None:
        self.lease: Lease | None = None
        self.error: BaseException | None = None
        self._fleet = fleet
        self._wish = wish
        self._bell = tasks.Bell()
        self._strand = tasks.Strand(self._run(), self._ended)
        self._strand.step()

    async def _run(self) -> None:
        with self._fleet.lease(self._wish) as lease:
            if lease.waits:
                await lease.granted()
            lease.open()
            self.lease = lease
            await self._bell

    def _ended(self, error: BaseException | None) -> None:
        self.error = error

    @property
    def waits(self) -> bool:
        return self.lease is None and not self._strand.done

    @property
    def is_served(self) -> bool:
        return self.lease is not None and not self._strand.done

    @property
    def is_over(self) -> bool:
        return self._strand.done

    def finishes(self) -> None:
        self._bell.ring()

    def goes(self) -> None:
        """The client has closed its connection."""
        self._strand.throw(ClientGone())

    def fails(self, error: Exception) -> None:
        self._strand.throw(error)

    def refusal(self, kind: type[errors.CorralError]) -> errors.CorralError:
        assert isinstance(self.error, kind), self.error
        return self.error


class Herd:
    """The fleet, and the strings by which a test pulls it. Models are given with their slots."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        models: Mapping[str, int] | None = None,
        *,
        models_max: int = 2,
        idle_timeout_s: float | None = None,
        queue_timeout_s: float = 300.0,
        min_residency_s: float = 20.0,
        queue_max: int = 10,
        pinned: tuple[str, ...] = (),
    ) -> None:
        self.now = 1000.0
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        self.engines = FakeEngines()
        self.metrics = Metrics("test", 0.0)
        self.on_change: Callable[[], None] = lambda: None
        limits = models or {"a": 1, "b": 1, "c": 1}
        self.memory = FakeMemory()
        self.fleet = Fleet(
            {name: ModelLimits(slots, name in pinned, queue_max) for name, slots in limits.items()},
            self.engines,
            self.memory,
            self.metrics,
            models_max=models_max,
            idle_timeout_s=idle_timeout_s,
            terms=Terms(30.0, min_residency_s, queue_timeout_s),
            request_timeout_s=120.0,
            look_every_s=5.0,
            on_change=lambda: self.on_change(),
        )
        self.models = tuple(limits)
        self.clients: list[Client] = []

    def ask(self, model: str, name: str = "request", **wishes: Any) -> Client:
        self.now += 0.001  # nobody comes in the same instant as somebody else
        client = Client(self.fleet, Wish(model, name, **wishes))
        self.clients.append(client)
        return client

    async def ready(self, model: str) -> FakeEngine:
        """Have the model loaded by a request that is then over; its engine."""
        client = self.ask(model)
        self.engines.of(model).answers()
        await turns()
        client.finishes()
        return self.engines.of(model)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.fleet.tick(self.now)

    def states(self) -> dict[str, str]:
        return {name: self.fleet.state(name).value for name in self.models}

    def state(self, model: str) -> str:
        return self.fleet.state(model).value

    def sample(self, name: str, **labels: str) -> float | None:
        """A number of the metrics, None if it was never counted."""
        for family in self.metrics.families():
            for sample_labels, reading in family[3]:
                if family[0] == name and dict(sample_labels) == labels:
                    return reading if isinstance(reading, float | int) else float(sum(reading[1]))
        return None

    def check_nothing_is_held(self) -> None:
        """When every request is over, no place in a queue, no slot and no lease is left."""
        assert all(client.is_over for client in self.clients)
        assert {name: self.fleet.queue.depth(name) for name in self.models} == dict.fromkeys(self.models, 0)
        assert {name: self.fleet.queue.running(name) for name in self.models} == dict.fromkeys(self.models, 0)
        assert self.fleet.queue.active == 0
        assert not self.fleet._leases

    async def stop(self) -> None:
        """Stop the fleet. Processes that are told to end do so, and starts come to theirs."""
        stopped = tasks.outcome(self.fleet.stop())

        def has_stopped() -> bool:
            self._let_end()
            return stopped.done()

        await eventually(has_stopped, "the fleet has stopped")
        await stopped

    def _let_end(self) -> None:
        while self.engines.waiting:
            self.engines.go_on()
        for engine in self.engines.started:
            if engine.stops and engine.alive:
                engine.ends("exit code 0")

    async def close(self) -> None:
        """Everybody goes, everything ends."""
        for client in self.clients:
            client.goes()
        await turns()
        await self.stop()


Scenario = Callable[[Herd], Coroutine[Any, Any, None]]


def play(herd: Herd, scenario: Scenario) -> Coroutine[Any, Any, None]:
    """The scenario; then everybody who is still there leaves, and nothing may be left of them."""

    async def played() -> None:
        try:
            await scenario(herd)
        finally:
            await herd.close()
        herd.check_nothing_is_held()
        assert not any(engine.alive for engine in herd.engines.started)

    return asyncio.wait_for(played(), DEADLINE_S)


def with_herd(
    models: Mapping[str, int] | None = None, **options: Any
) -> Callable[[Scenario], Callable[[pytest.MonkeyPatch], None]]:
    """A test of a herd. Whatever else it asserts, at its end no slot may have leaked."""

    def decorate(scenario: Scenario) -> Callable[[pytest.MonkeyPatch], None]:
        def test(monkeypatch: pytest.MonkeyPatch) -> None:
            asyncio.run(play(Herd(monkeypatch, models, **options), scenario))

        return test

    return decorate
