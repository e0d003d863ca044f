"""Processes that die, at every moment of their lives: who is told, what is tried again, and when no more."""

from __future__ import annotations

import pytest

from corral import errors
from corral.fleet import EngineDied
from corral.policy.lifecycle import DEATHS_MAX, GOOD_SPELL_S, PAUSE_MAX_S
from tests.fleet.herd import Herd, with_herd
from tests.in_a_loop import turns


@with_herd()
async def test_who_waits_for_a_model_that_cannot_start_learns_why_at_once(herd: Herd) -> None:
    herd.engines.refusal = EngineDied("no port is free")
    client = herd.ask("a")
    await turns()
    error = client.refusal(errors.ModelFailed)
    assert error.message == "'a' could not be loaded. Its last words: no port is free"
    assert error.retry_after_s == pytest.approx(1.0, rel=0.2)
    assert herd.state("a") == "backoff"


@with_herd()
async def test_everybody_who_waits_for_a_load_that_dies_hears_the_models_last_words(herd: Herd) -> None:
    clients = [herd.ask("a"), herd.ask("a")]
    herd.engines.of("a").ends("exit code 1")
    await turns()
    for client in clients:
        message = client.refusal(errors.ModelFailed).message
        assert message.endswith("exit code 1 | loading | no such tensor")
    herd.check_nothing_is_held()
    detail = herd.fleet.statuses()["a"].extra["detail"]
    assert detail == "exit code 1 | loading | no such tensor"


@with_herd()
async def test_after_a_failed_load_nobody_waits_in_vain(herd: Herd) -> None:
    herd.ask("a")
    herd.engines.of("a").ends()
    await turns()
    herd.now += 0.5
    late = herd.ask("a")
    error = late.refusal(errors.ModelFailed)
    assert error.retry_after_s == pytest.approx(0.5, abs=0.21)


@with_herd()
async def test_a_model_that_dies_at_work_comes_back_by_itself_and_its_queue_with_it(herd: Herd) -> None:
    engine = await herd.ready("a")
    working, waiting = herd.ask("a"), herd.ask("a")
    engine.ends("killed by SIGSEGV")
    assert herd.state("a") == "backoff"
    working.fails(errors.UpstreamError("gone"))
    late = herd.ask("a")
    assert waiting.waits
    assert late.waits
    herd.pass_time(1.3)
    assert herd.state("a") == "loading"
    herd.engines.of("a").answers()
    await turns()
    assert waiting.is_served
    waiting.finishes()
    await turns()
    late.finishes()
    assert herd.sample("router_model_restarts_total", model="a") == 1


@with_herd(models_max=1)
async def test_a_model_that_dies_while_it_drains_leaves_its_room_to_the_other(herd: Herd) -> None:
    engine = await herd.ready("a")
    busy, waiting = herd.ask("a"), herd.ask("b")
    engine.ends("killed by SIGKILL")
    assert herd.states() == {"a": "backoff", "b": "loading", "c": "off"}
    busy.fails(errors.UpstreamError("gone"))
    herd.engines.of("b").answers()
    await turns()
    waiting.finishes()
    herd.pass_time(1.3)
    # b has the room now, so a is not restarted behind its back.
    assert herd.states() == {"a": "off", "b": "ready", "c": "off"}
    assert herd.sample("router_model_restarts_total", model="a") is None


@with_herd(idle_timeout_s=10.0)
async def test_an_end_that_was_asked_for_is_no_death(herd: Herd) -> None:
    engine = await herd.ready("a")
    herd.pass_time(10.0)
    engine.ends("killed by SIGKILL")
    assert herd.state("a") == "off"
    herd.pass_time(100.0)
    assert herd.state("a") == "off"


@with_herd(idle_timeout_s=10.0)
async def test_only_a_start_that_follows_a_death_is_a_restart(herd: Herd) -> None:
    engine = await herd.ready("a")
    engine.ends("killed by SIGKILL")
    herd.pass_time(1.3)
    herd.engines.of("a").answers()
    assert herd.sample("router_model_restarts_total", model="a") == 1
    herd.pass_time(10.0)
    herd.engines.of("a").ends("exit code 0")
    await herd.ready("a")
    assert herd.sample("router_model_restarts_total", model="a") == 1


