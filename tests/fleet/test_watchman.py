"""The watchman's samples and verdicts, with an engine that does what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from corral import errors
from corral.drivers import clock, tasks
from corral.fleet.watchman import Watchman
from corral.formats.slots import Slot
from corral.policy.liveness import Sample

PATIENCE_S = 10.0


class Engine:
    """Busy with one task. It may stand still, stop answering, or fall ill."""

    def __init__(self) -> None:
        self.alive = True
        self.answers = True
        self.moves = True
        self.computes = False
        self.healthy = True
        self.samples = 0
        self.asked_for_health = 0
        self.killed = ""

    async def says_healthy(self) -> bool:
        self.asked_for_health += 1
        return self.healthy

    async def sample(self) -> Sample:
        self.samples += 1
        slots = (Slot(0, 7, self.samples if self.moves else 0),) if self.answers else None
        return Sample(clock.monotonic(), slots, self.samples * 1.0 if self.computes else 0.0, 0)

    def kill(self, reason: str) -> None:
        self.killed = reason
        self.alive = False


class Waiting:
    def __init__(self) -> None:
        self.verdict: str | errors.CorralError = ""
        self.told = asyncio.Event()

    def wait_on(self) -> None:
        self.verdict = "wait on"
        self.told.set()

    def give_up(self, error: errors.CorralError) -> None:
        self.verdict = error
        self.told.set()


def watchman(engine: Engine, **times: float) -> Watchman:
    usual = {"health_every_s": 0.01, "sample_gap_s": 0.005, "probation_s": 0.05}
    return Watchman("demo", engine, lambda: 1, **(usual | times))


def run(work: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        await asyncio.wait_for(work, PATIENCE_S)

    asyncio.run(main())


async def until(fact: Any) -> None:
    while not fact():
        await asyncio.sleep(0.001)


def test_a_silent_request_whose_slot_moves_waits_on() -> None:
    async def work() -> None:
        engine, waiting = Engine(), Waiting()
        watchman(engine).suspect(waiting)
        await waiting.told.wait()
        assert waiting.verdict == "wait on"
        assert engine.samples == 2

    run(work())


def test_a_request_that_stands_still_in_a_process_that_answers_is_given_up_alone() -> None:
    async def work() -> None:
        engine, waiting = Engine(), Waiting()
        engine.moves = False
        watchman(engine).suspect(waiting)
        await waiting.told.wait()
        assert isinstance(waiting.verdict, errors.UpstreamTimeout)
        assert "'demo' sent nothing" in waiting.verdict.message
        assert engine.samples == 2
        assert not engine.killed

    run(work())


def test_a_process_that_answers_nobody_but_computes_is_left_alone() -> None:
    async def work() -> None:
        engine, waiting = Engine(), Waiting()
        engine.answers, engine.computes = False, True
        watchman(engine).suspect(waiting)
        await waiting.told.wait()
        assert waiting.verdict == "wait on"

    run(work())


def test_a_process_that_does_nothing_for_all_of_its_probation_is_killed() -> None:
    async def work() -> None:
        engine, waiting = Engine(), Waiting()
        engine.answers = False
        began_at = clock.monotonic()
        watchman(engine).suspect(waiting)
        await waiting.told.wait()
        assert isinstance(waiting.verdict, errors.UpstreamTimeout)
        await until(lambda: engine.killed)
        assert "no answer and no progress" in engine.killed
        assert clock.monotonic() - began_at >= 0.05

    run(work())


def test_a_sign_of_life_ends_the_probation() -> None:
    async def work() -> None:
        engine, waiting = Engine(), Waiting()
        engine.answers = False
        watchman(engine, probation_s=60.0).suspect(waiting)
        await waiting.told.wait()
        await until(lambda: engine.samples >= 5)
        engine.answers = True
        samples = engine.samples
        await until(lambda: engine.samples > samples)
        samples = engine.samples
        await asyncio.sleep(0.03)  # nobody takes samples any more: that nothing happens can't be waited for
        assert engine.samples == samples
        assert not engine.killed

    run(work())


def test_several_suspicions_make_one_probation() -> None:
    async def work() -> None:
        engine = Engine()
        engine.answers = False
        guard = watchman(engine, probation_s=60.0)
        waiting = [Waiting() for _ in range(5)]
        for each in waiting:
            guard.suspect(each)
        for each in waiting:
            await each.told.wait()
        taken = engine.samples
        await until(lambda: engine.samples >= taken + 4)
        kept_up = engine.samples
        engine.alive = False
        await until(lambda: not guard._on_probation)
        assert engine.samples <= kept_up + 2

    run(work())


def test_its_health_is_asked_for_now_and_then_and_a_bad_answer_is_a_suspicion() -> None:
    async def work() -> None:
        engine = Engine()
        walk = tasks.outcome(watchman(engine).walk())
        await until(lambda: engine.asked_for_health >= 3)
        assert engine.samples == 0
        engine.healthy = engine.answers = False
        await until(lambda: engine.killed)
        await walk

    run(work())


def test_a_bad_health_of_a_process_that_works_is_no_reason_to_kill_it() -> None:
    async def work() -> None:
        engine = Engine()
        engine.healthy = False
        walk = tasks.outcome(watchman(engine).walk())
        await until(lambda: engine.asked_for_health >= 3)
        assert not engine.killed
        engine.alive = False
        await walk

    run(work())
