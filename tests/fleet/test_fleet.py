"""The fleet under every order of events that matters: loads, deaths, stops, clients that come and go."""

from __future__ import annotations

import asyncio
import random

import pytest

from corral import errors
from corral.drivers import tasks
from corral.fleet import EngineDied
from corral.policy.lifecycle import DEATHS_MAX, GOOD_SPELL_S, PAUSE_MAX_S, RESIDENT
from tests.fleet.herd import FIRST_PORT, FakeEngine, Herd, play, with_herd
from tests.in_a_loop import turns
from tests.waiting import eventually

RESIDENT_WORDS = {state.value for state in RESIDENT}


# A model comes and goes --------------------------------------------------------------------------


@with_herd()
async def test_the_first_request_brings_its_model_and_is_served_when_it_answers(herd: Herd) -> None:
    herd.engines.is_slow = True
    client = herd.ask("a")
    assert (herd.state("a"), herd.fleet.queue_depth("a")) == ("starting", 1)
    herd.engines.go_on()
    assert herd.state("a") == "loading"
    herd.now += 2.5
    herd.engines.of("a").answers()
    assert herd.state("a") == "ready"
    await turns()
    assert client.is_served
    assert client.lease is not None
    assert client.lease.address.port == FIRST_PORT
    assert client.lease.waited_s == 2.5
    assert herd.sample("router_model_load_seconds", model="a") == 1
    client.finishes()
    assert herd.state("a") == "ready"


@with_herd()
async def test_every_step_of_a_life_is_reported(herd: Herd) -> None:
    herd.engines.is_slow = True
    seen: list[str] = []
    herd.on_change = lambda: seen.append(herd.state("a"))
    herd.ask("a").goes()
    herd.engines.go_on()
    herd.engines.of("a").answers()
    herd.engines.of("a").ends()
    assert seen == ["starting", "loading", "ready", "backoff"]
    assert herd.sample("router_model_state", model="a", state="backoff") == 1
    assert herd.sample("router_model_state", model="a", state="ready") == 0


@with_herd({"a": 2})
async def test_requests_share_the_slots_and_the_next_one_gets_a_slot_that_comes_free(herd: Herd) -> None:
    clients = [herd.ask("a") for _ in range(4)]
    herd.engines.of("a").answers()
    await turns()
    assert [client.is_served for client in clients] == [True, True, False, False]
    clients[1].finishes()
    await turns()
    assert [client.is_served for client in clients] == [True, False, True, False]
    assert (herd.fleet.running("a"), herd.fleet.queue_depth("a")) == (2, 1)
    for client in (clients[0], clients[2]):
        client.finishes()
    await turns()
    clients[3].finishes()


@with_herd(idle_timeout_s=60.0)
async def test_an_idle_model_is_unloaded_after_its_time_and_not_before(herd: Herd) -> None:
    engine = await herd.ready("a")
    herd.pass_time(59.9)
    assert herd.state("a") == "ready"
    herd.pass_time(0.2)
    assert herd.state("a") == "stopping"
    assert engine.stops == 1
    engine.ends("exit code 0")
    assert herd.state("a") == "off"
    assert herd.sample("router_model_evictions_total", model="a", reason="idle") == 1
    assert herd.sample("router_model_restarts_total", model="a") is None


@with_herd({"a": 1, "b": 1}, idle_timeout_s=60.0, pinned=("b",))
async def test_a_model_that_works_or_is_pinned_is_not_idle(herd: Herd) -> None:
    await herd.ready("a")
    await herd.ready("b")
    client = herd.ask("a")
    herd.pass_time(1000.0)
    assert herd.states() == {"a": "ready", "b": "ready"}
    client.finishes()


@with_herd()
async def test_without_an_idle_time_a_model_stays(herd: Herd) -> None:
    await herd.ready("a")
    herd.pass_time(10**6)
    assert herd.state("a") == "ready"


