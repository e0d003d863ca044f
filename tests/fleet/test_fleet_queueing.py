"""The fleet and its queue: real slots, requests that are abandoned, limits of keys, and time limits."""

from __future__ import annotations

import asyncio

import pytest

from corral import errors
from corral.drivers import tasks
from corral.fleet.watchman import Waiting
from corral.formats.priority import Priority
from corral.formats.slots import Slot
from corral.policy.scheduler import ModelLimits, Usage, Wish
from tests.fleet.herd import Client, FakeEngine, Herd, play, with_herd
from tests.in_a_loop import turns


@pytest.fixture(autouse=True)
def _the_pause_between_looks_is_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corral.fleet.abandoned.LOOK_EVERY_S", 0.0)


# Slots -------------------------------------------------------------------------------------------


@with_herd({"a": 1})
async def test_a_model_has_the_slots_that_its_process_says(herd: Herd) -> None:
    clients = [herd.ask("a") for _ in range(4)]
    herd.engines.of("a").total_slots = 3
    herd.engines.of("a").answers()
    await turns()
    assert [client.is_served for client in clients] == [True, True, True, False]
    for client in clients:
        client.finishes()
        await turns()


@with_herd({"a": 2})
async def test_a_process_that_says_nothing_has_those_it_was_started_with(herd: Herd) -> None:
    clients = [herd.ask("a") for _ in range(3)]
    herd.engines.of("a").answers()
    await turns()
    assert [client.is_served for client in clients] == [True, True, False]
    for client in clients:
        client.finishes()
        await turns()


# Limits of keys ----------------------------------------------------------------------------------


@with_herd({"a": 2})
async def test_a_key_that_may_run_more_from_now_on_need_not_ask_again(herd: Herd) -> None:
    await herd.ready("a")
    first, second = (herd.ask("a", key_id="k", max_parallel=1) for _ in range(2))
    await turns()
    assert (first.is_served, second.waits) == (True, True)
    herd.fleet.limits_are({"k": 2})
    await turns()
    assert second.is_served
    first.finishes()
    second.finishes()


# Abandoned requests ------------------------------------------------------------------------------


async def abandoned(herd: Herd, busy: int = 1) -> tuple[FakeEngine, Client]:
    """A request that is not streamed, whose client has gone while its engine works on; and one that waits."""
    engine = await herd.ready("a")
    leaving = herd.ask("a")
    next_one = herd.ask("a")
    assert leaving.lease is not None
    leaving.lease.engine_goes_on = True
    engine.busy = busy
    leaving.goes()
    return engine, next_one


@with_herd()
async def test_an_abandoned_request_keeps_its_slot_until_its_engine_is_through(herd: Herd) -> None:
    engine, next_one = await abandoned(herd)
    await turns(10)
    assert next_one.waits
    assert (herd.fleet.queue.running("a"), herd.fleet.queue.active) == (1, 1)
    engine.busy = 0
    await turns(5)
    assert next_one.is_served
    next_one.finishes()


@with_herd()
async def test_a_stream_gives_its_slot_back_at_once(herd: Herd) -> None:
    await herd.ready("a")
    leaving, next_one = herd.ask("a"), herd.ask("a")
    leaving.goes()
    await turns()
    assert next_one.is_served
    next_one.finishes()


@with_herd({"a": 3})
async def test_several_on_one_engine_come_back_one_by_one(herd: Herd) -> None:
    engine = await herd.ready("a")
    leaving = [herd.ask("a") for _ in range(3)]
    waiting = [herd.ask("a") for _ in range(3)]
    in_vain = 3

    async def busy_slots() -> tuple[Slot, ...] | None:
        in_use = herd.fleet._scheduler.at_work("a", herd.now)
        return tuple(Slot(0, number, 0) for number in (*range(in_vain), *range(10, 10 + in_use)))

    engine.busy_slots = busy_slots  # type: ignore[method-assign]
    for client in leaving:
        assert client.lease is not None
        client.lease.engine_goes_on = True
        client.goes()
    for expected in ([False, False, False], [True, False, False], [True, True, False], [True, True, True]):
        herd.now += 1.0
        await turns(10)
        assert [client.is_served for client in waiting] == expected
        in_vain -= 1
    for client in waiting:
        client.finishes()


@with_herd()
async def test_an_engine_that_dies_gives_all_slots_back_at_once(herd: Herd) -> None:
    engine, next_one = await abandoned(herd)
    engine.ends("killed by SIGSEGV")
    assert herd.fleet.queue.running("a") == 0
    await turns(5)
    assert next_one.waits  # not granted a slot of the dead one
    herd.pass_time(5.0)
    herd.engines.of("a").answers()
    await turns()
    assert next_one.is_served
    next_one.finishes()


@with_herd()
async def test_a_request_whose_engine_has_died_is_no_abandoned_one(herd: Herd) -> None:
    engine = await herd.ready("a")
    client = herd.ask("a")
    assert client.lease is not None
    client.lease.engine_goes_on = True
    engine.ends()
    client.goes()
    assert herd.fleet.queue.running("a") == 0


@with_herd()
async def test_a_model_that_is_ejected_waits_for_no_abandoned_request(herd: Herd) -> None:
    engine, next_one = await abandoned(herd)
    next_one.goes()
    assert herd.fleet.eject("a")
    assert herd.state("a") == "stopping"
    engine.ends("exit code 0")
    assert (herd.state("a"), herd.fleet.queue.running("a")) == ("off", 0)


