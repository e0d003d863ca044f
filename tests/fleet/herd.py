"""A fleet whose processes, requests and clock are played by the test.

An engine here does nothing by itself: the test says when it has started, is ready, dies or is gone, and
the fleet hears of it within that very call. So every interleaving can be written down, in order.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from corral import errors
from corral.drivers import clock, tasks
from corral.drivers.http_client import Address
from corral.drivers.http_server import ClientGone
from corral.fleet import Engine, EngineDied, Fleet, Lease
from corral.formats import prometheus_text
from corral.formats.status import ModelState
from corral.metrics import Metrics
from corral.policy.scheduler import ModelLimits
from tests.in_a_loop import turns

FIRST_PORT = 9001
LOG_TAIL = ["loading", "no such tensor"]


class FakeEngine:
    def __init__(self, model: str, port: int) -> None:
        self.model = model
        self.address = Address("127.0.0.1", port)
        self.stops = 0
        self.tail = LOG_TAIL
        self._is_ready = False
        self._ending: str | None = None
        self._bell = tasks.Bell()

    # What the fleet needs ----------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self.address.port * 10

    async def until_ready(self) -> None:
        while not self._is_ready:
            if self._ending is not None:
                raise EngineDied(self._ending)
            await self._bell

    async def until_exit(self) -> str:
        while self._ending is None:
            await self._bell
        return self._ending

    async def stop(self) -> None:
        self.stops += 1

    def log_tail(self, lines: int) -> list[str]:
        return self.tail[-lines:]

    # What the test says ------------------------------------------------------------------------

    def answers(self) -> None:
        self._is_ready = True
        self._bell.ring()

    def ends(self, how: str = "exit code 1") -> None:
        self._ending = how
        self._bell.ring()

    @property
    def is_alive(self) -> bool:
        return self._ending is None


class FakeEngines:
    """Starts engines at once, unless told to take its time or to fail."""

    def __init__(self) -> None:
        self.started: list[FakeEngine] = []
        self.refusal: Exception | None = None
        self.is_slow = False
        self._bells: list[tasks.Bell] = []

    async def start(self, model: str) -> Engine:
        if self.is_slow:
            bell = tasks.Bell()
            self._bells.append(bell)
            await bell
        if self.refusal is not None:
            raise self.refusal
        engine = FakeEngine(model, FIRST_PORT + len(self.started))
        self.started.append(engine)
        return engine

    def go_on(self) -> None:
        """Let the oldest start that takes its time come to its end."""
        self._bells.pop(0).ring()

    def of(self, model: str) -> FakeEngine:
        """The newest engine of a model."""
        return next(engine for engine in reversed(self.started) if engine.model == model)


class Client:
    """A request: waits for its lease, and holds it until the test lets it go."""

    def __init__(self, fleet: Fleet, model: str, name: str = "request") -> None:
        self.lease: Lease | None = None
        self.error: BaseException | None = None
        self._fleet = fleet
        self._model = model
        self._name = name
        self._bell = tasks.Bell()
        self._strand = tasks.Strand(self._run(), self._ended)
        self._strand.step()

    async def _run(self) -> None:
        async with self._fleet.lease(self._model, self._name) as lease:
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
        queue_max: int = 10,
        pinned: tuple[str, ...] = (),
    ) -> None:
        self.now = 1000.0
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        self.engines = FakeEngines()
        self.metrics = Metrics("test", 0.0)
        self.changes = 0
        limits = models or {"a": 1, "b": 1, "c": 1}
        self.fleet = Fleet(
            {name: ModelLimits(slots, name in pinned, queue_max) for name, slots in limits.items()},
            self.engines,
            self.metrics,
            models_max=models_max,
            idle_timeout_s=idle_timeout_s,
            queue_timeout_s=queue_timeout_s,
            on_change=self._changed,
        )
        self.models = tuple(limits)

    def _changed(self) -> None:
        self.changes += 1

    def ask(self, model: str, name: str = "request") -> Client:
        return Client(self.fleet, model, name)

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
        """No place in a queue, no slot and no lease is left when every request is over."""
        assert {name: self.fleet.queue_depth(name) for name in self.models} == dict.fromkeys(self.models, 0)
        assert {name: self.fleet.running(name) for name in self.models} == dict.fromkeys(self.models, 0)
        assert self.fleet.active == 0
        assert not self.fleet._leases
        assert prometheus_text.render(self.metrics.families())


RESIDENT_WORDS = {
    state.value
    for state in (
        ModelState.STARTING,
        ModelState.LOADING,
        ModelState.READY,
        ModelState.DRAINING,
        ModelState.STOPPING,
    )
}
