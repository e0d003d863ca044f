"""What a request for another model would find: who may go, now or some day, and whether there is a place."""

from __future__ import annotations

from corral.formats.status import ModelState
from corral.policy.guard import EvictFirst, Reason, Wait
from corral.policy.scheduler import ModelLimits, Outlook, Scheduler, Ticket
from tests.policy.test_scheduler import Guarded

NAMES = ("a", "b", "c", "d")


class Herd:
    """A scheduler whose models are brought into a state one after the other."""

    def __init__(self, models_max: int, pinned: str = "") -> None:
        limits = {name: ModelLimits(1, name in pinned, 10) for name in NAMES}
        self.scheduler = Scheduler(limits, models_max, Guarded(), now=0.0)
        self.now = 0.0

    def ask(self, name: str) -> Ticket:
        self.now += 1
        ticket = Ticket("request", name, self.now)
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
    herd.scheduler.eject("b")
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
