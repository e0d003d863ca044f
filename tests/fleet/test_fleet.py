"""The fleet in good order: models come when they are wanted, and go; clients wait, are served, leave."""

from __future__ import annotations

import asyncio

import pytest

from corral import errors
from corral.fleet import EngineDied, EngineLost, Lease
from tests.fleet.herd import FIRST_PORT, Herd, play, with_herd
from tests.in_a_loop import turns

# A model comes and goes ---------------------------------------------------------------------------


@with_herd()
async def test_the_first_request_brings_its_model_and_is_served_when_it_answers(herd: Herd) -> None:
    herd.engines.is_slow = True
    client = herd.ask("a")
    assert (herd.state("a"), herd.fleet.queue.depth("a")) == ("starting", 1)
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
    assert (herd.fleet.queue.running("a"), herd.fleet.queue.depth("a")) == (2, 1)
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
    assert herd.state("a") == "ready"
    herd.pass_time(4.0)  # the price of a switch, four times: a second, as the size of its file has it
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


@with_herd()
async def test_a_preload_is_read_ahead_while_its_process_starts(herd: Herd) -> None:
    herd.fleet.preload(("a", "b"))
    await turns()
    assert herd.engines.warmed == ["a", "b"]
    herd.engines.of("a").answers()
    herd.engines.of("b").ends("exit code 1")
    await turns()
    assert herd.engines.warmed == [], "up, or dead: nobody needs it any more"


# Clients that leave -------------------------------------------------------------------------------


@with_herd()
async def test_a_client_that_leaves_the_queue_makes_way(herd: Herd) -> None:
    await herd.ready("a")
    first, second, third = (herd.ask("a") for _ in range(3))
    second.goes()
    assert herd.fleet.queue.depth("a") == 1
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
    assert (herd.fleet.queue.running("a"), leaving.is_served) == (1, False)
    leaving.goes()
    await turns()
    assert next_one.is_served
    next_one.finishes()


@with_herd()
async def test_a_model_that_dies_between_the_grant_and_the_turn_has_not_seen_the_request(
    herd: Herd,
) -> None:
    client = herd.ask("a")
    herd.engines.of("a").answers()
    herd.engines.of("a").ends()
    await turns()
    assert isinstance(client.error, EngineLost)
    assert "went away" in client.error.message
    assert (client.error.was_there, client.error.should_retry) == (False, None)


@with_herd(queue_max=1)
async def test_a_load_of_what_is_ready_needs_no_place_in_its_queue(herd: Herd) -> None:
    engine = await herd.ready("a")
    clients = [herd.ask("a"), herd.ask("a")]
    assert herd.ask("a").refusal(errors.QueueFull)
    assert await herd.fleet.load("a") == engine.address
    for client in clients:
        client.finishes()
        await turns()


def test_of_those_who_waited_too_long_each_is_told_even_if_one_cannot_be(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(herd: Herd) -> None:
        clients = [herd.ask("a") for _ in range(3)]
        depart, failures = herd.fleet.depart, [RuntimeError("a mistake of ours")]

        def departs(lease: Lease) -> None:
            depart(lease)
            if failures:
                raise failures.pop()

        monkeypatch.setattr(herd.fleet, "depart", departs)
        herd.pass_time(301.0)
        await turns()
        assert "a mistake of ours" in caplog.text
        for client in clients[1:]:
            client.refusal(errors.QueueTimeout)

    asyncio.run(play(Herd(monkeypatch), scenario))


@with_herd()
async def test_a_client_that_leaves_while_its_model_loads_leaves_the_model_loading(herd: Herd) -> None:
    herd.ask("a").goes()
    assert herd.state("a") == "loading"


@with_herd(models_max=1)
async def test_a_client_that_leaves_the_queue_takes_back_the_wish_for_room(herd: Herd) -> None:
    await herd.ready("a")
    busy, waiting = herd.ask("a"), herd.ask("b")
    herd.pass_time(4.0)
    assert herd.state("a") == "draining"
    waiting.goes()
    busy.finishes()
    herd.engines.of("a").ends("exit code 0")
    assert herd.states() == {"a": "off", "b": "off", "c": "off"}


@with_herd(queue_max=1)
async def test_a_full_queue_refuses_and_keeps_nothing_of_it(herd: Herd) -> None:
    await herd.ready("a")
    working, waiting = herd.ask("a"), herd.ask("a")
    refused = herd.ask("a")
    assert refused.refusal(errors.QueueFull).retry_after_s == pytest.approx(1.0)
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


# From the start -----------------------------------------------------------------------------------


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
async def test_a_preload_that_somebody_ejects_before_it_is_up_holds_up_nobody(herd: Herd) -> None:
    herd.fleet.preload(("a",))
    assert herd.fleet.eject("a")
    assert not herd.fleet.preload_settled
    herd.engines.of("a").ends("exit code 0")
    assert herd.state("a") == "off"
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
