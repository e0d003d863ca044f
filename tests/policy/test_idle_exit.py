"""When a gateway may end by itself."""

from __future__ import annotations

from corral.policy.idle_exit import IdleExit


def test_it_ends_after_that_much_idleness_from_the_start() -> None:
    idle = IdleExit(10, now=100)
    assert not idle.due(109.9, last_activity=0, busy=False)
    assert idle.due(110, last_activity=0, busy=False)


def test_a_request_that_ended_begins_the_time_anew() -> None:
    idle = IdleExit(10, now=100)
    assert not idle.due(109, last_activity=108.5, busy=False)
    assert not idle.due(118, last_activity=108.5, busy=False)
    assert idle.due(119, last_activity=108.5, busy=False)


def test_what_is_in_hand_is_no_idleness_however_long_it_takes() -> None:
    idle = IdleExit(10, now=100)
    assert not idle.due(500, last_activity=0, busy=True)
    assert not idle.due(509, last_activity=0, busy=False)
    assert idle.due(510, last_activity=0, busy=False)
