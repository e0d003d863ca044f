"""Who is next, by value: class, fairness among keys, arrival, and aging."""

from __future__ import annotations

from collections import Counter

import pytest

from corral.policy.scheduler.queue import AGED
from tests.policy.scheduler.desk import AGING_S, HIGH, LOW, NORMAL, Desk

# Order -------------------------------------------------------------------------------------------


def test_of_nobody_nobody_is_next() -> None:
    desk = Desk()
    assert (len(desk.queue), desk.next(), desk.queue.urgency(0.0), desk.queue.oldest()) == (
        0,
        None,
        None,
        None,
    )


def test_classes_go_before_one_another_whoever_came_first() -> None:
    desk = Desk()
    for name, priority in (("l", LOW), ("n", NORMAL), ("h", HIGH), ("n2", NORMAL), ("l2", LOW), ("h2", HIGH)):
        desk.add(name, 0.0, priority=priority)
    assert desk.serve_all() == ["h", "h2", "n", "n2", "l", "l2"]


def test_within_a_class_keys_that_are_level_go_by_arrival_even_in_one_tick_of_the_clock() -> None:
    desk = Desk()
    for name in ("c", "a", "b"):
        desk.add(name, 5.0)
    assert desk.serve_all(5.0) == ["c", "a", "b"]


def test_requests_of_one_key_go_in_the_order_of_their_arrival() -> None:
    desk = Desk()
    for number in range(5):
        desk.add(f"r{number}", float(number), key="k")
    assert desk.serve_all(5.0) == ["r0", "r1", "r2", "r3", "r4"]


def test_one_request_goes_after_the_first_of_a_key_with_five_hundred() -> None:
    desk = Desk()
    for number in range(500):
        desk.add(f"greedy{number}", 0.0, key="greedy")
    desk.add("single", 1.0)
    # The greedy key was served once before, alone: whoever comes begins level with it, and is younger.
    assert [desk.serve(1.0) for _ in range(3)] == ["greedy0", "single", "greedy1"]


def test_keys_with_as_much_to_ask_take_turns() -> None:
    desk = Desk()
    for number in range(3):
        for key in "abc":
            desk.add(f"{key}{number}", float(number), key=key)
    assert desk.serve_all(3.0) == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_what_is_shared_is_tokens_and_not_requests() -> None:
    desk = Desk()
    for number in range(60):
        desk.add(f"cheap{number}", 0.0, key="cheap")
        desk.add(f"dear{number}", 0.0, key="dear")
    spent: Counter[str] = Counter()
    for _ in range(44):
        ticket = desk.queue.next(0.0)
        assert ticket is not None
        cost = 10.0 if ticket.key_id == "cheap" else 100.0
        desk.queue.let_through(ticket, cost, 0.0)
        spent[ticket.key_id] += int(cost)
        # Both always have something waiting, so they can never be further apart than the dearest request.
        assert abs(spent["cheap"] - spent["dear"]) <= 100
    assert spent == {"cheap": 400, "dear": 400}


def test_counters_are_kept_by_class() -> None:
    desk = Desk()
    desk.add("a0", key="a", priority=HIGH)
    desk.serve(cost=1000.0)
    desk.add("a1", key="a")
    desk.add("b1", key="b")
    assert desk.serve_all() == ["a1", "b1"]


# Credit ------------------------------------------------------------------------------------------


def test_who_comes_back_after_a_rest_has_saved_up_nothing() -> None:
    desk = Desk()
    desk.add("early", 0.0, key="rested")
    desk.serve(0.0, cost=10.0)
    for number in range(20):
        desk.add(f"busy{number}", 0.0, key="busy")
    for _ in range(10):
        desk.serve(0.0)  # meanwhile the other key is served a thousand tokens
    for number in range(10):
        desk.add(f"rested{number}", 1.0, key="rested")
    assert [desk.serve(1.0)[:-1] for _ in range(6)] == [
        *("rested", "busy1", "rested", "busy1", "rested", "busy1"),
    ]


