from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from corral import errors
from corral.formats.status import ModelState
from corral.policy.guard import Decision, EvictFirst, Impossible, Place, Reason, Wait
from corral.policy.placement import Kind, Placement
from corral.policy.scheduler import (
    Action,
    Drain,
    Grant,
    Load,
    ModelLimits,
    Refuse,
    Scheduler,
    Stop,
    Ticket,
)

SOMEWHERE = Placement(Kind.CPU, 0, (), (), 1)
ONE_SLOT = ModelLimits(slots=1, pinned=False, queue_max=10)


class Guarded:
    """A guard that says what the test says; without a word it has room for everything."""

    def __init__(self) -> None:
        self.says: dict[str, Decision] = {}
        self.asked: list[tuple[str, list[str], list[str]]] = []
        self.reserved: list[str] = []
        self.told_to_go: list[str] = []
        self.had_gone_by_then: list[str] = []  # when it was asked last
        self.to_go: tuple[str, ...] = ()

    def decide(self, model: str, idle: Sequence[str], busy: Sequence[str]) -> Decision:
        self.asked.append((model, list(idle), list(busy)))
        self.had_gone_by_then = list(self.told_to_go)
        return self.says.get(model, Place(SOMEWHERE))

    def reserve(self, model: str, placement: Placement) -> None:
        assert placement is SOMEWHERE
        self.reserved.append(model)

    def stopping(self, model: str) -> None:
        self.told_to_go.append(model)

    def relieve(self, idle: Sequence[str]) -> Sequence[str]:
        return [name for name in idle if name in self.to_go]

    def refusal(self, impossible: Impossible) -> errors.CorralError:
        return errors.InsufficientVram(f"no room for {impossible.model}")


def guarded(guard: Guarded, models_max: int = 9) -> Scheduler:
    return Scheduler({"a": ONE_SLOT, "b": ONE_SLOT, "c": ONE_SLOT}, models_max, guard, now=0.0)


def scheduler(models_max: int = 2, **models: ModelLimits) -> Scheduler:
    models = models or {"a": ONE_SLOT, "b": ONE_SLOT, "c": ONE_SLOT}
    return Scheduler(models, models_max, Guarded(), now=0.0)


def ready(herd: Scheduler, model: str, now: float = 0.0) -> list[Action]:
    return herd.model_is(model, ModelState.READY, now)


def arrive(herd: Scheduler, model: str, now: float) -> tuple[Ticket, list[Action]]:
    ticket = Ticket(f"{model}@{now}", model, now)
    return ticket, herd.arrive(ticket, now)


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
    assert actions == [Grant(ticket)]
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
    granted = [arrive(herd, "a", float(n))[1] for n in range(3)]
    assert [len(actions) for actions in granted] == [1, 1, 0]


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


def test_a_busy_model_drains_for_an_older_request_and_finishes_what_runs() -> None:
    herd = scheduler(1)
    ready(herd, "a")
    running, _ = arrive(herd, "a", 1.0)
    waiting_for_b, actions = arrive(herd, "b", 2.0)
    assert actions == [Drain("a", "room")]
    younger, actions = arrive(herd, "a", 3.0)
    assert actions == []
    assert herd.depart(running, 4.0) == [Stop("a")]
    assert herd.model_is("a", ModelState.OFF, 5.0) == [Load("b", SOMEWHERE)]
    herd.model_is("b", ModelState.LOADING, 5.0)
    assert Grant(waiting_for_b) in ready(herd, "b", 6.0)
    assert herd.depth("a") == 1
    assert not younger.released


def test_a_model_whose_own_oldest_request_is_older_keeps_its_place() -> None:
    herd = scheduler(1)
    ready(herd, "a")
    arrive(herd, "a", 1.0)
    arrive(herd, "a", 2.0)
    assert arrive(herd, "b", 3.0)[1] == []


