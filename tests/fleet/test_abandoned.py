"""Requests that nobody waits for any more: their slots come back when the engine is seen to be through."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest

from corral import errors
from corral.drivers import clock, tasks
from corral.fleet import abandoned as abandoned_module
from corral.fleet.abandoned import LOOK_EVERY_S, Abandoned
from corral.formats.slots import Slot
from tests.fleet.herd import FakeEngine
from tests.in_a_loop import in_a_loop

SUSPICIOUS_S = 120.0


def working(*numbers: int) -> tuple[Slot, ...]:
    """Slots that work on the tasks of these numbers."""
    return tuple(Slot(number % 4, number, 0) for number in numbers)


class Vigil:
    """An engine with abandoned requests, and a clock that moves when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *busy: int) -> None:
        self.now = 100.0
        self.engine = FakeEngine("a", 9001)
        self.busy: tuple[Slot, ...] | None = working(*busy)
        self.asked = 0
        self.others: list[float] = []  # when the requests that somebody waits for were let through
        self.released: list[str] = []
        self.suspicions = 0
        self.slept: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None  # what happens while the engine answers
        self._bell = tasks.Bell()
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        monkeypatch.setattr(abandoned_module, "asyncio", SimpleNamespace(sleep=self._sleep))
        self.engine.busy_slots = self._busy_slots  # type: ignore[method-assign]
        self.abandoned = Abandoned("a", self.engine, self, self._suspect, SUSPICIOUS_S)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self._bell

    async def _busy_slots(self) -> tuple[Slot, ...] | None:
        self.asked += 1
        answer = self.busy
        self.meanwhile()
        return answer

    def at_work(self, model: str, before: float) -> int:
        assert model == "a"
        return sum(granted_at <= before for granted_at in self.others)

    def _suspect(self, who: Abandoned) -> None:
        assert who is self.abandoned
        self.suspicions += 1

    def add(self, *names: str) -> None:
        for name in names:
            self.abandoned.add(partial(self.released.append, name))

    def look(self, *busy: int, after_s: float = LOOK_EVERY_S) -> list[str]:
        """The pause is over, and the engine works on these. Which slots have come back so far."""
        self.busy = working(*busy)
        return self.wait(after_s)

    def wait(self, seconds: float = LOOK_EVERY_S) -> list[str]:
        self.now += seconds
        self._bell.ring()
        return self.released


@in_a_loop
async def test_it_keeps_its_slot_for_as_long_as_the_engine_works_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add("x")
    for _ in range(25):
        assert vigil.look(7) == []
    assert vigil.look() == ["x"]
    assert vigil.asked == 26


@in_a_loop
async def test_the_engine_is_asked_once_a_second_for_all_of_them_and_never_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch, 1, 2, 3)
    vigil.add("x", "y")
    assert (vigil.asked, vigil.slept) == (0, [1.0])
    vigil.wait()
    vigil.add("z")
    for _ in range(4):
        vigil.wait()
    assert (vigil.asked, vigil.slept) == (5, [1.0] * 6)


@in_a_loop
async def test_of_several_as_many_go_as_the_engine_is_through_with(monkeypatch: pytest.MonkeyPatch) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add("x", "y", "z")
    assert vigil.look(1, 2, 3) == []
    assert sorted(vigil.look(2)) == ["y", "z"]
    assert sorted(vigil.look()) == ["x", "y", "z"]


@in_a_loop
async def test_slots_that_work_for_somebody_explain_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    vigil = Vigil(monkeypatch)
    vigil.others = [90.0, 95.0]
    vigil.add("x")
    assert vigil.look(1, 2, 3) == []
    assert vigil.look(1, 2, 3) == []
    assert vigil.look(1, 3) == ["x"]


@in_a_loop
async def test_short_requests_in_the_other_slots_do_not_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add("x")
    for number in range(10, 20):
        vigil.others = [vigil.now + 0.9]  # there is always one, let through since the last look
        assert vigil.look(7, number) == []
    vigil.others = [vigil.now + 0.9]
    assert vigil.look(20) == ["x"]


@in_a_loop
async def test_what_the_engine_began_later_in_its_place_is_not_it(monkeypatch: pytest.MonkeyPatch) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add("x")
    vigil.look(7)
    assert vigil.look(11) == ["x"]  # in the same slot


@in_a_loop
async def test_an_engine_that_does_not_number_its_tasks_is_told_by_its_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add("x", "y")
    vigil.busy = (Slot(0, 0, 0), Slot(1, 0, 0))
    assert vigil.wait() == []
    vigil.busy = (Slot(1, 0, 0),)
    assert vigil.wait() == ["y"]


