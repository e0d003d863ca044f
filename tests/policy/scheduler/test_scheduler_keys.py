"""What a key may run and keep waiting, on all models together."""

from __future__ import annotations

import pytest

from corral import errors
from corral.formats.status import ModelState
from corral.policy.scheduler import Drain, Grant, Load, ModelLimits, Stop
from tests.policy.scheduler.guarded import ONE_SLOT, SOMEWHERE, arrive, ready, scheduler

TWO_SLOTS = ModelLimits(slots=2, pinned=False, queue_max=10)


def test_a_key_runs_as_many_as_it_may_and_the_surplus_waits_while_others_are_served() -> None:
    herd = scheduler(a=TWO_SLOTS)
    ready(herd, "a")
    first, _ = arrive(herd, "a", 1.0, key_id="k", max_parallel=1)
    assert first.granted_at == 1.0
    second, nothing = arrive(herd, "a", 2.0, key_id="k", max_parallel=1)
    assert (nothing, herd.depth("a")) == ([], 1)
    other, _ = arrive(herd, "a", 3.0, key_id="other")
    assert other.granted_at == 3.0, "whoever may not run stands in nobody's way"
    assert herd.depart(other, 4.0) == []
    assert herd.depart(first, 5.0) == [Grant(second)]


def test_what_waits_already_is_held_when_its_key_reaches_its_limit() -> None:
    herd = scheduler(a=TWO_SLOTS)
    ready(herd, "a")
    others = [arrive(herd, "a", 0.5, key_id="other")[0] for _ in range(2)]
    waiting = [arrive(herd, "a", 1.0, key_id="k", max_parallel=1)[0] for _ in range(2)]
    assert herd.depart(others[0], 2.0) == [Grant(waiting[0])]
    assert herd.depart(others[1], 3.0) == []
    assert herd.depart(waiting[0], 4.0) == [Grant(waiting[1])]


def test_the_limit_holds_for_all_models_together_and_the_oldest_is_let_through_first() -> None:
    herd = scheduler(a=ONE_SLOT, b=ONE_SLOT)
    for name in "ab":
        ready(herd, name)
    running, _ = arrive(herd, "a", 1.0, key_id="k", max_parallel=1)
    oldest, nothing = arrive(herd, "b", 2.0, key_id="k", max_parallel=1)
    younger, _ = arrive(herd, "a", 3.0, key_id="k", max_parallel=1)
    assert nothing == []
    assert herd.depart(running, 4.0) == [Grant(oldest)]
    assert herd.depart(oldest, 5.0) == [Grant(younger)]


def test_a_higher_limit_of_the_same_key_is_no_help_to_what_came_with_a_lower_one() -> None:
    herd = scheduler(a=ModelLimits(slots=3, pinned=False, queue_max=10))
    ready(herd, "a")
    first, _ = arrive(herd, "a", 1.0, key_id="k", max_parallel=1)
    assert arrive(herd, "a", 2.0, key_id="k", max_parallel=1)[1] == []
    assert herd.depart(first, 3.0) != []


def test_a_limit_that_was_lowered_meanwhile_holds_for_what_came_since() -> None:
    herd = scheduler(a=ModelLimits(slots=3, pinned=False, queue_max=10))
    ready(herd, "a")
    before = [arrive(herd, "a", 1.0, key_id="k", max_parallel=2)[0] for _ in range(2)]
    since, nothing = arrive(herd, "a", 2.0, key_id="k", max_parallel=1)
    assert nothing == []
    assert herd.depart(before[0], 3.0) == []
    assert herd.depart(before[1], 4.0) == [Grant(since)]


def test_a_limit_that_was_raised_meanwhile_holds_for_what_came_since_too() -> None:
    herd = scheduler(a=TWO_SLOTS)
    ready(herd, "a")
    running, _ = arrive(herd, "a", 1.0, key_id="k", max_parallel=1)
    before, nothing = arrive(herd, "a", 1.0, key_id="k", max_parallel=1)
    assert nothing == []
    since, _ = arrive(herd, "a", 2.0, key_id="k", max_parallel=2)
    assert since.granted_at == 2.0
    assert herd.depart(running, 3.0) == []
    assert herd.depart(since, 4.0) == [Grant(before)]


def test_a_limit_that_is_raised_reaches_what_waits_already() -> None:
    herd = scheduler(a=ModelLimits(slots=4, pinned=False, queue_max=10), b=ONE_SLOT)
    for name in "ab":
        ready(herd, name)
    running, _ = arrive(herd, "a", 1.0, key_id="k", max_parallel=1)
    waiting = [arrive(herd, name, 2.0, key_id="k", max_parallel=1)[0] for name in "baa"]
    of_others = [arrive(herd, "a", 2.0, key_id="other", max_parallel=1)[0] for _ in range(2)]
    assert herd.limits_are({"k": 1, "other": 1, "nobody": 9}, 3.0) == []
    # One of each model may go on; whatever has waited longest is the first.
    assert herd.limits_are({"k": 3}, 4.0) == [Grant(waiting[0]), Grant(waiting[1])]
    assert herd.depart(waiting[0], 5.0) == [Grant(waiting[2])]
    assert herd.depart(of_others[0], 6.0) == [Grant(of_others[1])]
    for ticket in (running, *waiting[1:], of_others[1]):
        herd.depart(ticket, 7.0)
    assert herd._keys == {}