@with_herd()
async def test_the_pause_between_two_tries_grows_and_holds(herd: Herd) -> None:
    herd.ask("a")
    for pause_s in (1.0, 2.0, 4.0, 8.0):
        herd.engines.of("a").ends()
        assert herd.state("a") == "backoff"
        herd.pass_time(pause_s - 0.01)
        assert herd.state("a") == "backoff"
        herd.pass_time(pause_s * 0.2 + 0.02)
        assert herd.state("a") == "loading"


@with_herd()
async def test_five_deaths_in_a_row_are_the_end_and_refusals_come_at_once(herd: Herd) -> None:
    herd.ask("a")
    for _ in range(DEATHS_MAX - 1):
        herd.engines.of("a").ends()
        herd.pass_time(PAUSE_MAX_S)
    waiting = herd.ask("a")
    herd.engines.of("a").ends()
    assert herd.state("a") == "failed"
    await turns()
    error = waiting.refusal(errors.ModelFailed)
    assert "died 5 times in a row and was given up" in error.message
    assert error.retry_after_s is None
    assert error.should_retry is False
    assert "given up" in herd.ask("a").refusal(errors.ModelFailed).message
    herd.pass_time(10**6)
    assert herd.state("a") == "failed"
    assert len(herd.engines.started) == DEATHS_MAX
    assert herd.sample("router_model_restarts_total", model="a") == DEATHS_MAX - 1


@with_herd()
async def test_requests_that_wait_when_a_model_is_given_up_at_work_are_refused(herd: Herd) -> None:
    herd.ask("a")
    for _ in range(DEATHS_MAX - 1):
        herd.engines.of("a").ends()
        herd.pass_time(PAUSE_MAX_S)
    herd.engines.of("a").answers()
    working, waiting = herd.ask("a"), herd.ask("a")
    herd.engines.of("a").ends()
    working.fails(errors.UpstreamError("gone"))
    await turns()
    waiting.refusal(errors.ModelFailed)


@with_herd()
async def test_a_good_minute_forgives_earlier_deaths(herd: Herd) -> None:
    herd.ask("a").goes()
    for _ in range(2 * DEATHS_MAX):
        herd.engines.of("a").answers()
        herd.now += GOOD_SPELL_S
        herd.engines.of("a").ends()
        assert herd.state("a") == "backoff"
        herd.pass_time(1.3)


@with_herd(idle_timeout_s=GOOD_SPELL_S)
async def test_a_good_minute_counts_even_if_the_model_was_unloaded_after_it(herd: Herd) -> None:
    herd.ask("a").goes()
    for _ in range(DEATHS_MAX - 1):
        herd.engines.of("a").ends()
        herd.pass_time(PAUSE_MAX_S)
    herd.engines.of("a").answers()
    herd.ask("a").finishes()
    herd.pass_time(GOOD_SPELL_S)
    herd.engines.of("a").ends("exit code 0")
    assert herd.state("a") == "off"
    herd.ask("a")
    herd.engines.of("a").ends()
    assert herd.state("a") == "backoff"


@with_herd(idle_timeout_s=1.0)
async def test_time_spent_unloaded_is_no_good_minute(herd: Herd) -> None:
    herd.ask("a").goes()
    for _ in range(DEATHS_MAX - 1):
        herd.engines.of("a").ends()
        herd.pass_time(PAUSE_MAX_S)
    herd.engines.of("a").answers()
    herd.ask("a").finishes()
    herd.pass_time(1.0)
    herd.engines.of("a").ends("exit code 0")
    herd.now += 10 * GOOD_SPELL_S
    herd.ask("a")
    herd.engines.of("a").ends()
    assert herd.state("a") == "failed"


@with_herd()
async def test_a_keeper_that_stumbles_counts_as_a_death_and_nobody_hangs(herd: Herd) -> None:
    herd.engines.refusal = KeyError("a bug")
    client = herd.ask("a")
    await turns()
    assert "a bug" in client.refusal(errors.ModelFailed).message
    assert herd.state("a") == "backoff"
    herd.engines.refusal = None
    herd.pass_time(1.3)
    assert herd.state("a") == "loading"
