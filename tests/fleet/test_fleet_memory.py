"""The fleet and the guard: what it says is carried out, also when it changes its mind."""

from __future__ import annotations

import sys

from corral import errors
from corral.fleet import EngineDied
from corral.fleet.engines import Death
from corral.policy.guard import EvictFirst, Impossible, Place, Reason, Wait
from corral.policy.lifecycle import PAUSE_MAX_S
from tests.fleet.herd import SOMEWHERE, Herd, with_herd
from tests.in_a_loop import turns

LATER = Wait(Reason.RELEASING, ())
NEVER = Impossible("a", 1, 1, 1, 1, False, False, (), (), {})


@with_herd()
async def test_what_has_no_place_on_this_machine_is_refused_at_once(herd: Herd) -> None:
    herd.memory.says["a"] = NEVER
    error = herd.ask("a").refusal(errors.InsufficientVram)
    assert error.message == "no room for a"
    assert herd.state("a") == "off"


@with_herd()
async def test_all_who_wait_are_refused_when_their_place_turns_out_never_to_come(herd: Herd) -> None:
    herd.memory.says["a"] = LATER
    clients = [herd.ask("a") for _ in range(3)]
    assert all(client.waits for client in clients)
    herd.memory.says["a"] = NEVER
    herd.pass_time(0.25)
    await turns()
    for client in clients:
        client.refusal(errors.InsufficientVram)


@with_herd(queue_max=sys.getrecursionlimit())
async def test_a_long_queue_is_refused_as_easily_as_a_short_one(herd: Herd) -> None:
    herd.memory.says["a"] = LATER
    clients = [herd.ask("a") for _ in range(sys.getrecursionlimit())]
    herd.memory.says["a"] = NEVER
    herd.pass_time(0.25)
    await turns()
    assert all(isinstance(client.error, errors.InsufficientVram) for client in clients)


@with_herd(queue_max=sys.getrecursionlimit())
async def test_a_long_queue_of_a_model_that_dies_loading_is_refused_too(herd: Herd) -> None:
    clients = [herd.ask("a") for _ in range(sys.getrecursionlimit())]
    herd.engines.of("a").ends()
    await turns()
    assert all(isinstance(client.error, errors.ModelFailed) for client in clients)


@with_herd()
async def test_requests_that_run_are_no_reason_to_read_the_devices_all_the_time(herd: Herd) -> None:
    await herd.ready("a")
    client = herd.ask("a")
    herd.pass_time(5.0)
    looks = 0

    def look() -> tuple[str, ...]:
        nonlocal looks
        looks += 1
        return ()

    herd.memory.look = look  # type: ignore[method-assign]
    for _ in range(19):
        herd.pass_time(0.25)
    assert (client.is_served, looks) == (True, 0)
    herd.pass_time(0.25)
    assert looks == 1


@with_herd()
async def test_who_must_wait_for_memory_is_looked_at_with_every_reading(herd: Herd) -> None:
    herd.memory.says["a"] = LATER
    client = herd.ask("a")
    herd.pass_time(0.25)
    assert (herd.state("a"), client.waits) == ("off", True)
    herd.memory.says["a"] = Place(SOMEWHERE)
    herd.pass_time(0.25)
    assert herd.state("a") == "loading"


@with_herd()
async def test_idle_models_are_evicted_in_the_guards_order_before_the_load(herd: Herd) -> None:
    engine = await herd.ready("b")
    herd.memory.says["a"] = EvictFirst(("b",))
    herd.ask("a")
    assert (herd.state("b"), engine.stops) == ("stopping", 1)
    herd.memory.says["a"] = Place(SOMEWHERE)
    engine.ends("exit code 0")
    assert herd.states() == {"a": "loading", "b": "off", "c": "off"}


@with_herd()
async def test_a_place_is_reserved_before_the_start_and_given_back_after_the_end(herd: Herd) -> None:
    herd.engines.is_slow = True
    herd.ask("a")
    assert herd.memory.held == {"a"}
    herd.engines.refusal = EngineDied("no port is free")
    herd.engines.go_on()
    assert herd.memory.held == set()
    herd.engines.refusal = None
    herd.engines.is_slow = False
    herd.pass_time(PAUSE_MAX_S)
    herd.ask("a")
    assert herd.memory.held == {"a"}
    herd.engines.of("a").ends()
    assert herd.memory.held == set()


@with_herd()
async def test_a_preload_that_must_wait_its_turn_is_loaded_when_it_comes(herd: Herd) -> None:
    herd.memory.says["b"] = Wait(Reason.LOADING, ("a",))
    herd.fleet.preload(("a", "b"))
    herd.engines.of("a").answers()
    assert not herd.fleet.preload_settled
    herd.memory.says["b"] = Place(SOMEWHERE)
    herd.pass_time(60.0)
    herd.engines.of("b").answers()
    assert herd.fleet.preload_settled


@with_herd()
async def test_a_preload_without_a_place_counts_as_settled(herd: Herd) -> None:
    herd.memory.says["a"] = NEVER
    herd.fleet.preload(("a",))
    assert herd.fleet.preload_settled
    assert herd.state("a") == "off"


@with_herd()
async def test_a_death_for_want_of_memory_is_tried_once_more_at_once_and_who_waits_waits_on(
    herd: Herd,
) -> None:
    herd.memory.retries.add("a")
    herd.fleet.preload(("a",))
    client = herd.ask("a")
    herd.engines.of("a").death = Death.MEMORY
    herd.engines.of("a").ends()
    assert client.waits
    assert not herd.fleet.preload_settled
    herd.pass_time(0.0)
    assert herd.state("a") == "loading"
    herd.engines.of("a").answers()
    assert herd.fleet.preload_settled
    await turns()
    assert client.is_served


@with_herd()
async def test_a_preload_that_ran_out_of_memory_and_has_no_place_any_more_counts_as_settled(
    herd: Herd,
) -> None:
    herd.memory.retries.add("a")
    herd.fleet.preload(("a",))
    herd.engines.of("a").death = Death.MEMORY
    herd.engines.of("a").ends()
    herd.memory.says["a"] = NEVER
    assert not herd.fleet.preload_settled
    herd.pass_time(0.0)
    assert herd.state("a") == "off"
    assert herd.fleet.preload_settled
