"""How the queues stand: figures of a model, and those who wait, in the order of their turns."""

from __future__ import annotations

from corral.formats.priority import Priority
from tests.fleet.herd import Herd, with_herd
from tests.in_a_loop import turns


@with_herd({"a": 1, "b": 2})
async def test_what_waits_and_what_runs_is_counted_by_model_and_in_all(herd: Herd) -> None:
    for name in "ab":
        await herd.ready(name)
    for name in ("a", "a", "b", "b", "b"):
        herd.ask(name)
    queue = herd.fleet.queue
    assert [(queue.depth(name), queue.running(name)) for name in "ab"] == [(1, 1), (1, 2)]
    assert queue.active == 3
    herd.now += 5.0
    stats = queue.stats("a")
    assert (stats.waiting, stats.running, stats.slots, round(stats.oldest_wait_s)) == (1, 1, 1, 5)
    assert (stats.arrived, stats.served, stats.refused) == (3, 1, 0)


@with_herd()
async def test_those_who_wait_are_told_in_the_order_of_their_turns(herd: Herd) -> None:
    await herd.ready("a")
    herd.ask("a", key_id="first")
    low = herd.ask("a", "low", key_id="low", priority=Priority.LOW)
    normal = herd.ask("a", "normal", key_id="normal")
    high = herd.ask("a", "high", key_id="high", priority=Priority.HIGH)
    herd.now += 2.0
    waiters = herd.fleet.queue.waiters("a", lambda _: True)
    assert [(each.ticket.wish.request_id, each.position) for each in waiters] == [
        ("high", 1),
        ("normal", 2),
        ("low", 3),
    ]
    assert [round(each.waited_s, 1) for each in waiters] == [2.0, 2.0, 2.0]
    assert [each.still_s for each in waiters] == [1.0, 2.0, 3.0]
    assert [each.ticket.key_id for each in herd.fleet.queue.waiters("a", lambda t: t.key_id == "low")] == [
        "low"
    ]
    assert low.waits
    assert normal.waits
    assert high.waits


@with_herd(models_max=1)
async def test_a_wait_for_a_model_that_is_not_there_includes_its_switch_and_its_load(herd: Herd) -> None:
    await herd.ready("a")
    for _ in range(2):
        herd.ask("a")
    herd.ask("b")
    [waiter] = herd.fleet.queue.waiters("b", lambda _: True)
    # Four times a load of one second, as thought, until the other one goes; then that load, and its turn.
    assert round(waiter.still_s, 2) == 6.0
    herd.now += 3.0
    [waiter] = herd.fleet.queue.waiters("b", lambda _: True)
    assert round(waiter.still_s, 2) == 3.0


@with_herd()
async def test_a_place_can_be_asked_for_as_it_moves_up(herd: Herd) -> None:
    await herd.ready("a")
    running, second, third = (herd.ask("a") for _ in range(3))
    tickets = {ticket.number: ticket for ticket in herd.fleet._leases}
    assert [herd.fleet.position(tickets[number]) for number in sorted(tickets) if number][-2:] == [1, 2]
    running.finishes()
    await turns()
    assert second.is_served
    assert herd.fleet.position(max(tickets.values(), key=lambda ticket: ticket.number)) == 1
    assert third.waits
