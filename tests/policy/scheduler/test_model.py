"""One model as the scheduler sees it: what it costs, how fast it is, and what may be said of its queue."""

from __future__ import annotations

from math import inf

import pytest

from corral.formats.priority import Priority
from corral.formats.status import ModelState
from corral.policy.scheduler import ModelLimits, Ticket, Usage, Wish
from corral.policy.scheduler.model import ModelView
from corral.policy.scheduler.switching import Claimant, Resident

LIMITS = ModelLimits(slots=2, pinned=False, queue_max=3, load_s_guess=6.0)


def a_view(state: ModelState = ModelState.OFF, now: float = 0.0) -> ModelView:
    view = ModelView("m", LIMITS, 30.0, 0.0)
    if state is not ModelState.OFF:
        view.becomes(state, now)
    return view


def waiting(view: ModelView, now: float, priority: Priority = Priority.NORMAL) -> Ticket:
    ticket = Ticket(Wish("m", "r", priority=priority), now, inf)
    view.queue.add(ticket, now)
    return ticket


def running(view: ModelView, since: float, prompt_tokens: int = 1) -> Ticket:
    ticket = Ticket(Wish("m", "r", prompt_tokens=prompt_tokens), since, inf)
    view.queue.pass_by(ticket, view.estimate(ticket))
    ticket.granted_at = since
    view.running.add(ticket)
    return ticket


def test_a_slot_is_free_while_it_is_ready_and_runs_fewer_than_it_has() -> None:
    view = a_view()
    assert not view.has_free_slot
    view.becomes(ModelState.READY, 1.0)
    assert view.has_free_slot
    running(view, 1.0)
    assert view.has_free_slot
    running(view, 1.0)
    assert not view.has_free_slot


def test_it_is_idle_when_nobody_waits_and_nobody_waits_for_what_runs() -> None:
    view = a_view(ModelState.READY)
    assert view.is_idle
    ticket = running(view, 1.0)
    assert (view.is_idle, view.is_at_work) == (False, True)
    ticket.abandoned, view.abandoned = True, 1
    assert (view.is_idle, view.is_at_work, view.at_work(9.0)) == (True, False, 0)
    view.finished(ticket, None, 2.0)
    assert view.abandoned == 0
    waiting(view, 3.0)
    assert not view.is_idle


def test_a_load_is_measured_from_its_start_to_ready_whatever_is_in_between() -> None:
    view = a_view(ModelState.STARTING, 10.0)
    view.becomes(ModelState.LOADING, 11.0)
    assert view.until_ready_s(12.0) == 4.0
    view.becomes(ModelState.READY, 14.0)
    assert view.pace.load_s.value == 4.0
    assert view.since == 14.0


def test_a_load_that_came_to_nothing_teaches_nothing() -> None:
    view = a_view(ModelState.STARTING, 10.0)
    view.becomes(ModelState.BACKOFF, 11.0)
    view.becomes(ModelState.READY, 90.0)
    assert not view.pace.load_s.known


def test_a_request_teaches_how_long_and_how_much_and_pays_what_it_has_cost() -> None:
    view = a_view(ModelState.READY)
    ticket = running(view, 1.0, prompt_tokens=100)
    assert ticket.charged == 100 + 2 * 256
    view.finished(ticket, Usage(90, 30), 5.0)
    assert (view.pace.service_s.value, view.pace.generated_tokens.value) == (4.0, 30.0)
    assert (ticket.charged, view.served, view.running) == (150.0, 1, set())
    assert view.seconds_per_request == 2.0


def test_a_visit_without_a_prompt_says_nothing_of_how_long_requests_take() -> None:
    view = a_view(ModelState.READY)
    view.finished(running(view, 1.0, prompt_tokens=0), None, 1.0)
    assert not view.pace.service_s.known


def test_as_a_resident_it_is_as_urgent_as_those_who_wait_for_it() -> None:
    view = a_view(ModelState.READY, 5.0)
    assert view.as_resident(8.0) == Resident(6.0, 3.0, None, None, inf)
    waiting(view, 8.0, Priority.LOW)
    assert view.as_resident(40.0) == Resident(6.0, 35.0, Priority.NORMAL, Priority.LOW, inf)


def test_it_is_a_claimant_if_somebody_waits_also_behind_others_of_its_own_key() -> None:
    view = a_view()
    assert view.as_claimant(1.0) is None
    waiting(view, 2.0, Priority.HIGH)
    waiting(view, 1.0, Priority.LOW)
    assert view.as_claimant(5.0) == Claimant(6.0, 4.0, Priority.HIGH, Priority.HIGH)
    for line in view.queue.lines_of("-"):
        view.queue.hold(line)
    assert view.as_claimant(5.0) == Claimant(6.0, 4.0, Priority.LOW, Priority.LOW)


@pytest.mark.parametrize(
    ("state", "left_s"),
    [
        (ModelState.OFF, 6.0),
        (ModelState.STARTING, 4.0),
        (ModelState.LOADING, 4.0),
        (ModelState.READY, 0.0),
        (ModelState.DRAINING, 6.0),
        (ModelState.STOPPING, 6.0),
    ],
    ids=lambda value: value.value if isinstance(value, ModelState) else "",
)
def test_how_long_until_it_serves(state: ModelState, left_s: float) -> None:
    assert a_view(state, 10.0).until_ready_s(12.0) == left_s


def test_a_load_that_takes_longer_than_thought_is_about_to_be_through() -> None:
    assert a_view(ModelState.LOADING, 10.0).until_ready_s(99.0) == 0.0


def test_a_newcomer_need_not_wait_where_a_slot_is_free() -> None:
    view = a_view(ModelState.READY)
    assert view.stats(1.0).next_wait_s == 0.0
    assert a_view().stats(1.0).next_wait_s == 6.0 + 0.5
    for _ in range(2):
        running(view, 1.0)
    assert view.stats(1.0).next_wait_s == 0.5
    waiting(view, 1.0)
    assert (view.stats(3.0).next_wait_s, view.stats(3.0).oldest_wait_s) == (1.0, 2.0)


def test_places_in_a_full_queue_are_promised_one_by_one_and_never_later_than_it_is_empty() -> None:
    view = a_view()
    assert [view.promise_place(0.0) for _ in range(4)] == [6.5, 7.0, 7.5, 7.5]
    assert view.promise_place(100.0) == 6.5