@with_herd(models_max=1)
async def test_room_is_made_by_an_idle_model_and_the_waiting_one_follows(herd: Herd) -> None:
    old = await herd.ready("a")
    client = herd.ask("b")
    assert herd.states() == {"a": "stopping", "b": "off", "c": "off"}
    assert (old.stops, len(herd.engines.started)) == (1, 1)
    old.ends("exit code 0")
    assert herd.states() == {"a": "off", "b": "loading", "c": "off"}
    herd.engines.of("b").answers()
    await turns()
    assert client.is_served
    client.finishes()
    assert herd.sample("router_model_evictions_total", model="a", reason="room") == 1


@with_herd(models_max=1)
async def test_a_busy_model_makes_room_only_when_its_work_is_done(herd: Herd) -> None:
    old = await herd.ready("a")
    busy = herd.ask("a")
    waiting = herd.ask("b")
    late = herd.ask("a")
    assert (herd.state("a"), old.stops, busy.is_served, late.waits) == ("draining", 0, True, True)
    busy.finishes()
    assert (herd.state("a"), old.stops) == ("stopping", 1)
    old.ends("exit code 0")
    herd.engines.of("b").answers()
    await turns()
    assert waiting.is_served
    waiting.finishes()
    herd.engines.of("b").ends("exit code 0")
    herd.engines.of("a").answers()
    await turns()
    late.finishes()


@with_herd(models_max=1)
async def test_a_model_that_is_waited_for_is_read_ahead_and_one_that_nobody_wants_any_more_is_not(
    herd: Herd,
) -> None:
    engine = await herd.ready("a")
    busy, waiting = herd.ask("a"), herd.ask("b")
    assert herd.engines.warmed == ["b"]
    waiting.goes()
    assert herd.engines.warmed == []
    waiting = herd.ask("b")
    busy.finishes()
    engine.ends("exit code 0")
    herd.engines.of("b").answers()
    await turns()
    assert herd.engines.warmed == []
    waiting.finishes()


# Deaths ------------------------------------------------------------------------------------------


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


# Clients that leave ------------------------------------------------------------------------------


@with_herd()
async def test_a_client_that_leaves_the_queue_makes_way(herd: Herd) -> None:
    await herd.ready("a")
    first, second, third = (herd.ask("a") for _ in range(3))
    second.goes()
    assert herd.fleet.queue_depth("a") == 1
    first.finishes()
    await turns()
    assert third.is_served
    third.finishes()


@with_herd()
async def test_a_client_that_leaves_between_the_grant_and_its_turn_gives_the_slot_back(herd: Herd) -> None:
    leaving = herd.ask("a")
    next_one = herd.ask("a")
    herd.engines.of("a").answers()
    # Granted within that call; the request itself runs only in the loop's next turn.
    assert (herd.fleet.running("a"), leaving.is_served) == (1, False)
    leaving.goes()
    await turns()
    assert next_one.is_served
    next_one.finishes()


@with_herd()
async def test_a_model_that_dies_between_the_grant_and_the_turn_is_told_as_an_upstream_error(
    herd: Herd,
) -> None:
    client = herd.ask("a")
    herd.engines.of("a").answers()
    herd.engines.of("a").ends()
    await turns()
    assert "went away" in client.refusal(errors.UpstreamError).message


@with_herd()
async def test_a_client_that_leaves_while_its_model_loads_leaves_the_model_loading(herd: Herd) -> None:
    herd.ask("a").goes()
    assert herd.state("a") == "loading"


@with_herd(models_max=1)
async def test_a_client_that_leaves_the_queue_takes_back_the_wish_for_room(herd: Herd) -> None:
    await herd.ready("a")
    busy, waiting = herd.ask("a"), herd.ask("b")
    waiting.goes()
    busy.finishes()
    herd.engines.of("a").ends("exit code 0")
    assert herd.states() == {"a": "off", "b": "off", "c": "off"}


@with_herd(queue_max=1)
async def test_a_full_queue_refuses_and_keeps_nothing_of_it(herd: Herd) -> None:
    await herd.ready("a")
    working, waiting = herd.ask("a"), herd.ask("a")
    refused = herd.ask("a")
    assert refused.refusal(errors.QueueFull).retry_after_s == 1
    working.finishes()
    await turns()
    waiting.finishes()