def test_room_that_is_on_its_way_is_not_made_twice() -> None:
    herd = scheduler(1, a=ONE_SLOT, b=ONE_SLOT)
    ready(herd, "a")
    assert arrive(herd, "b", 1.0)[1] == [Drain("a", "room"), Stop("a")]
    assert arrive(herd, "b", 2.0)[1] == []


def test_everybody_who_waits_for_a_failed_model_is_refused() -> None:
    herd = scheduler()
    first, _ = arrive(herd, "a", 1.0)
    second, _ = arrive(herd, "a", 2.0)
    why = errors.ModelFailed("gone")
    assert herd.refuse_waiting("a", why) == [Refuse(first, why), Refuse(second, why)]


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


class TestTheGuardsWord:
    def test_a_place_is_reserved_before_the_load_is_ordered(self) -> None:
        guard = Guarded()
        assert arrive(guarded(guard), "a", 1.0)[1] == [Load("a", SOMEWHERE)]
        assert guard.reserved == ["a"]

    def test_it_is_told_who_is_idle_and_who_is_busy_the_least_recently_used_first(self) -> None:
        guard = Guarded()
        herd = guarded(guard)
        for when, name in ((1.0, "b"), (2.0, "a")):
            ready(herd, name)
            herd.depart(arrive(herd, name, when)[0], when)
        arrive(herd, "a", 3.0)
        guard.asked.clear()
        arrive(herd, "c", 4.0)
        assert guard.asked == [("c", ["b"], ["a"])]

    def test_it_is_told_of_models_on_their_way_out_as_of_busy_ones(self) -> None:
        guard = Guarded()
        herd = guarded(guard)
        for name in "ab":
            ready(herd, name)
        running = arrive(herd, "a", 1.0)[0]
        herd.eject("a")
        herd.eject("b")
        guard.says["c"] = Wait(Reason.BUSY, ("a",))
        arrive(herd, "c", 2.0)
        herd.depart(running, 3.0)
        assert guard.asked == [("c", [], ["b", "a"])] * 2

    def test_models_that_must_go_first_go_and_the_load_waits(self) -> None:
        guard = Guarded()
        herd = guarded(guard)
        ready(herd, "a")
        guard.says["b"] = EvictFirst(("a",))
        assert arrive(herd, "b", 1.0)[1] == [Drain("a", "room"), Stop("a")]
        guard.says["b"] = Wait(Reason.RELEASING, ("a",))
        assert herd.model_is("a", ModelState.STOPPING, 2.0) == []
        del guard.says["b"]
        assert herd.model_is("a", ModelState.OFF, 3.0) == [Load("b", SOMEWHERE)]

    def test_it_knows_who_goes_before_it_decides_about_the_next(self) -> None:
        guard = Guarded()
        herd = guarded(guard)
        ready(herd, "a")
        guard.says["b"] = Wait(Reason.RELEASING, ())
        arrive(herd, "b", 1.0)
        guard.says["b"] = EvictFirst(("a",))
        arrive(herd, "c", 2.0)
        assert [name for name, _, _ in guard.asked] == ["b", "b", "c"]
        assert guard.had_gone_by_then == ["a"]

    def test_busy_models_in_the_way_are_drained_for_an_older_request_only(self) -> None:
        guard = Guarded()
        herd = guarded(guard)
        ready(herd, "a")
        guard.says["b"] = Wait(Reason.BUSY, ("a",))
        arrive(herd, "a", 1.0)
        arrive(herd, "a", 2.0)
        assert arrive(herd, "b", 3.0)[1] == []

        herd = guarded(guard)
        ready(herd, "a")
        arrive(herd, "a", 1.0)
        assert arrive(herd, "b", 2.0)[1] == [Drain("a", "room")]

    def test_who_waits_for_an_impossible_model_is_refused_at_once(self) -> None:
        guard = Guarded()
        guard.says["a"] = Impossible("a", 1, 1, 1, 1, True, False, (), (), {})
        (refused,) = arrive(guarded(guard), "a", 1.0)[1]
        assert isinstance(refused, Refuse)
        assert refused.error.code == "insufficient_vram"

    def test_a_whole_queue_is_refused_with_one_question(self) -> None:
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

    def test_foreign_memory_drives_idle_models_out(self) -> None:
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
        self, word: Decision, expected: tuple[list[Action], bool]
    ) -> None:
        guard = Guarded()
        guard.says["a"] = word
        herd = guarded(guard)
        ready(herd, "b")
        assert herd.load_if_room("a") == expected
        assert guard.asked == [("a", [], [])]

    def test_a_model_that_is_there_or_has_no_place_is_not_loaded_again(self) -> None:
        herd = guarded(Guarded(), models_max=1)
        ready(herd, "a")
        assert herd.load_if_room("a") == ([], False)
        assert herd.load_if_room("b") == ([], False)


