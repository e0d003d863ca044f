"""The end of the fleet: nobody waits, nothing is started any more, and no process is left."""

from __future__ import annotations

import asyncio

import pytest

from corral import errors
from corral.drivers import tasks
from corral.fleet import EngineDied
from corral.policy.lifecycle import DEATHS_MAX, PAUSE_MAX_S
from tests.fleet.herd import Herd, play, with_herd
from tests.in_a_loop import turns
from tests.waiting import eventually


@with_herd()
async def test_a_drain_sends_the_waiting_away_and_lets_the_running_finish(herd: Herd) -> None:
    await herd.ready("a")
    running, waiting, loading = herd.ask("a"), herd.ask("a"), herd.ask("b")
    herd.fleet.refuse_waiting()
    await turns()
    for client in (waiting, loading, herd.ask("a"), herd.ask("c")):
        assert client.refusal(errors.ShuttingDown).retry_after_s == 5
    assert running.is_served
    running.finishes()
    herd.check_nothing_is_held()
    await herd.stop()
    assert herd.states() == {"a": "off", "b": "off", "c": "off"}


@with_herd(models_max=1)
async def test_a_stop_without_a_drain_leaves_nobody_waiting_and_nothing_running(herd: Herd) -> None:
    engine = await herd.ready("a")
    running, waiting, other = herd.ask("a"), herd.ask("a"), herd.ask("b")
    await herd.stop()
    assert engine.stops == 1
    running.fails(errors.UpstreamError("the backend was stopped"))
    assert waiting.refusal(errors.ShuttingDown)
    assert other.refusal(errors.ShuttingDown)
    assert herd.states() == {"a": "off", "b": "off", "c": "off"}
    assert len(herd.engines.started) == 1


@pytest.mark.parametrize(
    "state", ["starting", "loading", "ready", "draining", "stopping", "backoff", "failed"]
)
def test_a_fleet_can_be_stopped_whatever_its_model_does(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    async def scenario(herd: Herd) -> None:
        await brought_to(herd, state)
        assert herd.state("a") == state
        await herd.stop()
        assert herd.state("a") == (state if state in ("backoff", "failed") else "off")

    asyncio.run(play(Herd(monkeypatch, models_max=1, idle_timeout_s=1000.0), scenario))


async def brought_to(herd: Herd, state: str) -> None:
    """Bring the model `a` into a state."""
    if state in ("starting", "loading"):
        herd.engines.is_slow = state == "starting"
        herd.ask("a")
    elif state in ("backoff", "failed"):
        herd.ask("a")
        for _ in range(DEATHS_MAX if state == "failed" else 1):
            herd.pass_time(PAUSE_MAX_S)
            herd.engines.of("a").ends()
    else:
        await herd.ready("a")
        if state == "draining":
            herd.ask("a")
            herd.ask("b")
            herd.pass_time(4.0)
        elif state == "stopping":
            herd.pass_time(1000.0)


@with_herd()
async def test_once_the_end_has_begun_no_dead_model_is_started_again(herd: Herd) -> None:
    engine = await herd.ready("a")
    engine.ends("killed by SIGKILL")
    herd.fleet.refuse_waiting()
    herd.pass_time(PAUSE_MAX_S)
    assert herd.state("a") == "backoff"
    assert len(herd.engines.started) == 1


@with_herd()
async def test_a_start_that_fails_while_it_is_being_stopped_is_simply_off(herd: Herd) -> None:
    herd.engines.is_slow = True
    herd.ask("a")
    stopped = tasks.outcome(herd.fleet.stop())
    herd.engines.refusal = EngineDied("no process could be started")
    herd.engines.go_on()
    await stopped
    assert herd.state("a") == "off"
    assert herd.sample("router_model_restarts_total", model="a") is None


def test_the_fleets_clock_ticks_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corral.fleet.fleet.TICK_S", 0.0)

    async def scenario(herd: Herd) -> None:
        running = tasks.outcome(herd.fleet.run())
        await herd.ready("a")
        herd.now += 60.0
        await eventually(lambda: herd.state("a") == "stopping", "a is unloaded for being idle")
        await herd.stop()
        await running

    asyncio.run(play(Herd(monkeypatch, idle_timeout_s=60.0), scenario))


def test_a_tick_that_fails_is_not_the_last_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("corral.fleet.fleet.TICK_S", 0.0)

    async def scenario(herd: Herd) -> None:
        looks = 0

        def look() -> tuple[str, ...]:
            nonlocal looks
            looks += 1
            if looks == 1:
                raise OSError("no such device")
            return ()

        monkeypatch.setattr(herd.memory, "look", look)
        running = tasks.outcome(herd.fleet.run())
        herd.ask("a")
        await eventually(lambda: looks > 1, "the clock goes on")
        await herd.stop()
        await running

    asyncio.run(play(Herd(monkeypatch), scenario))
    assert "the fleet's clock: a turn failed" in caplog.text