@with_herd(queue_timeout_s=30.0)
async def test_waiting_ends_at_the_queues_time_limit(herd: Herd) -> None:
    await herd.ready("a")
    working = herd.ask("a")
    herd.now += 10.0
    early = herd.ask("a")
    herd.now += 10.0
    late = herd.ask("a")
    herd.pass_time(20.0)
    await turns()
    assert working.is_served
    message = early.refusal(errors.QueueTimeout).message
    assert message == (
        "No slot of 'a' came free within 30 s, and 1 more requests wait for it. Try again later."
    )
    assert late.waits
    working.finishes()
    await turns()
    late.finishes()


# From the start ----------------------------------------------------------------------------------


@with_herd(models_max=2)
async def test_preloads_come_as_far_as_there_is_room_and_then_count_as_settled(herd: Herd) -> None:
    assert herd.fleet.preload_settled
    herd.fleet.preload(("a", "b", "c"))
    assert herd.states() == {"a": "loading", "b": "loading", "c": "off"}
    assert not herd.fleet.preload_settled
    herd.engines.of("a").answers()
    assert not herd.fleet.preload_settled
    herd.engines.of("b").ends("exit code 1")
    assert herd.fleet.preload_settled


@with_herd(models_max=1)
async def test_a_preload_that_cannot_start_leaves_its_room_to_the_next(herd: Herd) -> None:
    herd.engines.refusal = EngineDied("there is no llama-server")
    herd.fleet.preload(("a", "b"))
    assert herd.states() == {"a": "backoff", "b": "backoff", "c": "off"}
    assert herd.fleet.preload_settled


@with_herd()
async def test_a_model_that_is_named_twice_is_preloaded_once(herd: Herd) -> None:
    herd.fleet.preload(("a", "a"))
    assert herd.state("a") == "loading"
    assert len(herd.engines.started) == 1
    herd.engines.of("a").answers()
    assert herd.fleet.preload_settled


@with_herd()
async def test_a_request_may_be_faster_than_the_preload(herd: Herd) -> None:
    client = herd.ask("a")
    herd.fleet.preload(("a",))
    assert not herd.fleet.preload_settled
    herd.engines.of("a").answers()
    await turns()
    assert herd.fleet.preload_settled
    client.finishes()


@with_herd()
async def test_the_statuses_show_what_runs_where_and_why_it_does_not(herd: Herd) -> None:
    await herd.ready("a")
    herd.ask("b")
    herd.engines.of("b").ends("exit code 1")
    statuses = herd.fleet.statuses()
    assert (statuses["a"].state.value, statuses["a"].port) == ("ready", FIRST_PORT)
    assert statuses["a"].extra == {"pid": FIRST_PORT * 10}
    assert statuses["b"].state.value == "backoff"
    assert statuses["b"].extra == {"detail": "exit code 1 | loading | no such tensor"}
    assert (statuses["c"].state.value, statuses["c"].port) == ("off", None)


# To the end --------------------------------------------------------------------------------------


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


# Chance ------------------------------------------------------------------------------------------


class Weather:
    """Arrivals, departures, starts, deaths and stops in an order that chance decides."""

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
            queue_timeout_s=60.0,
            queue_max=5,
        )
        self.herd.engines.is_slow = True

    def check(self) -> None:
        resident = [name for name, word in self.herd.states().items() if word in RESIDENT_WORDS]
        assert len(resident) <= self.models_max
        for name, slots in self.slots.items():
            assert self.herd.fleet.running(name) <= slots
            living = [engine for engine in self.engines() if engine.model == name]
            assert len(living) <= 1
            assert not living or name in resident

    def engines(self) -> list[FakeEngine]:
        return [engine for engine in self.herd.engines.started if engine.alive]

    async def happens(self, arrivals: float, faults: float) -> None:
        """One thing of each kind, or not; and sometimes a turn of the loop, in which the woken run."""
        luck, herd = self.luck, self.herd
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
