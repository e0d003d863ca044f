"""Who has a place on the machine, who gets one and who makes way; and what a newcomer would find."""

from __future__ import annotations

import pytest

from corral import errors
from corral.formats.priority import Priority
from corral.formats.status import ModelState
from corral.policy.guard import EvictFirst, Reason, Wait
from corral.policy.scheduler import (
    Drain,
    Grant,
    Load,
    ModelLimits,
    Outlook,
    Scheduler,
    Stop,
    Ticket,
)
from tests.policy.scheduler.guarded import (
    ONE_SLOT,
    SOMEWHERE,
    TERMS,
    Guarded,
    a_ticket,
    arrive,
    ready,
    scheduler,
)

# Coming and going --------------------------------------------------------------------------------


def test_the_least_recently_used_idle_model_makes_room() -> None:
    herd = scheduler()
    for when, name in ((1.0, "b"), (2.0, "a")):
        ready(herd, name)
        herd.depart(arrive(herd, name, when)[0], when)
    _, actions = arrive(herd, "c", 3.0)
    assert actions == [Drain("b", "room"), Stop("b")]
    assert herd.model_is("b", ModelState.OFF, 4.0) == [Load("c", SOMEWHERE)]


def test_a_pinned_model_never_makes_room() -> None:
    herd = scheduler(1, a=ModelLimits(1, pinned=True, queue_max=10), b=ONE_SLOT)
    ready(herd, "a")
    assert arrive(herd, "b", 1.0)[1] == []


def test_an_idle_model_goes_before_a_busy_one() -> None:
    herd = scheduler()
    ready(herd, "a")
    ready(herd, "b")
    arrive(herd, "a", 1.0)
    herd.depart(arrive(herd, "b", 2.0)[0], 2.0)
    assert arrive(herd, "c", 3.0)[1] == [Drain("b", "room"), Stop("b")]


def test_a_busy_model_makes_room_after_the_patience_of_who_waits_and_finishes_what_runs() -> None:
    herd = scheduler(1)
    ready(herd, "a")
    running, _ = arrive(herd, "a", 1.0)
    behind, _ = arrive(herd, "a", 1.5)
    waiting_for_b, nothing = arrive(herd, "b", 2.0)
    assert nothing == []
    # Four times the price of a switch, which is thought to be 2 s: so long others like it may gather.
    assert herd.reconsider(9.9) == []
    assert herd.reconsider(10.0) == [Drain("a", "room")]
    younger, nothing = arrive(herd, "a", 10.5)
    assert nothing == []
    assert herd.depart(running, 11.0) == [Stop("a")]
    assert herd.model_is("a", ModelState.OFF, 12.0) == [Load("b", SOMEWHERE)]
    herd.model_is("b", ModelState.LOADING, 12.0)
    assert Grant(waiting_for_b) in ready(herd, "b", 13.0)
    assert herd.depth("a") == 2
    assert not behind.released
    assert not younger.released


def test_a_model_that_nobody_waits_for_goes_at_once_unless_its_next_request_is_here_sooner() -> None:
    for gap_s, goes in ((1.9, False), (2.0, True)):
        herd = scheduler(1)
        ready(herd, "a")
        for now in (0.0, gap_s):
            herd.depart(arrive(herd, "a", now)[0], now)
        assert arrive(herd, "b", gap_s)[1] == ([Drain("a", "room"), Stop("a")] if goes else [])


def test_a_model_whose_requests_have_stopped_coming_is_held_no_longer_than_a_switch_costs() -> None:
    herd = scheduler(1)
    ready(herd, "a")
    for now in (0.0, 1.0):
        herd.depart(arrive(herd, "a", now)[0], now)
    assert arrive(herd, "b", 1.0)[1] == []
    assert herd.reconsider(2.9) == []
    assert herd.reconsider(3.0) == [Drain("a", "room"), Stop("a")]


def test_whoever_waits_for_a_higher_class_waits_only_for_the_price() -> None:
    herd = scheduler(1)
    ready(herd, "a")
    for _ in range(2):
        arrive(herd, "a", 0.0)
    arrive(herd, "b", 10.0, priority=Priority.HIGH)
    assert herd.reconsider(11.9) == []
    assert herd.reconsider(12.0) == [Drain("a", "room")]