@with_herd()
async def test_what_the_engine_has_reported_of_an_abandoned_request_is_what_is_charged(herd: Herd) -> None:
    engine = await herd.ready("a")
    client = herd.ask("a", key_id="k", prompt_tokens=10)
    assert client.lease is not None
    client.lease.usage, client.lease.engine_goes_on, ticket = Usage(7, 4), True, client.lease.ticket
    engine.busy = 1
    client.goes()
    engine.busy = 0
    await turns(5)
    assert (ticket.released, ticket.charged) == (True, 15)


def test_an_engine_that_hangs_over_an_abandoned_request_is_the_watchmans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suspects: list[Waiting] = []

    async def scenario(herd: Herd) -> None:
        _, next_one = await abandoned(herd)
        await turns(5)
        herd.now += 119.9
        await turns(5)
        assert suspects == []
        herd.now += 0.1
        await turns(5)
        [suspect] = suspects
        suspect.wait_on()  # it works
        await turns(5)
        assert next_one.waits
        herd.now += 120.0
        await turns(5)
        suspects[1].give_up(errors.UpstreamTimeout("it does nothing"))
        await turns()
        assert next_one.is_served
        next_one.finishes()

    monkeypatch.setattr("corral.fleet.watchman.Watchman.suspect", lambda _self, who: suspects.append(who))
    asyncio.run(play(Herd(monkeypatch), scenario))


# Order and limits of keys ------------------------------------------------------------------------


@with_herd()
async def test_the_queue_goes_by_class_and_by_what_keys_have_had(herd: Herd) -> None:
    await herd.ready("a")
    running = herd.ask("a", key_id="greedy", prompt_tokens=1)
    waiting = {
        "low": herd.ask("a", key_id="low", priority=Priority.LOW),
        "greedy": herd.ask("a", key_id="greedy", prompt_tokens=1),
        "single": herd.ask("a", key_id="single", prompt_tokens=1),
        "high": herd.ask("a", key_id="high", priority=Priority.HIGH),
    }
    order = []
    for _ in range(4):
        running.finishes()
        await turns()
        [(name, running)] = [each for each in waiting.items() if each[1].is_served]
        order.append(name)
    assert order == ["high", "single", "greedy", "low"]
    running.finishes()


@with_herd()
async def test_what_the_engine_has_reported_is_what_the_key_is_charged(herd: Herd) -> None:
    await herd.ready("a")
    client = herd.ask("a", key_id="k", prompt_tokens=10)
    assert client.lease is not None
    client.lease.usage = Usage(7, 4)
    ticket = client.lease.ticket
    assert ticket.charged == 10 + 2 * 256
    client.finishes()
    assert ticket.charged == 15


@with_herd({"a": 2})
async def test_of_a_key_run_as_many_as_may_and_only_so_many_wait(herd: Herd) -> None:
    await herd.ready("a")
    running, waiting, refused = (herd.ask("a", key_id="k", max_parallel=1, max_waiting=1) for _ in range(3))
    assert (running.is_served, waiting.waits) == (True, True)
    error = refused.refusal(errors.ConcurrencyLimitExceeded)
    assert (error.status, error.code) == (429, "concurrency_limit_exceeded")
    assert error.retry_after_s == 0.5  # one a second in each of two slots, until more is known
    assert herd.ask("a", key_id="other").is_served
    running.finishes()
    await turns()
    assert waiting.is_served
    waiting.finishes()


@with_herd({"a": 1}, queue_max=2)
async def test_a_full_queue_says_to_each_when_to_come_back(herd: Herd) -> None:
    await herd.ready("a")
    clients = [herd.ask("a", prompt_tokens=1) for _ in range(3)]
    told = [herd.ask("a").refusal(errors.QueueFull).retry_after_s for _ in range(3)]
    assert [round(seconds or 0.0, 2) for seconds in told] == [1.0, 2.0, 2.0]
    herd.now += 4.0
    clients[0].finishes()  # so long does one take
    await turns()
    herd.ask("a")
    assert round(herd.ask("a").refusal(errors.QueueFull).retry_after_s or 0.0, 2) == 4.0
    for client in clients[1:]:
        client.finishes()
        await turns()


# Time limits -------------------------------------------------------------------------------------


@with_herd(queue_timeout_s=30.0)
async def test_who_is_willing_to_wait_less_waits_less_and_nobody_waits_more(herd: Herd) -> None:
    await herd.ready("a")
    running = herd.ask("a")
    hasty, patient = herd.ask("a", timeout_s=5.0), herd.ask("a", timeout_s=1000.0)
    herd.pass_time(4.9)
    assert hasty.waits
    herd.pass_time(0.2)
    await turns()
    error = hasty.refusal(errors.QueueTimeout)
    assert (error.status, error.code) == (504, "queue_timeout")
    assert "within 5 s, and 1 more requests wait" in error.message
    herd.pass_time(24.8)
    assert patient.waits
    herd.pass_time(0.2)
    await turns()
    patient.refusal(errors.QueueTimeout)
    running.finishes()


@with_herd(queue_timeout_s=30.0)
async def test_who_is_asked_again_for_has_waited_already(herd: Herd) -> None:
    await herd.ready("a")
    running = herd.ask("a")
    asked_at = herd.now - 29.0
    lease = herd.fleet.lease(Wish("a", "again"), asked_at)
    assert (lease.ticket.arrived_at, lease.ticket.deadline) == (asked_at, asked_at + 30.0)
    with lease:
        waiting = tasks.outcome(lease.granted())
        herd.pass_time(1.0)
        with pytest.raises(errors.QueueTimeout, match="within 30 s"):
            await waiting
    running.finishes()


def test_a_model_is_thought_to_load_as_fast_as_was_said_until_it_has_been_seen_to() -> None:
    assert ModelLimits(1, False, 10).load_s_guess == 1.0