class World:
    """Carries out what the scheduler says, at random speed: processes start, stop and die."""

    def __init__(self, seed: int) -> None:
        self.luck = random.Random(seed)
        self.models_max = self.luck.randint(1, 3)
        limits = {
            name: ModelLimits(self.luck.randint(1, 3), False, 1000)
            for name in "abcde"[: self.luck.randint(1, 5)]
        }
        self.limits = limits
        self.herd = Scheduler(limits, self.models_max, Guarded(), now=0.0)
        self.states = dict.fromkeys(limits, ModelState.OFF)
        self.now = 0.0
        self.tickets: list[Ticket] = []
        self.granted: set[Ticket] = set()

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Grant(ticket):
                    assert self.states[ticket.model] is ModelState.READY
                    self.granted.add(ticket)
                case Load(model, _placement):
                    assert self.states[model] is ModelState.OFF
                    self.states[model] = ModelState.STARTING
                case Drain(model, _reason):
                    assert self.states[model] is ModelState.READY
                    self.states[model] = ModelState.DRAINING
                case Stop(model):
                    assert self.states[model] is ModelState.DRAINING
                    assert not self.herd.running(model)
                    self.states[model] = ModelState.STOPPING
        self.check()

    def becomes(self, model: str, state: ModelState) -> None:
        self.states[model] = state
        self.carry_out(self.herd.model_is(model, state, self.now))

    def check(self) -> None:
        resident = [name for name, state in self.states.items() if state is not ModelState.OFF]
        assert len(resident) <= self.models_max
        for name, limits in self.limits.items():
            assert self.herd.running(name) <= limits.slots

    def step(self, arrivals: bool) -> None:
        self.now += self.luck.random()
        if arrivals and self.luck.random() < 0.5:
            ticket = Ticket(str(len(self.tickets)), self.luck.choice(list(self.limits)), self.now)
            self.tickets.append(ticket)
            self.carry_out(self.herd.arrive(ticket, self.now))
        live = [ticket for ticket in self.tickets if not ticket.released]
        leaving = [ticket for ticket in live if ticket in self.granted or self.luck.random() < 0.02]
        if leaving and self.luck.random() < 0.6:
            self.carry_out(self.herd.depart(self.luck.choice(leaving), self.now))
        model = self.luck.choice(list(self.limits))
        following = {
            ModelState.STARTING: ModelState.LOADING,
            ModelState.LOADING: ModelState.READY,
            ModelState.STOPPING: ModelState.OFF,
        }.get(self.states[model])
        if following is not None:
            self.becomes(model, following)


@pytest.mark.parametrize("seed", range(60))
def test_in_any_order_of_events_nobody_is_lost_and_no_limit_is_broken(seed: int) -> None:
    world = World(seed)
    for _ in range(150):
        world.step(arrivals=True)
    for _ in range(6000):
        if all(ticket.released for ticket in world.tickets):
            break
        world.step(arrivals=False)
    assert all(ticket.released for ticket in world.tickets)
    assert all(world.herd.depth(name) == 0 and world.herd.running(name) == 0 for name in world.limits)