def test_whoever_waits_for_a_lower_class_waits_until_it_has_risen() -> None:
    herd = scheduler(1)
    ready(herd, "a")
    arrive(herd, "a", 0.0)
    waiting, _ = arrive(herd, "a", 0.0)
    arrive(herd, "b", 1.0, priority=Priority.LOW)
    for now in range(2, 31):  # somebody always waits for a, and has only just come
        newcomer, _ = arrive(herd, "a", float(now))
        herd.depart(waiting, float(now))
        waiting = newcomer
        assert herd.reconsider(float(now)) == []
    assert herd.reconsider(31.0) == [Drain("a", "room")]


def test_who_was_sent_away_lines_up_behind_those_for_whom_it_went_however_long_its_own_have_waited() -> None:
    herd = scheduler(1)
    ready(herd, "a")
    running, _ = arrive(herd, "a", 0.0)
    arrive(herd, "a", 0.0)  # it will have risen by the time a is off, as b's will not
    for _ in range(2):
        arrive(herd, "b", 28.0)
    assert herd.reconsider(36.0) == [Drain("a", "room")]
    herd.depart(running, 37.0)
    assert herd.model_is("a", ModelState.OFF, 38.0) == [Load("b", SOMEWHERE)]
    ready(herd, "b", 39.0)
    # From then on it is a model like others that are waited for.
    assert herd.reconsider(46.9) == []
    assert herd.reconsider(47.0) == [Drain("b", "room")]


@pytest.mark.parametrize(("off_at", "first"), [(38.9, "b"), (39.0, "a")])
def test_who_was_sent_away_rises_from_then_on(off_at: float, first: str) -> None:
    herd = scheduler(1)
    ready(herd, "a")
    running, _ = arrive(herd, "a", 0.0)
    arrive(herd, "a", 0.0)
    arrive(herd, "c", 1.0)
    assert herd.reconsider(9.0) == [Drain("a", "room")]
    herd.refuse_waiting("c", errors.ModelFailed("gone"))
    arrive(herd, "b", 20.0, priority=Priority.HIGH)
    herd.depart(running, 21.0)
    assert herd.model_is("a", ModelState.OFF, off_at) == [Load(first, SOMEWHERE)]


def test_learnt_loads_make_a_switch_dearer() -> None:
    herd = scheduler(1)
    arrive(herd, "a", 0.0)
    ready(herd, "a", 5.0)  # its load took five seconds, and b is thought to take one
    arrive(herd, "a", 5.0)
    arrive(herd, "b", 5.0)
    assert herd.reconsider(28.9) == []
    assert herd.reconsider(29.0) == [Drain("a", "room")]


def test_of_models_that_are_waited_for_the_most_urgent_comes_first() -> None:
    herd = scheduler(1)
    ready(herd, "a")
    herd.eject("a", 0.0)
    arrive(herd, "b", 1.0)
    arrive(herd, "c", 2.0, priority=Priority.HIGH)
    assert herd.model_is("a", ModelState.OFF, 3.0) == [Load("c", SOMEWHERE)]


def test_two_that_wait_send_away_one_each() -> None:
    herd = scheduler(2, a=ONE_SLOT, b=ONE_SLOT, c=ONE_SLOT, d=ONE_SLOT)
    for name in "ab":
        ready(herd, name)
        for _ in range(2):
            arrive(herd, name, 1.0)
    arrive(herd, "c", 2.0)
    arrive(herd, "d", 2.0)
    assert herd.reconsider(50.0) == [Drain("a", "room"), Drain("b", "room")]
    assert herd.reconsider(50.0) == []


def test_a_place_that_is_on_its_way_is_for_one_of_those_that_wait_for_one() -> None:
    herd = scheduler(2, a=ONE_SLOT, b=ONE_SLOT, c=ONE_SLOT, d=ONE_SLOT)
    for name in "ab":
        ready(herd, name)
    arrive(herd, "a", 1.0)
    herd.eject("a", 1.0)
    assert arrive(herd, "c", 2.0)[1] == []
    assert arrive(herd, "d", 3.0)[1] == [Drain("b", "room"), Stop("b")]


def test_an_abandoned_request_keeps_no_model_on_the_machine() -> None:
    herd = scheduler(1)
    ready(herd, "a")
    herd.abandon(arrive(herd, "a", 1.0)[0], 1.0)
    assert arrive(herd, "b", 2.0)[1] == [Drain("a", "room"), Stop("a")]


