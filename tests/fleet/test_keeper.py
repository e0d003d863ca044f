"""One process's life as its keeper reports it, with an engine that does what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from corral.drivers import tasks
from corral.fleet.engines import Engine, EngineDied
from corral.fleet.keeper import keep
from corral.fleet.managed import ManagedModel
from corral.formats.status import ModelState
from tests.fleet.herd import SOMEWHERE, FakeEngines, FakeMemory


class Book:
    """Writes down what is reported, and moves the model's state as the fleet would."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.slots: int | None = None

    def spawned(self, model: ManagedModel) -> None:
        self.lines.append("spawned")
        model.state = ModelState.LOADING

    def ready(self, model: ManagedModel, engine: Engine, slots: int | None) -> None:
        self.lines.append("ready")
        self.slots = slots
        model.state = ModelState.READY

    def stopped(self, model: ManagedModel) -> None:
        self.lines.append("stopped")

    def died(self, model: ManagedModel, how: str) -> None:
        self.lines.append(f"died: {how}")


class Stage:
    def __init__(self) -> None:
        self.model = ManagedModel("a", ModelState.STARTING, placement=SOMEWHERE)
        self.engines, self.memory, self.book = FakeEngines(), FakeMemory(), Book()
        self.memory.reserve("a", SOMEWHERE)

    def begins(self) -> asyncio.Future[None]:
        return tasks.outcome(keep(self.model, self.engines, self.memory, self.book))


def played(scenario: Callable[[Stage], Awaitable[None]]) -> Stage:
    async def main() -> Stage:
        stage = Stage()
        await asyncio.wait_for(scenario(stage), 10)
        return stage

    return asyncio.run(main())


def test_a_process_is_followed_from_its_start_to_the_return_of_its_memory() -> None:
    async def scenario(stage: Stage) -> None:
        kept = stage.begins()
        engine = stage.engines.of("a")
        assert stage.book.lines == ["spawned"]
        engine.total_slots = 3
        engine.answers()
        assert stage.book.lines == ["spawned", "ready"]
        assert stage.book.slots == 3
        stage.model.state = ModelState.STOPPING
        engine.ends("exit code 0")
        await kept

    stage = played(scenario)
    assert stage.book.lines == ["spawned", "ready", "stopped"]
    assert not stage.memory.holds("a")


def test_it_is_not_off_before_its_memory_has_come_back() -> None:
    async def scenario(stage: Stage) -> None:
        looks = 0

        def look() -> tuple[str, ...]:
            nonlocal looks
            looks += 1
            if looks == 3:
                stage.memory.held.clear()
            return ()

        stage.memory.gone = lambda model, *, reaped: None  # type: ignore[method-assign]
        stage.memory.look = look  # type: ignore[method-assign]
        kept = stage.begins()
        engine = stage.engines.of("a")
        engine.answers()
        stage.model.state = ModelState.STOPPING
        engine.ends("exit code 0")
        assert "stopped" not in stage.book.lines
        await kept
        assert looks == 3

    assert played(scenario).book.lines[-1] == "stopped"


@pytest.mark.parametrize("ready", [False, True], ids=["while it loads", "when it is ready"])
def test_a_death_is_reported_with_its_words(ready: bool) -> None:
    async def scenario(stage: Stage) -> None:
        kept = stage.begins()
        engine = stage.engines.of("a")
        if ready:
            engine.answers()
        engine.ends("killed by SIGKILL")
        await kept

    assert played(scenario).book.lines[-1] == "died: killed by SIGKILL"


def test_a_stop_that_is_asked_for_while_the_process_is_asked_for_its_slots_is_heard() -> None:
    async def scenario(stage: Stage) -> None:
        bell = tasks.Bell()

        async def slowly() -> int | None:
            await bell
            return 4

        kept = stage.begins()
        engine = stage.engines.of("a")
        engine.slots = slowly  # type: ignore[method-assign]
        engine.answers()
        stage.model.state = ModelState.STOPPING
        bell.ring()
        engine.ends("exit code 0")
        await kept

    assert played(scenario).book.lines == ["spawned", "stopped"]


def test_a_process_that_could_not_be_had_holds_no_memory() -> None:
    async def scenario(stage: Stage) -> None:
        stage.engines.refusal = EngineDied("no port is free")
        await stage.begins()

    stage = played(scenario)
    assert stage.book.lines == ["died: no port is free"]
    assert not stage.memory.holds("a")


def test_a_stop_that_was_asked_for_during_the_start_is_heard() -> None:
    async def scenario(stage: Stage) -> None:
        stage.engines.is_slow = True
        kept = stage.begins()
        stage.model.state = ModelState.STOPPING
        stage.engines.go_on()
        engine = stage.engines.of("a")
        assert engine.stops == 1
        engine.ends("killed by SIGTERM")
        await kept

    assert played(scenario).book.lines == ["stopped"]


def test_a_process_that_cannot_be_ended_keeps_its_memory() -> None:
    async def scenario(stage: Stage) -> None:
        stage.engines.is_slow = True
        stage.begins()
        stage.model.state = ModelState.STOPPING

        async def in_vain() -> bool:
            return False

        stage.engines.go_on()
        stage.engines.of("a").stop = in_vain  # type: ignore[method-assign]
        assert stage.memory.holds("a")

    played(scenario)


def test_a_mistake_of_ours_ends_the_process_and_is_a_death(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(stage: Stage) -> None:
        def spawned(model: ManagedModel) -> None:
            raise ZeroDivisionError

        stage.book.spawned = spawned  # type: ignore[method-assign]
        await stage.begins()
        assert stage.engines.of("a").stops == 1

    assert played(scenario).book.lines == ["died: Corral failed on it: ZeroDivisionError()"]
    assert "the keeper of a failed" in caplog.text
