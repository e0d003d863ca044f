from __future__ import annotations

import pytest

from corral import errors
from corral.formats.priority import Priority
from corral.formats.status import ModelState
from corral.policy.scheduler import (
    Drain,
    Grant,
    Load,
    ModelLimits,
    Refuse,
    Stop,
    Usage,
)
from tests.policy.scheduler.guarded import (
    ONE_SLOT,
    SOMEWHERE,
    a_ticket,
    arrive,
    ready,
    scheduler,
)

HIGH, LOW = Priority.HIGH, Priority.LOW
TWO_SLOTS = ModelLimits(slots=2, pinned=False, queue_max=10)


def test_the_first_request_for_a_model_loads_it_and_waits() -> None:
    herd = scheduler()
    ticket, actions = arrive(herd, "a", 1.0)
    assert actions == [Load("a", SOMEWHERE)]
    assert herd.depth("a") == 1
    assert ready(herd, "a", 2.0) == [Grant(ticket)]
    assert ticket.granted_at == 2.0


def test_a_free_slot_is_granted_at_once() -> None:
    herd = scheduler()
    ready(herd, "a")
    ticket, actions = arrive(herd, "a", 1.0)
    assert (actions, ticket.granted_at) == ([], 1.0)
    assert (herd.running("a"), herd.depth("a")) == (1, 0)


def test_requests_are_served_in_the_order_of_their_arrival() -> None:
    herd = scheduler()
    ready(herd, "a")
    first, _ = arrive(herd, "a", 1.0)
    second, nothing = arrive(herd, "a", 2.0)
    third, _ = arrive(herd, "a", 3.0)
    assert nothing == []
    assert herd.depart(first, 4.0) == [Grant(second)]
    assert herd.depart(second, 5.0) == [Grant(third)]


def test_a_model_runs_as_many_at_once_as_it_has_slots() -> None:
    herd = scheduler(a=ModelLimits(slots=2, pinned=False, queue_max=10))
    ready(herd, "a")
    tickets = [arrive(herd, "a", float(n))[0] for n in range(3)]
    assert [ticket.granted_at for ticket in tickets] == [0.0, 1.0, None]


def test_who_leaves_the_queue_is_forgotten_and_frees_nothing() -> None:
    herd = scheduler()
    ready(herd, "a")
    running, _ = arrive(herd, "a", 1.0)
    waiting, _ = arrive(herd, "a", 2.0)
    assert herd.depart(waiting, 3.0) == []
    assert (herd.running("a"), herd.depth("a")) == (1, 0)
    assert herd.depart(running, 4.0) == []


def test_departing_twice_counts_once() -> None:
    herd = scheduler()
    ready(herd, "a")
    first, _ = arrive(herd, "a", 1.0)
    arrive(herd, "a", 2.0)
    arrive(herd, "a", 3.0)
    assert len(herd.depart(first, 4.0)) == 1
    assert herd.depart(first, 5.0) == []
    assert herd.running("a") == 1


def test_a_full_queue_refuses() -> None:
    herd = scheduler(a=ModelLimits(slots=1, pinned=False, queue_max=1))
    ready(herd, "a")
    arrive(herd, "a", 1.0)
    arrive(herd, "a", 2.0)
    with pytest.raises(errors.QueueFull, match="1 requests are waiting for 'a'"):
        arrive(herd, "a", 3.0)
    assert herd.depth("a") == 1


def test_everybody_who_waits_for_a_failed_model_is_refused() -> None:
    herd = scheduler()
    first, _ = arrive(herd, "a", 1.0)
    second, _ = arrive(herd, "a", 2.0)
    why = errors.ModelFailed("gone")
    assert herd.refuse_waiting("a", why) == [Refuse(first, why), Refuse(second, why)]


@pytest.mark.parametrize("wishes", [{}, {"max_waiting": 0}], ids=["queue full", "too many of its key"])
@pytest.mark.parametrize("others", [0, 1], ids=["its only one", "one of several"])
def test_who_was_refused_at_the_door_has_nothing_to_give_back(wishes: dict[str, int], others: int) -> None:
    herd = scheduler(a=ModelLimits(slots=1, pinned=False, queue_max=2 if wishes else 1), b=ONE_SLOT)
    for name in "ab":
        ready(herd, name)
    for _ in range(2):
        arrive(herd, "a", 1.0)
    mine = [arrive(herd, "b", 1.0, key_id="k")[0] for _ in range(2 * others)]
    refused = a_ticket("a", 2.0, key_id="k", **wishes)
    with pytest.raises(errors.CorralError):
        herd.arrive(refused, 2.0)
    assert herd.depart(refused, 3.0) == []
    assert herd.stats("a", 3.0).refused == 1
    assert [herd.depart(ticket, 4.0) for ticket in mine] == [[Grant(ticket)] for ticket in mine[1:]] + [
        []
    ] * others
    assert set(herd._keys) == {"-"}