def test_room_that_is_on_its_way_is_not_made_twice() -> None:
    herd = scheduler(1, a=ONE_SLOT, b=ONE_SLOT)
    ready(herd, "a")
    assert arrive(herd, "b", 1.0)[1] == [Drain("a", "room"), Stop("a")]
    assert arrive(herd, "b", 2.0)[1] == []


@pytest.mark.parametrize(
    ("pinned", "used_at", "now", "expected"),
    [(False, 1.0, 10.9, False), (False, 1.0, 11.0, True), (True, 1.0, 99.0, False)],
    ids=["not yet", "long enough", "pinned"],
)
def test_a_model_is_idle_after_its_time_without_use(
    pinned: bool, used_at: float, now: float, expected: bool
) -> None:
    herd = scheduler(a=ModelLimits(1, pinned, 10))
    ready(herd, "a")
    herd.depart(arrive(herd, "a", used_at)[0], used_at)
    assert herd.unload_idle(now, 10.0) == ([Drain("a", "idle"), Stop("a")] if expected else [])


def test_a_load_that_took_long_is_no_idleness() -> None:
    herd = scheduler()
    ticket, _ = arrive(herd, "a", 1.0)
    herd.depart(ticket, 2.0)
    ready(herd, "a", now=100.0)
    assert herd.unload_idle(105.0, 10.0) == []
    assert herd.unload_idle(110.0, 10.0) == [Drain("a", "idle"), Stop("a")]


def test_a_model_that_works_is_never_idle() -> None:
    herd = scheduler()
    ready(herd, "a")
    arrive(herd, "a", 1.0)
    assert herd.unload_idle(1000.0, 10.0) == []


# What to expect ----------------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d")


class Herd:
    """A scheduler whose models are brought into a state one after the other."""

    def __init__(self, models_max: int, pinned: str = "") -> None:
        limits = {name: ModelLimits(1, name in pinned, 10) for name in NAMES}
        self.scheduler = Scheduler(limits, models_max, Guarded(), TERMS, now=0.0)
        self.now = 0.0

    def ask(self, name: str) -> Ticket:
        self.now += 1
        ticket = a_ticket(name, self.now)
        self.scheduler.arrive(ticket, self.now)
        return ticket

    def load(self, name: str, *, busy: bool = False) -> None:
        ticket = self.ask(name)
        self.scheduler.model_is(name, ModelState.READY, self.now)
        if not busy:
            self.now += 1
            self.scheduler.depart(ticket, self.now)

    def outlook(self) -> Outlook:
        return self.scheduler.outlook()


def test_an_empty_machine_stands_in_nobodys_way() -> None:
    assert Herd(models_max=2).outlook() == Outlook((), (), None)


def test_idle_models_may_go_the_least_recently_used_first_and_busy_ones_some_day() -> None:
    herd = Herd(models_max=9)
    herd.load("a", busy=True)
    herd.load("c")
    herd.load("b")
    assert herd.outlook() == Outlook(("c", "b"), ("a",), None)


def test_a_pinned_model_goes_for_nobody() -> None:
    herd = Herd(models_max=9, pinned="a")
    herd.load("a")
    assert herd.outlook() == Outlook((), (), None)


def test_as_many_models_as_may_be_cost_the_idlest_its_place() -> None:
    herd = Herd(models_max=2)
    herd.load("b")
    herd.load("a")
    assert herd.outlook().place == EvictFirst(("b",))


def test_a_place_that_is_being_given_up_is_waited_for() -> None:
    herd = Herd(models_max=2)
    herd.load("b", busy=True)
    herd.load("a")
    herd.scheduler.eject("b", herd.now)
    assert herd.outlook().place == Wait(Reason.FULL, ("b",))


def test_among_busy_models_one_that_nobody_waits_for_is_next_to_go() -> None:
    herd = Herd(models_max=2)
    herd.load("b", busy=True)
    herd.load("a", busy=True)
    herd.ask("b")
    assert herd.outlook().place == Wait(Reason.FULL, ("a",))


def test_where_nobody_can_go_nobody_is_named() -> None:
    herd = Herd(models_max=1, pinned="a")
    herd.load("a")
    assert herd.outlook() == Outlook((), (), Wait(Reason.FULL, ()))


def test_looking_changes_nothing() -> None:
    herd = Herd(models_max=2)
    herd.load("b")
    herd.load("a")
    assert herd.outlook() == herd.outlook()
    assert herd.ask("a").granted_at is not None