def test_one_that_aged_past_all_does_not_make_newcomers_begin_where_it_stood() -> None:
    desk = Desk()
    desk.add("spent0", 0.0, key="spent", priority=HIGH)
    desk.serve(0.0, cost=1e6)
    for number in range(5):
        desk.add(f"busy{number}", 1.0, key="busy", priority=HIGH)
    desk.queue.add(desk.make("spent1", 0.5, key="spent", priority=HIGH), 1.0)
    assert [desk.serve(1.0), desk.serve(30.5)] == ["busy0", "spent1"]
    desk.add("new", 30.6, priority=HIGH)
    assert desk.serve(30.7) == "new"


def test_who_comes_for_the_first_time_begins_level_with_the_lowest_who_waits() -> None:
    desk = Desk()
    for number in range(3):
        desk.add(f"old{number}", 0.0, key="old")
    served = [desk.tickets[desk.serve(0.0, cost=1000.0)] for _ in range(2)]
    for ticket in served:
        desk.queue.settle(ticket, 10.0)  # the estimates were far too high: 20 it has had, and not 2000
    desk.add("new", 1.0)
    assert desk.serve(1.0, cost=10.0) == "old2"
    desk.add("old3", 1.0, key="old")
    assert desk.serve(1.0) == "new"


def test_who_has_been_served_much_lets_others_go_first_when_it_comes_back() -> None:
    desk = Desk()
    desk.add("a0", key="a")
    desk.add("b0", key="b")
    desk.serve(cost=500.0)
    desk.serve(cost=100.0)
    for name, key in (("b1", "b"), ("b2", "b"), ("a1", "a")):
        desk.add(name, key=key)
    assert desk.serve_all() == ["b1", "b2", "a1"]


def test_who_is_let_through_without_waiting_is_charged_like_everybody_else() -> None:
    desk = Desk()
    desk.queue.pass_by(desk.make("a0", 0.0, key="a"), 500.0)
    for name, key in (("b1", "b"), ("b2", "b"), ("a1", "a")):
        desk.add(name, key=key)
    assert desk.serve_all() == ["b1", "b2", "a1"]


def test_an_empty_queue_keeps_the_level_at_which_the_last_one_was_served() -> None:
    desk = Desk()
    desk.queue.pass_by(desk.make("b", 0.0, key="b"), 50.0)
    for number in range(5):
        desk.queue.pass_by(desk.make(f"a{number}", 0.0, key="a"), 100.0)
    # 400 when it was let through last: who has rested since the beginning begins there, not at 0.
    desk.queue.pass_by(desk.make("b0", 0.0, key="b"), 50.0)
    for name, key in (("b1", "b"), ("b2", "b"), ("a5", "a")):
        desk.add(name, key=key)
    assert desk.serve_all(cost=60.0) == ["b1", "a5", "b2"]


@pytest.mark.parametrize(
    ("real", "order"),
    [(10.0, ["a1", "b1"]), (100.0, ["a1", "b1"]), (101.0, ["b1", "a1"])],
    ids=["less than estimated", "as estimated", "more"],
)
def test_an_estimate_is_settled_even_while_the_key_waits_again(real: float, order: list[str]) -> None:
    desk = Desk()
    for name in ("a0", "b0", "a1", "b1"):
        desk.add(name, key=name[0])
    assert [desk.serve(), desk.serve()] == ["a0", "b0"]
    desk.queue.settle(desk.tickets["a0"], real)
    assert desk.serve_all() == order


def test_settling_twice_charges_once() -> None:
    desk = Desk()
    ticket = desk.add("a0", key="a")
    desk.serve(cost=100.0)
    desk.queue.settle(ticket, 30.0)
    desk.queue.settle(ticket, 30.0)
    assert ticket.charged == 30.0
    assert desk.queue._counters[NORMAL] == {"a": 30.0}


# Aging -------------------------------------------------------------------------------------------


def test_a_line_rises_one_class_for_every_interval_it_waits() -> None:
    desk = Desk()
    desk.add("old", 0.0, priority=LOW)
    levels = []
    for now in (29.9, 30.0, 59.9, 60.0, 89.9, 90.0, 1000.0):
        urgency = desk.queue.urgency(now)
        assert urgency is not None
        levels.append(urgency[0])
        assert urgency[1] == LOW  # what it asked for does not change
    assert levels == [LOW, NORMAL, NORMAL, HIGH, HIGH, AGED, AGED]