# Who is next -------------------------------------------------------------------------------------


def test_a_free_slot_goes_to_the_highest_class_and_within_it_to_the_key_that_had_least() -> None:
    herd = scheduler()
    ready(herd, "a")
    greedy = [arrive(herd, "a", 1.0, key_id="greedy", prompt_tokens=10)[0] for _ in range(5)]
    low, _ = arrive(herd, "a", 1.0, key_id="low", prompt_tokens=10, priority=LOW)
    single, _ = arrive(herd, "a", 2.0, key_id="single", prompt_tokens=10)
    high, _ = arrive(herd, "a", 3.0, key_id="high", prompt_tokens=10, priority=HIGH)
    order = greedy[:1]
    while granted := [action.ticket for action in herd.depart(order[-1], 4.0) if isinstance(action, Grant)]:
        order += granted
    assert order[1:] == [high, single, *greedy[1:], low]


def test_what_the_engine_reports_counts_and_not_what_was_estimated() -> None:
    herd = scheduler()
    ready(herd, "a")
    first, _ = arrive(herd, "a", 1.0, key_id="modest", prompt_tokens=1000)
    second, _ = arrive(herd, "a", 1.0, key_id="greedy", prompt_tokens=10)
    others = {key: [arrive(herd, "a", 2.0, key_id=key)[0] for _ in range(2)] for key in ("greedy", "modest")}
    assert herd.depart(first, 3.0, Usage(5, 1)) == [Grant(second)]
    assert herd.depart(second, 4.0, Usage(2000, 500)) == [Grant(others["modest"][0])]


def test_what_is_guessed_of_an_answer_is_learnt_from_answers_and_never_more_than_was_asked_for() -> None:
    herd = scheduler()
    ready(herd, "a")
    tickets = []
    for number, most in enumerate((None, 10, None)):
        ticket, _ = arrive(herd, "a", float(number), prompt_tokens=100, max_tokens=most)
        tickets.append(ticket.charged)
        herd.depart(ticket, number + 0.5, Usage(100, 50))
    assert tickets == [100 + 2 * 256, 100 + 2 * 10, 100 + 2 * 50]


def test_a_request_without_usage_stays_charged_as_estimated() -> None:
    herd = scheduler()
    ready(herd, "a")
    ticket, _ = arrive(herd, "a", 1.0, prompt_tokens=100, max_tokens=20)
    herd.depart(ticket, 2.0)
    assert ticket.charged == 140


# When to come back -------------------------------------------------------------------------------


def test_who_finds_the_queue_full_is_told_when_a_place_comes_free_each_another_time() -> None:
    herd = scheduler(a=ModelLimits(slots=2, pinned=False, queue_max=3))
    ready(herd, "a")
    for now in (0.0, 0.0):  # so that a request is known to take 4 s, and two of them run at a time
        herd.depart(arrive(herd, "a", now, prompt_tokens=1)[0], 4.0)
    for _ in range(5):
        arrive(herd, "a", 10.0)
    told = []
    for _ in range(5):
        with pytest.raises(errors.QueueFull) as caught:
            arrive(herd, "a", 10.0)
        told.append(caught.value.retry_after_s)
    assert told == [2.0, 4.0, 6.0, 6.0, 6.0], "every 2 s a place, and never later than all three are through"
    with pytest.raises(errors.QueueFull) as caught:
        arrive(herd, "a", 15.0)
    assert caught.value.retry_after_s == 3.0, "1 s is left of the last promise, and one more place"


# Deadlines ---------------------------------------------------------------------------------------


def test_requests_that_have_waited_too_long_are_told_once_the_first_to_run_out_first() -> None:
    herd = scheduler()
    ready(herd, "a")
    arrive(herd, "a", 0.0)
    patient, _ = arrive(herd, "a", 1.0)
    hasty, _ = arrive(herd, "a", 2.0, timeout_s=5.0)
    gone, _ = arrive(herd, "a", 2.0, timeout_s=6.0)
    herd.depart(gone, 3.0)
    assert herd.overdue(6.9) == []
    assert herd.overdue(7.0) == [hasty]
    assert herd.overdue(301.0) == [patient]
    assert herd.overdue(301.0) == []


def test_who_is_served_in_time_is_never_overdue() -> None:
    herd = scheduler()
    ready(herd, "a")
    first, _ = arrive(herd, "a", 0.0)
    second, _ = arrive(herd, "a", 1.0)
    herd.depart(first, 2.0)
    assert herd.overdue(1000.0) == []
    assert second.granted_at == 2.0


# Abandoned requests, and slots as they are ------------------------------------------------------


