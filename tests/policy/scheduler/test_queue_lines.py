"""Lines that are held, left, come back to, and asked about; and that nothing piles up behind them."""

from __future__ import annotations

import random

import pytest

from corral.policy.scheduler import queue as queue_module
from corral.policy.scheduler.queue import AGED, BOTTOM, STALE_MAX, Queue
from corral.policy.scheduler.ticket import Ticket
from tests.policy.scheduler.desk import HIGH, LOW, NORMAL, Desk

# max_parallel ------------------------------------------------------------------------------------


def test_a_key_that_is_held_does_not_compete_and_is_not_waited_for() -> None:
    desk = Desk()
    desk.add("a0", key="a")
    desk.add("b0", 1.0, key="b", priority=LOW)
    desk.hold("a")
    assert (desk.next(1.0), len(desk.queue)) == ("b0", 2)
    assert desk.queue.urgency(1.0) == (LOW, LOW)
    assert desk.queue.oldest() is desk.tickets["b0"]
    desk.serve(1.0)
    assert (desk.next(1.0), desk.queue.urgency(1.0), desk.queue.oldest()) == (None, None, None)


def test_one_that_joins_a_held_line_or_begins_one_is_held_too() -> None:
    desk = Desk()
    desk.add("a0", key="a", held=True)
    desk.add("a1", key="a", held=True)
    desk.add("a2", key="a", priority=HIGH, held=True)
    assert desk.next() is None
    desk.release("a", 0.0)
    assert desk.serve_all() == ["a2", "a0", "a1"]


def test_a_released_line_begins_to_wait_for_others_only_then() -> None:
    desk = Desk()
    desk.add("a0", 0.0, key="a", priority=LOW, held=True)
    assert desk.queue.urgency(100.0) is None
    desk.release("a", 100.0)
    assert desk.queue.urgency(129.9) == (LOW, LOW)
    assert desk.queue.urgency(130.0) == (NORMAL, LOW)


def test_a_line_that_had_risen_starts_anew_after_having_been_held() -> None:
    desk = Desk()
    desk.add("a0", 0.0, key="a", priority=LOW)
    assert desk.queue.urgency(30.0) == (NORMAL, LOW)
    desk.hold("a")
    desk.release("a", 40.0)
    assert desk.queue.urgency(69.9) == (LOW, LOW)
    assert desk.queue.urgency(70.0) == (NORMAL, LOW)


def test_a_held_key_saves_up_nothing_either() -> None:
    desk = Desk()
    for number in range(3):
        desk.add(f"held{number}", 0.0, key="held", held=True)
    for number in range(20):
        desk.add(f"busy{number}", 0.0, key="busy")
    for _ in range(10):
        desk.serve(0.0)
    desk.release("held", 0.0)
    # It begins where the busy one was let through last: a hundred below where that one stands now.
    assert [desk.serve(0.0) for _ in range(4)] == ["held0", "held1", "busy10", "held2"]


def test_holding_twice_and_releasing_twice_is_as_once() -> None:
    desk = Desk()
    desk.add("a0", key="a")
    for _ in range(2):
        desk.hold("a")
    assert desk.next() is None
    for _ in range(2):
        desk.release("a", 0.0)
    assert desk.queue.urgency(0.0) == (NORMAL, NORMAL)
    desk.serve()
    assert desk.queue.urgency(0.0) is None


# Leaving, and coming back ------------------------------------------------------------------------


@pytest.mark.parametrize("gone", range(4))
def test_anybody_may_leave_from_any_place(gone: int) -> None:
    desk = Desk()
    for number in range(4):
        desk.add(f"r{number}", float(number), key="k")
    desk.queue.remove(desk.tickets[f"r{gone}"])
    desk.queue.remove(desk.tickets[f"r{gone}"])  # it has left already
    assert len(desk.queue) == 3
    assert desk.serve_all(4.0) == [f"r{number}" for number in range(4) if number != gone]
    assert desk.queue.oldest() is None


@pytest.mark.parametrize("gone", range(2))
def test_anybody_may_leave_a_held_line(gone: int) -> None:
    desk = Desk()
    for number in range(2):
        desk.add(f"r{number}", float(number), key="k", held=True)
    desk.queue.remove(desk.tickets[f"r{gone}"])
    assert desk.next(2.0) is None
    desk.release("k", 2.0)
    assert desk.serve_all(2.0) == [f"r{1 - gone}"]


def test_a_line_that_nobody_stands_in_is_forgotten_with_its_hold() -> None:
    desk = Desk()
    desk.queue.remove(desk.add("a0", key="a", held=True))
    assert desk.queue.lines_of("a") == []
    desk.add("a1", key="a")
    assert desk.next() == "a1"


def test_who_has_lost_its_engine_goes_on_where_it_was() -> None:
    desk = Desk()
    lost = desk.add("lost", 0.0, key="k")
    desk.serve(0.0)
    desk.add("later", 10.0, key="k")
    again = Ticket(lost.wish, lost.arrived_at, lost.deadline)
    again.number = 99
    desk.queue.add(again, 40.0)
    # It has waited for others since it came, so it has risen at once; and it goes before its own.
    assert desk.queue.urgency(40.0) == (HIGH, NORMAL)
    assert desk.queue.oldest() is again
    assert desk.serve_all(40.0) == ["lost", "later"]


