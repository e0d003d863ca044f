"""A lease and a door: what is entered is left exactly once, whatever happened in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from corral import errors
from corral.drivers import tasks
from corral.drivers.http_client import Address
from corral.drivers.http_server import ClientGone
from corral.fleet import EngineLost, Lease
from corral.policy.scheduler import Ticket, Wish
from tests.fleet.herd import FakeEngine
from tests.in_a_loop import in_a_loop, turns
from tests.waiting import eventually


class FakeDoor:
    """Grants when the test says so, and counts who came and who left."""

    def __init__(self, *, opens_at: float | None = None) -> None:
        self.engine = FakeEngine("a", 9001)
        self.arrived = 0
        self.departed = 0
        self.refusal: errors.CorralError | None = None
        self.fault: errors.CorralError | None = None
        self._opens_at = opens_at

    def arrive(self, lease: Lease) -> None:
        self.arrived += 1
        if self.refusal is not None:
            raise self.refusal
        lease.ticket.granted_at = self._opens_at

    def depart(self, _lease: Lease) -> None:
        self.departed += 1

    def position(self, _ticket: Ticket) -> int:
        return 3

    def hand_over(self, lease: Lease) -> None:
        if self.fault is not None:
            raise self.fault
        lease.address = self.engine.address
        lease.engine = self.engine


class Visit:
    """A request that enters, waits for the test's word, and leaves."""

    def __init__(self, door: FakeDoor, every_s: float | None = None) -> None:
        self.lease = Lease(door, Ticket(Wish("a", "r"), 10.0, 310.0))
        self.told: list[int] = []
        if every_s is not None:
            self.lease.on_waiting = every_s, self.told.append
        self.is_in = False
        self.error: BaseException | None = None
        self.bell = tasks.Bell()
        self.strand = tasks.Strand(self._run(), self._ended)
        self.strand.step()

    async def _run(self) -> None:
        with self.lease as entered:
            assert entered is self.lease
            if entered.waits:
                await entered.granted()
            entered.open()
            self.is_in = True
            await self.bell

    def _ended(self, error: BaseException | None) -> None:
        self.error = error


@in_a_loop
async def test_a_free_slot_is_entered_at_once_and_left_once() -> None:
    door = FakeDoor(opens_at=12.5)
    visit = Visit(door)
    assert visit.is_in
    assert visit.lease.address == Address("127.0.0.1", 9001)
    assert visit.lease.waited_s == 2.5
    assert door.departed == 0
    visit.bell.ring()
    assert (visit.strand.done, visit.error, door.departed) == (True, None, 1)


@in_a_loop
async def test_waiting_ends_with_the_grant_and_from_a_fresh_stack() -> None:
    door = FakeDoor()
    visit = Visit(door)
    visit.lease.ticket.granted_at = 11.0
    visit.lease.settle()
    assert not visit.is_in  # not inside the caller's own call
    await turns()
    assert visit.is_in
    visit.bell.ring()
    assert door.departed == 1


@in_a_loop
async def test_a_ring_without_a_grant_is_no_grant() -> None:
    visit = Visit(FakeDoor())
    visit.lease.settle()
    await turns()
    assert not visit.is_in
    visit.strand.throw(ClientGone())


@in_a_loop
async def test_a_refusal_while_waiting_is_what_the_request_fails_with() -> None:
    door = FakeDoor()
    visit = Visit(door)
    error = errors.QueueTimeout("too long")
    visit.lease.settle(error)
    await turns()
    assert visit.error is error
    assert door.departed == 1


def refused_at_the_door(door: FakeDoor) -> None:
    door.refusal = errors.QueueFull("full")


def gone_at_the_hand_over(door: FakeDoor) -> None:
    door.fault = EngineLost("went away", was_there=False)


@pytest.mark.parametrize("trouble", [refused_at_the_door, gone_at_the_hand_over])
def test_trouble_on_the_way_in_leaves_nothing_behind(trouble: Callable[[FakeDoor], None]) -> None:
    door = FakeDoor(opens_at=10.0)
    trouble(door)
    visit = Visit(door)
    assert isinstance(visit.error, (errors.QueueFull, EngineLost))
    assert (visit.is_in, door.arrived, door.departed) == (False, 1, 1)


@in_a_loop
async def test_a_client_that_leaves_is_let_out_while_it_waits_and_while_it_is_served() -> None:
    for opens_at in (None, 10.0):
        door = FakeDoor(opens_at=opens_at)
        visit = Visit(door)
        assert visit.is_in is (opens_at is not None)
        visit.strand.throw(ClientGone())
        assert isinstance(visit.error, ClientGone)
        assert door.departed == 1


@in_a_loop
async def test_whoever_waits_is_told_where_it_stands_every_now_and_then_until_it_has_its_slot() -> None:
    visit = Visit(FakeDoor(), every_s=0.001)
    await eventually(lambda: len(visit.told) >= 3, "it was told three times")
    assert set(visit.told) == {3}
    visit.lease.ticket.granted_at = 11.0
    visit.lease.settle()
    await turns()
    assert visit.is_in
    told = len(visit.told)
    await asyncio.sleep(0.01)
    assert len(visit.told) == told
    visit.bell.ring()


@in_a_loop
async def test_who_need_not_wait_or_leaves_is_told_nothing() -> None:
    at_once = Visit(FakeDoor(opens_at=10.0), every_s=0.001)
    leaving = Visit(FakeDoor(), every_s=0.001)
    leaving.strand.throw(ClientGone())
    refused = Visit(FakeDoor(), every_s=0.001)
    refused.lease.settle(errors.QueueTimeout("too long"))
    await turns()
    told = list(refused.told)
    await asyncio.sleep(0.01)
    assert (at_once.told, leaving.told, refused.told) == ([], [], told)
    at_once.bell.ring()


@in_a_loop
async def test_an_engine_that_is_gone_or_goes_within_a_moment_has_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("corral.fleet.lease.DEATH_NOTICE_S", 0.05)
    visit = Visit(door := FakeDoor(opens_at=10.0))
    assert not await tasks.outcome(visit.lease.engine_died())
    going = tasks.outcome(visit.lease.engine_died())
    assert not going.done()
    door.engine.ends()
    assert await going
    door.engine.stopped = True
    assert not await tasks.outcome(visit.lease.engine_died()), "it was ended, and did not die"
    visit.bell.ring()


def test_who_was_there_when_an_engine_died_had_better_not_try_again() -> None:
    assert EngineLost("died", was_there=True).should_retry is False
    assert EngineLost("died", was_there=False).should_retry is None