def test_an_abandoned_request_keeps_its_slot_and_its_keys_place_until_the_engine_is_through() -> None:
    herd = scheduler()
    ready(herd, "a")
    first, _ = arrive(herd, "a", 1.0, key_id="k", max_parallel=1)
    second, _ = arrive(herd, "a", 2.0, key_id="k", max_parallel=1)
    assert herd.abandon(first, 3.0) == []
    assert (herd.running("a"), herd.at_work("a", 9.0), herd.depth("a")) == (1, 0, 1)
    assert herd.depart(first, 4.0) == [Grant(second)]
    assert (herd.running("a"), herd.at_work("a", 9.0)) == (1, 1)


def test_abandoning_twice_or_after_the_end_changes_nothing() -> None:
    herd = scheduler()
    ready(herd, "a")
    ticket, _ = arrive(herd, "a", 1.0)
    for _ in range(2):
        assert herd.abandon(ticket, 2.0) == []
    herd.depart(ticket, 3.0)
    assert herd.abandon(ticket, 4.0) == []
    assert herd._models["a"].abandoned == 0


def test_a_draining_model_does_not_wait_for_requests_that_nobody_waits_for() -> None:
    herd = scheduler()
    ready(herd, "a")
    ticket, _ = arrive(herd, "a", 1.0)
    assert herd.eject("a", 2.0) == [Drain("a", "eject")]
    assert herd.abandon(ticket, 3.0) == [Stop("a")]
    assert herd.depart(ticket, 4.0) == []


def test_at_work_is_who_was_let_through_before_a_moment() -> None:
    herd = scheduler(a=TWO_SLOTS)
    ready(herd, "a")
    arrive(herd, "a", 1.0)
    arrive(herd, "a", 2.0)
    assert [herd.at_work("a", before) for before in (0.9, 1.0, 1.9, 2.0)] == [0, 1, 1, 2]


def test_a_model_runs_as_many_as_its_process_says() -> None:
    herd = scheduler()
    tickets = [arrive(herd, "a", 1.0)[0] for _ in range(3)]
    herd.slots_are("a", 3)
    assert ready(herd, "a", 2.0) == [Grant(ticket) for ticket in tickets]


# What others may know ----------------------------------------------------------------------------


def test_how_a_queue_stands() -> None:
    herd = scheduler(a=ModelLimits(slots=1, pinned=False, queue_max=1))
    ready(herd, "a")
    assert herd.stats("a", 1.0) == (0, 0, 1, 0.0, 0.0, 0, 0, 0)
    first, _ = arrive(herd, "a", 1.0, prompt_tokens=1)
    arrive(herd, "a", 2.0)
    with pytest.raises(errors.QueueFull):
        arrive(herd, "a", 3.0)
    assert herd.stats("a", 4.0)._asdict() == {
        "waiting": 1,
        "running": 1,
        "slots": 1,
        "oldest_wait_s": 2.0,
        "next_wait_s": 2.0,  # two places before it, a second each until more is known
        "arrived": 3,
        "served": 0,
        "refused": 1,
    }
    herd.depart(first, 6.0)
    stats = herd.stats("a", 6.0)
    assert (stats.waiting, stats.running, stats.served, stats.next_wait_s) == (0, 1, 1, 5.0)


def test_positions_and_those_who_wait_can_be_asked_for() -> None:
    herd = scheduler()
    ready(herd, "a")
    arrive(herd, "a", 1.0)
    low, _ = arrive(herd, "a", 2.0, priority=LOW)
    normal, _ = arrive(herd, "a", 3.0, key_id="k")
    assert (herd.position(normal, 3.0), herd.position(low, 3.0)) == (1, 2)
    assert herd.waiting("a", 3.0) == [normal, low]
    assert herd.anybody_waits
    assert not scheduler().anybody_waits


def test_a_wait_is_estimated_from_the_load_and_the_pace() -> None:
    limits = ModelLimits(slots=2, pinned=False, queue_max=9, load_s_guess=8.0)
    herd = scheduler(a=limits)
    assert herd.wait_s("a", 4, 0.0) == 8.0 + 4 * 1.0 / 2
    arrive(herd, "a", 0.0)
    herd.model_is("a", ModelState.LOADING, 1.0)
    assert herd.wait_s("a", 4, 3.0) == 5.0 + 2.0
    ready(herd, "a", 4.0)
    assert herd.wait_s("a", 4, 4.0) == 2.0


def test_deadlines_of_those_who_do_not_wait_any_more_are_forgotten() -> None:
    herd = scheduler(a=ONE_SLOT)
    ready(herd, "a")
    arrive(herd, "a", 0.0)
    for number in range(1000):
        herd.depart(arrive(herd, "a", float(number))[0], float(number))
    assert len(herd._deadlines) < 100