def test_one_that_comes_back_alone_keeps_its_time_too() -> None:
    desk = Desk()
    lost = desk.make("lost", 0.0)
    desk.queue.add(lost, 61.0)
    assert desk.queue.urgency(61.0) == (AGED, NORMAL)


def test_the_oldest_who_competes_is_known_whether_it_is_next_or_not() -> None:
    desk = Desk()
    desk.add("low", 0.0, priority=LOW)
    desk.add("high", 1.0, priority=HIGH)
    assert (desk.next(1.0), desk.queue.oldest()) == ("high", desk.tickets["low"])
    desk.queue.remove(desk.tickets["low"])
    assert desk.queue.oldest() is desk.tickets["high"]


# Positions ---------------------------------------------------------------------------------------


def positions(desk: Desk, now: float = 0.0) -> dict[str, int]:
    return {name: desk.position(name, now) for name, ticket in desk.tickets.items() if ticket.waits}


def test_positions_of_one_key_count_from_the_front() -> None:
    desk = Desk()
    for number in range(3):
        desk.add(f"r{number}", key="k")
    assert positions(desk) == {"r0": 1, "r1": 2, "r2": 3}


def test_positions_follow_the_classes() -> None:
    desk = Desk()
    for name, priority in (("l", LOW), ("n", NORMAL), ("h", HIGH)):
        desk.add(f"{name}0", key=name, priority=priority)
        desk.add(f"{name}1", key=name, priority=priority)
    assert positions(desk) == {"h0": 1, "h1": 2, "n0": 3, "n1": 4, "l0": 5, "l1": 6}


def test_a_single_request_is_second_beside_any_number_of_another_key() -> None:
    desk = Desk()
    for number in range(5):
        desk.add(f"greedy{number}", key="greedy")
    desk.add("single")
    assert positions(desk) == {
        "greedy0": 1,
        "single": 2,
        "greedy1": 3,
        "greedy2": 4,
        "greedy3": 5,
        "greedy4": 6,
    }


def test_who_has_risen_is_counted_in_its_new_class_and_those_behind_it_are_not() -> None:
    desk = Desk()
    desk.add("l0", 0.0, key="l", priority=LOW)
    desk.add("l1", 0.0, key="l", priority=LOW)
    desk.add("n0", 29.0, key="n")
    assert positions(desk, 29.0) == {"n0": 1, "l0": 2, "l1": 3}
    assert positions(desk, 31.0) == {"l0": 1, "n0": 2, "l1": 3}


def test_who_is_held_stands_in_nobodys_way() -> None:
    desk = Desk()
    desk.add("a0", key="a", held=True)
    desk.add("b0", key="b")
    assert positions(desk) == {"a0": 1, "b0": 1}


@pytest.mark.parametrize("seed", range(20))
def test_positions_are_the_order_of_service_if_all_cost_the_same(seed: int) -> None:
    luck = random.Random(seed)
    desk = Desk()
    for number in range(30):
        desk.add(f"r{number}", 0.0, key=luck.choice("abcd"), priority=luck.choice((HIGH, NORMAL, LOW)))
    told = positions(desk)
    for place, name in enumerate(desk.serve_all(0.0), start=1):
        # Whose turn of several keys is first in a round is known for the round that comes; later, nearly.
        assert abs(told[name] - place) < len("abcd")


# What it costs -----------------------------------------------------------------------------------


def sizes(queue: Queue) -> int:
    return sum(map(len, queue._heaps)) + len(queue._rising) + len(queue._by_age)


def test_entries_out_of_date_do_not_pile_up() -> None:
    desk = Desk()
    bound = (BOTTOM + 3) * (2 * 3 + STALE_MAX + 1)
    for number in range(3000):
        # Nobody asks who the oldest is, no time passes, and the one at the top stays where it is.
        name = f"r{number}"
        desk.add(name, 0.0, key="busy")
        if number % 3 == 0:
            desk.queue.remove(desk.tickets[name])
        else:
            desk.serve()
        assert sizes(desk.queue) <= bound
    desk.add("a", 0.0)
    desk.add("b", 0.0)
    ticket = desk.tickets["r1"]
    for number in range(3000):
        desk.queue.settle(ticket, float(number))
        desk.hold("b")
        desk.release("b", 0.0)
        assert sizes(desk.queue) <= bound
    assert desk.serve_all() == ["a", "b"]
    assert sizes(desk.queue) <= bound


def test_counters_of_keys_that_rest_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "COUNTERS_MAX", 10)
    desk = Desk()
    desk.add("waiting", 0.0)
    for number in range(200):
        desk.add(f"r{number}", 0.0, priority=HIGH)
        if number % 2:
            desk.serve(0.0, cost=float(number))
        else:
            desk.queue.remove(desk.tickets[f"r{number}"])
        desk.queue.pass_by(desk.make(f"p{number}", 0.0), 5.0)
        assert all(len(counters) <= 10 + 2 * 2 for counters in desk.queue._counters)
    assert "waiting" in desk.queue._counters[NORMAL]


def test_many_keys_that_wait_are_all_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "COUNTERS_MAX", 10)
    desk = Desk()
    for round_ in range(2):
        for number in range(40):
            desk.add(f"{round_}.{number}", 0.0, key=str(number))
    desk.serve(0.0, cost=500.0)
    order = desk.serve_all(0.0, cost=1.0)
    assert order[-1] == "1.0", "who has had the most comes last"