def test_a_risen_request_is_level_with_those_of_its_new_class() -> None:
    desk = Desk()
    desk.add("old", 0.0, priority=LOW)
    desk.add("young", 29.0)
    assert desk.next(29.9) == "young"
    assert desk.next(30.0) == "old"


def test_in_its_new_class_a_line_has_no_credit_from_before() -> None:
    desk = Desk()
    for number in range(4):
        desk.add(f"n{number}", 0.0, key="n")
        desk.add(f"x{number}", 0.0, key="x")
    assert [desk.serve(10.0) for _ in range(3)] == ["n0", "x0", "n1"]
    desk.add("old", 1.0, priority=LOW)
    # Risen, it is level with those who have had a hundred each, and younger.
    assert [desk.serve(31.5), desk.serve(31.5)] == ["x1", "old"]


def test_aged_past_the_top_arrival_alone_decides_before_every_counter() -> None:
    desk = Desk()
    desk.add("spent0", 0.0, key="spent", priority=HIGH)
    desk.serve(0.0, cost=1e6)
    desk.add("fresh", 1.0, priority=HIGH)
    desk.queue.add(desk.make("spent1", 0.5, key="spent", priority=HIGH), 1.0)
    desk.add("low", 2.0, priority=LOW)
    assert desk.next(30.4) == "fresh"
    assert desk.next(30.5) == "spent1"  # 30 s in the top class
    desk.add("fresh2", 91.0, priority=HIGH)
    assert desk.serve_all(92.0) == ["spent1", "fresh", "low", "fresh2"]


def test_a_low_request_is_served_in_the_end_whatever_keeps_coming() -> None:
    desk = Desk()
    desk.add("low", 0.0, priority=LOW)
    now = 0.0
    while "low" not in desk.served:
        assert now <= 3 * AGING_S + 1, "as its own class, the next, the top one, and no longer"
        desk.add(f"high{now}", now, priority=HIGH)
        desk.serve(now)
        now += 1.0


def test_waiting_behind_others_of_its_own_key_ages_no_request() -> None:
    desk = Desk()
    for number in range(100):
        desk.add(f"batch{number}", 0.0, key="batch")
    now = 0.0
    for _ in range(80):
        now += 1.0
        assert desk.serve(now).startswith("batch")
    # Everything that is left has been there for 80 s and is as young as the last one that was let through.
    assert desk.queue.urgency(now) == (NORMAL, NORMAL)
    desk.add("high", now, priority=HIGH)
    desk.add("other", now)
    assert [desk.serve(now) for _ in range(3)] == ["high", "other", "batch80"]


def test_after_an_aged_request_its_line_is_back_in_its_own_class() -> None:
    desk = Desk()
    desk.add("l0", 0.0, key="l", priority=LOW)
    desk.add("l1", 0.0, key="l", priority=LOW)
    desk.add("n", 89.0)
    assert [desk.serve(90.0), desk.serve(90.0), desk.serve(90.0)] == ["l0", "n", "l1"]


def test_who_stands_behind_one_that_goes_has_waited_for_others_as_long() -> None:
    desk = Desk()
    desk.add("l0", 0.0, key="l", priority=LOW)
    desk.add("l1", 0.0, key="l", priority=LOW)
    assert desk.queue.urgency(59.0) == (NORMAL, LOW)
    desk.queue.remove(desk.tickets["l0"])
    assert desk.queue.urgency(60.0) == (HIGH, LOW)


def test_who_came_later_than_one_that_goes_is_no_older_for_it() -> None:
    desk = Desk()
    desk.add("l0", 0.0, key="l", priority=LOW)
    desk.add("l1", 50.0, key="l", priority=LOW)
    desk.queue.remove(desk.tickets["l0"])
    assert desk.queue.urgency(79.9) == (LOW, LOW)
    assert desk.queue.urgency(80.0) == (NORMAL, LOW)
