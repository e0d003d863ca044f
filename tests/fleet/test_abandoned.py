"""Requests that nobody waits for any more: their slots come back when the engine is seen to be through."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from corral import errors
from corral.drivers import clock, tasks
from corral.fleet import abandoned as abandoned_module
from corral.fleet.abandoned import LOOK_EVERY_S, Abandoned
from corral.policy.scheduler import Ticket, Wish
from tests.fleet.herd import FakeEngine
from tests.in_a_loop import in_a_loop

SUSPICIOUS_S = 120.0


class Vigil:
    """An engine with abandoned requests, and a clock that moves when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, busy: int | None = 1) -> None:
        self.now = 100.0
        self.engine = FakeEngine("a", 9001)
        self.engine.busy = busy
        self.asked = 0
        self.others = 0  # requests that somebody waits for
        self.before: list[float] = []
        self.released: list[Ticket] = []
        self.suspicions = 0
        self.slept: list[float] = []
        self._bell = tasks.Bell()
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        monkeypatch.setattr(abandoned_module, "asyncio", SimpleNamespace(sleep=self._sleep))
        self.engine.busy_slots = self._busy_slots  # type: ignore[method-assign]
        self.abandoned = Abandoned("a", self.engine, self, self.released.append, self._suspect, SUSPICIOUS_S)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self._bell

    async def _busy_slots(self) -> int | None:
        self.asked += 1
        return self.engine.busy

    def at_work(self, model: str, before: float) -> int:
        assert model == "a"
        self.before.append(before)
        return self.others

    def _suspect(self, who: Abandoned) -> None:
        assert who is self.abandoned
        self.suspicions += 1

    def add(self) -> Ticket:
        ticket = Ticket(Wish("a", "r"), 0.0, 300.0)
        self.abandoned.add(ticket)
        return ticket

    def look(self, after_s: float = LOOK_EVERY_S) -> None:
        """The pause is over."""
        self.now += after_s
        self._bell.ring()


@in_a_loop
async def test_it_keeps_its_slot_for_as_long_as_the_engine_works_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch)
    ticket = vigil.add()
    for _ in range(25):
        vigil.look()
    assert vigil.released == []
    vigil.engine.busy = 0
    vigil.look()
    assert vigil.released == [ticket]
    assert vigil.asked == 26


@in_a_loop
async def test_the_engine_is_asked_once_a_second_for_all_of_them_and_never_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch, busy=3)
    for _ in range(3):
        vigil.add()
    assert (vigil.asked, vigil.slept) == (0, [1.0])
    for _ in range(5):
        vigil.look()
    assert (vigil.asked, vigil.slept) == (5, [1.0] * 6)


@in_a_loop
async def test_of_several_as_many_go_as_the_engine_is_through_with_the_oldest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch, busy=3)
    tickets = [vigil.add() for _ in range(3)]
    vigil.look()
    assert vigil.released == []
    vigil.engine.busy = 1
    vigil.look()
    assert vigil.released == tickets[:2]
    vigil.engine.busy = 0
    vigil.look()
    assert vigil.released == tickets


@in_a_loop
async def test_slots_that_work_for_somebody_explain_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    vigil = Vigil(monkeypatch, busy=3)
    vigil.others = 2
    ticket = vigil.add()
    vigil.look()
    assert vigil.released == []
    # Who was let through since the last look may not have reached its slot, and is not counted.
    assert vigil.before == [100.0]
    vigil.engine.busy = 2
    vigil.look()
    assert vigil.released == [ticket]


@in_a_loop
async def test_requests_that_have_not_reached_a_slot_yet_take_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch, busy=0)
    vigil.others = 5
    ticket = vigil.add()
    vigil.look()
    assert vigil.released == [ticket]


@in_a_loop
async def test_an_engine_that_does_not_answer_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vigil = Vigil(monkeypatch, busy=None)
    ticket = vigil.add()
    vigil.look()
    assert vigil.released == []
    vigil.engine.busy = 0
    vigil.look()
    assert vigil.released == [ticket]


@pytest.mark.parametrize("stopped", [False, True], ids=["dead", "stopped"])
@in_a_loop
async def test_an_engine_that_is_gone_works_on_nothing(
    monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    vigil = Vigil(monkeypatch, busy=2)
    tickets = [vigil.add(), vigil.add()]
    if stopped:
        vigil.engine.stopped = True
    else:
        vigil.engine.ends()
    vigil.look()
    assert vigil.released == tickets
    assert vigil.asked == 0


@in_a_loop
async def test_the_next_one_after_a_pause_is_watched_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    vigil = Vigil(monkeypatch, busy=0)
    first = vigil.add()
    vigil.look()
    second = vigil.add()
    vigil.look()
    assert vigil.released == [first, second]
    assert vigil.slept == [1.0, 1.0]


@in_a_loop
async def test_an_engine_that_is_busy_for_long_is_suspected_every_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch)
    vigil.add()
    vigil.look(SUSPICIOUS_S - 0.1)
    assert vigil.suspicions == 0
    vigil.look(0.1)
    assert vigil.suspicions == 1
    vigil.abandoned.wait_on()
    vigil.look(SUSPICIOUS_S - 0.1)
    assert vigil.suspicions == 1
    vigil.look(0.1)
    assert (vigil.suspicions, vigil.released) == (2, [])


@in_a_loop
async def test_what_makes_no_progress_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    vigil = Vigil(monkeypatch)
    tickets = [vigil.add(), vigil.add()]
    vigil.abandoned.give_up(errors.UpstreamTimeout("hung"))
    assert vigil.released == tickets


@in_a_loop
async def test_one_that_comes_right_after_others_were_given_up_does_not_double_the_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vigil = Vigil(monkeypatch)
    for _ in range(3):
        vigil.add()
        vigil.abandoned.give_up(errors.UpstreamTimeout("hung"))
    vigil.add()
    assert vigil.slept == [1.0]
    vigil.look()
    assert vigil.asked == 1