@in_a_loop
async def test_one_let_through_in_the_moment_of_the_first_look_does_not_free_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add("x")
    vigil.others = [101.0]  # it has not reached its slot
    assert vigil.look(7) == []
    vigil.others = [101.5]  # it was a short one
    assert vigil.look(7, 8) == []
    assert vigil.look(8) == ["x"]


@in_a_loop
async def test_those_of_different_times_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add("x")
    assert vigil.look(1, 2) == []  # 2 is y, for whom somebody still waits: he does so no more
    vigil.add("y")
    assert vigil.look(1, 2) == []
    vigil.add("z")
    assert vigil.look(1, 2, 3) == []
    assert vigil.look(2, 3, 4) == ["y"]  # two are left, and two slots are kept
    assert vigil.look(3, 4) == ["y", "x"]
    assert vigil.look(4) == ["y", "x", "z"]


@in_a_loop
async def test_the_older_ones_are_through_when_only_what_is_younger_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add("x")
    vigil.look(1)
    vigil.add("y")
    vigil.look(1, 2)
    assert vigil.look(2) == ["x"]
    assert vigil.look() == ["x", "y"]


@in_a_loop
async def test_one_that_is_added_while_the_engine_answers_waits_for_the_next_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add("x")
    vigil.meanwhile = lambda: vigil.add("y")
    assert vigil.look() == ["x"]
    vigil.meanwhile = lambda: None
    assert vigil.look(2) == ["x"]
    assert vigil.look() == ["x", "y"]


@in_a_loop
async def test_a_slot_whose_return_fails_keeps_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise RuntimeError("a mistake of ours")

    vigil = Vigil(monkeypatch)
    vigil.abandoned.add(fails)
    vigil.add("x")
    assert vigil.look() == ["x"]
    assert "a mistake of ours" in caplog.text
    vigil.add("y")
    assert vigil.look() == ["x", "y"]


@in_a_loop
async def test_requests_that_have_not_reached_a_slot_yet_take_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch)
    vigil.others = [90.0] * 5
    vigil.add("x")
    assert vigil.look() == ["x"]


@in_a_loop
async def test_nothing_works_on_what_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add("x", "y")
    vigil.abandoned.let_go()
    assert vigil.released == ["x", "y"]
    assert vigil.look(1, 2) == ["x", "y"]


@in_a_loop
async def test_an_engine_that_does_not_answer_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add("x")
    vigil.busy = None
    assert vigil.wait() == []
    assert vigil.look() == ["x"]


@pytest.mark.parametrize("stopped", [False, True], ids=["dead", "stopped"])
@in_a_loop
async def test_an_engine_that_is_gone_works_on_nothing(
    monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add("x", "y")
    if stopped:
        vigil.engine.stopped = True
    else:
        vigil.engine.ends()
    assert vigil.look(1, 2) == ["x", "y"]
    assert vigil.asked == 0


@in_a_loop
async def test_the_next_one_after_a_pause_is_watched_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add("x")
    vigil.look()
    vigil.add("y")
    assert vigil.look() == ["x", "y"]
    assert vigil.slept == [1.0, 1.0]


@in_a_loop
async def test_an_engine_that_is_busy_for_long_is_suspected_every_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch, 7)
    vigil.add("x")
    vigil.wait(SUSPICIOUS_S - 0.1)
    assert vigil.suspicions == 0
    vigil.wait(0.1)
    assert vigil.suspicions == 1
    vigil.abandoned.wait_on()
    vigil.wait(SUSPICIOUS_S - 0.1)
    assert vigil.suspicions == 1
    vigil.wait(0.1)
    assert (vigil.suspicions, vigil.released) == (2, [])


@in_a_loop
async def test_what_makes_no_progress_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    vigil = Vigil(monkeypatch, 1, 2)
    vigil.add("x", "y")
    vigil.abandoned.give_up(errors.UpstreamTimeout("hung"))
    assert vigil.released == ["x", "y"]


@in_a_loop
async def test_one_that_comes_right_after_others_were_given_up_does_not_double_the_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch, 1)
    for _ in range(3):
        vigil.add("x")
        vigil.abandoned.give_up(errors.UpstreamTimeout("hung"))
    vigil.add("y")
    assert vigil.slept == [1.0]
    vigil.wait()
    assert vigil.asked == 1