@pytest.mark.parametrize(("before", "after"), [(1, None), (None, 1)], ids=["lifted", "set"])
def test_a_limit_may_come_and_go_while_requests_wait(before: int | None, after: int | None) -> None:
    herd = scheduler(a=TWO_SLOTS)
    ready(herd, "a")
    others = [arrive(herd, "a", 1.0, key_id="other")[0] for _ in range(2)]
    waiting = [arrive(herd, "a", 2.0, key_id="k", max_parallel=before)[0] for _ in range(3)]
    assert herd.limits_are({"k": after}, 3.0) == []
    assert herd.depart(others[0], 4.0) == [Grant(waiting[0])]
    assert herd.depart(others[1], 5.0) == ([Grant(waiting[1])] if after is None else [])
    herd.depart(waiting[0], 6.0)
    assert waiting[1].granted_at is not None
    for ticket in waiting:
        herd.depart(ticket, 7.0)
    assert herd._keys == {}


def test_who_leaves_the_front_of_a_held_line_may_let_the_next_one_go() -> None:
    herd = scheduler(a=TWO_SLOTS)
    ready(herd, "a")
    arrive(herd, "a", 1.0, key_id="k", max_parallel=1)
    other, _ = arrive(herd, "a", 1.0, key_id="other")
    leaving, _ = arrive(herd, "a", 2.0, key_id="k", max_parallel=1)
    unlimited, _ = arrive(herd, "a", 3.0, key_id="k")
    assert herd.depart(other, 4.0) == []
    assert herd.depart(leaving, 5.0) == [Grant(unlimited)]


def test_a_model_is_got_ready_for_a_request_that_waits_behind_others_of_its_own_key() -> None:
    """A key with hundreds of requests for one model need not wait for them all with its one for another."""
    herd = scheduler(1, a=ONE_SLOT._replace(queue_max=500), b=ONE_SLOT)
    ready(herd, "a")
    limited = {"key_id": "k", "max_parallel": 1, "prompt_tokens": 10}
    running, _ = arrive(herd, "a", 1.0, **limited)
    held, actions = arrive(herd, "b", 2.0, **limited)
    assert actions == [Drain("a", "room")]
    for _ in range(400):
        arrive(herd, "a", 3.0, **limited)
    assert herd.depart(running, 101.0) == [Stop("a")]
    assert herd.model_is("a", ModelState.OFF, 101.0) == [Load("b", SOMEWHERE)]
    assert ready(herd, "b", 102.0) == [Grant(held)]


def test_a_key_keeps_waiting_as_many_as_it_may_on_all_models_together() -> None:
    herd = scheduler(a=ONE_SLOT, b=ONE_SLOT)
    for name in "ab":
        ready(herd, name)
        arrive(herd, name, 0.5)
    waiting, _ = arrive(herd, "a", 1.0, key_id="k", max_waiting=1)
    with pytest.raises(errors.ConcurrencyLimitExceeded, match="0 requests of this key are running and 1 are"):
        arrive(herd, "b", 2.0, key_id="k", max_waiting=1)
    assert (herd.depth("b"), herd.stats("b", 2.0).refused) == (0, 1)
    herd.depart(waiting, 3.0)
    arrive(herd, "b", 4.0, key_id="k", max_waiting=1)
    assert herd.depth("b") == 1


def test_who_need_not_wait_is_refused_by_no_limit_of_waiting() -> None:
    herd = scheduler()
    ready(herd, "a")
    assert arrive(herd, "a", 1.0, key_id="k", max_waiting=0)[0].granted_at == 1.0
    with pytest.raises(errors.ConcurrencyLimitExceeded) as caught:
        arrive(herd, "a", 2.0, key_id="k", max_waiting=0)
    assert caught.value.retry_after_s == 1.0


def test_keys_that_have_nothing_here_are_forgotten() -> None:
    herd = scheduler()
    ready(herd, "a")
    for number in range(3):
        ticket, _ = arrive(herd, "a", float(number), key_id=str(number), max_waiting=0)
        with pytest.raises(errors.ConcurrencyLimitExceeded):
            arrive(herd, "a", float(number), key_id=f"{number}, refused", max_waiting=0)
        herd.depart(ticket, number + 0.5)
    assert herd._keys == {}
