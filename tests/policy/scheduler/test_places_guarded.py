"""What the guard is asked before a model is loaded, and what is done at its word."""

from __future__ import annotations

import pytest

from corral.formats.status import ModelState
from corral.policy.guard import Decision, EvictFirst, Impossible, Place, Reason, Wait
from corral.policy.scheduler import Action, Drain, Load, Refuse, Stop
from tests.policy.scheduler.guarded import SOMEWHERE, Guarded, arrive, guarded, ready


def test_a_place_is_reserved_before_the_load_is_ordered() -> None:
    guard = Guarded()
    assert arrive(guarded(guard), "a", 1.0)[1] == [Load("a", SOMEWHERE)]
    assert guard.reserved == ["a"]


def test_it_is_told_who_is_idle_and_who_is_busy_the_least_recently_used_first() -> None:
    guard = Guarded()
    herd = guarded(guard)
    for when, name in ((1.0, "b"), (2.0, "a")):
        ready(herd, name)
        herd.depart(arrive(herd, name, when)[0], when)
    arrive(herd, "a", 3.0)
    guard.asked.clear()
    arrive(herd, "c", 4.0)
    assert guard.asked == [("c", ["b"], ["a"])]


def test_it_is_told_of_models_on_their_way_out_as_of_busy_ones() -> None:
    guard = Guarded()
    herd = guarded(guard)
    for name in "ab":
        ready(herd, name)
    running = arrive(herd, "a", 1.0)[0]
    herd.eject("a", 1.0)
    herd.eject("b", 1.0)
    guard.says["c"] = Wait(Reason.BUSY, ("a",))
    arrive(herd, "c", 2.0)
    herd.depart(running, 3.0)
    herd.reconsider(3.5)
    assert guard.asked == [("c", [], ["b", "a"])] * 2


def test_models_that_must_go_first_go_and_the_load_waits() -> None:
    guard = Guarded()
    herd = guarded(guard)
    ready(herd, "a")
    guard.says["b"] = EvictFirst(("a",))
    assert arrive(herd, "b", 1.0)[1] == [Drain("a", "room"), Stop("a")]
    guard.says["b"] = Wait(Reason.RELEASING, ("a",))
    assert herd.model_is("a", ModelState.STOPPING, 2.0) == []
    del guard.says["b"]
    assert herd.model_is("a", ModelState.OFF, 3.0) == [Load("b", SOMEWHERE)]


def test_it_knows_who_goes_before_it_decides_about_the_next() -> None:
    guard = Guarded()
    herd = guarded(guard)
    ready(herd, "a")
    guard.says["b"] = Wait(Reason.RELEASING, ())
    arrive(herd, "b", 1.0)
    guard.says["b"] = EvictFirst(("a",))
    arrive(herd, "c", 2.0)
    assert [name for name, _, _ in guard.asked] == ["b", "b", "c"]
    assert guard.had_gone_by_then == ["a"]


def test_busy_models_in_the_way_are_drained_when_they_would_yield() -> None:
    guard = Guarded()
    herd = guarded(guard)
    ready(herd, "a")
    guard.says["b"] = Wait(Reason.BUSY, ("a",))
    arrive(herd, "a", 1.0)
    arrive(herd, "a", 2.0)
    assert arrive(herd, "b", 3.0)[1] == []
    assert herd.reconsider(10.9) == []
    assert herd.reconsider(11.0) == [Drain("a", "room")]


def test_one_that_would_yield_stays_while_another_one_in_the_way_does_not() -> None:
    guard = Guarded()
    herd = guarded(guard)
    for name in "ab":
        ready(herd, name)
    arrive(herd, "a", 1.0)
    for _ in range(2):
        arrive(herd, "b", 1.0)
    guard.says["c"] = Wait(Reason.BUSY, ("a", "b"))
    assert arrive(herd, "c", 2.0)[1] == []
    assert guard.asked[-1] == ("c", [], ["a", "b"])
    assert herd.reconsider(10.0) == [Drain("a", "room"), Drain("b", "room")]


def test_it_is_offered_first_those_that_would_go() -> None:
    guard = Guarded()
    herd = guarded(guard)
    for name in "ab":
        ready(herd, name)
    for _ in range(2):
        arrive(herd, "a", 1.0)
    arrive(herd, "b", 2.0)
    guard.says["c"] = Wait(Reason.BUSY, ("b",))
    assert arrive(herd, "c", 3.0)[1] == [Drain("b", "room")]
    assert guard.asked[-1] == ("c", [], ["b", "a"])


def test_who_waits_for_an_impossible_model_is_refused_at_once() -> None:
    guard = Guarded()
    guard.says["a"] = Impossible("a", 1, 1, 1, 1, True, False, (), (), {})
    (refused,) = arrive(guarded(guard), "a", 1.0)[1]
    assert isinstance(refused, Refuse)
    assert refused.error.code == "insufficient_vram"


def test_a_whole_queue_is_refused_with_one_question() -> None:
    guard = Guarded()
    herd = guarded(guard)
    guard.says["a"] = Wait(Reason.FOREIGN, ())
    waiting = [arrive(herd, "a", float(now))[0] for now in range(3)]
    guard.says["a"] = Impossible("a", 1, 1, 1, 1, True, False, (), (), {})
    guard.asked.clear()
    assert [action.ticket for action in herd.reconsider(4.0) if isinstance(action, Refuse)] == waiting
    assert herd.depth("a") == 0
    assert [herd.depart(ticket, 5.0) for ticket in waiting] == [[], [], []]
    assert len(guard.asked) == 1


def test_foreign_memory_drives_idle_models_out() -> None:
    guard = Guarded()
    herd = guarded(guard)
    ready(herd, "a")
    ready(herd, "b")
    guard.to_go = ("b",)
    assert herd.reconsider(1.0) == [Drain("b", "foreign"), Stop("b")]
    assert herd.reconsider(2.0) == []


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (Place(SOMEWHERE), ([Load("a", SOMEWHERE)], False)),
        (Wait(Reason.LOADING, ("b",)), ([], True)),
        (Wait(Reason.BUSY, ("b",)), ([], False)),
        (EvictFirst(("b",)), ([], False)),
    ],
    ids=["room", "in a moment", "in use", "others in the way"],
)
def test_nothing_goes_for_a_model_that_nobody_waits_for(
    word: Decision, expected: tuple[list[Action], bool]
) -> None:
    guard = Guarded()
    guard.says["a"] = word
    herd = guarded(guard)
    ready(herd, "b")
    assert herd.load_if_room("a", 1.0) == expected
    assert guard.asked == [("a", [], [])]


def test_a_model_that_is_there_or_has_no_place_is_not_loaded_again() -> None:
    herd = guarded(Guarded(), models_max=1)
    ready(herd, "a")
    assert herd.load_if_room("a", 1.0) == ([], False)
    assert herd.load_if_room("b", 1.0) == ([], False)


def test_who_gets_a_place_that_came_free_may_still_need_idle_models_to_go() -> None:
    """As after a death for want of memory, when everything idle goes before the second try."""
    guard = Guarded()
    herd = guarded(guard)
    ready(herd, "a")
    herd.model_is("b", ModelState.BACKOFF, 1.0)
    arrive(herd, "b", 2.0)
    guard.says["b"] = EvictFirst(("a",))
    assert herd.model_is("b", ModelState.OFF, 3.0) == [Drain("a", "room"), Stop("a")]
    assert guard.asked[-1] == ("b", ["a"], [])
