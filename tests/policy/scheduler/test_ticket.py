from __future__ import annotations

import pytest

from corral.formats.priority import Priority
from corral.policy.scheduler import Ticket, Wish
from corral.policy.scheduler.ticket import cost


def test_a_wish_says_nothing_that_was_not_said() -> None:
    wish = Wish("m", "r")
    assert wish == Wish("m", "r", "-", Priority.NORMAL, None, None, 0, None, None)


@pytest.mark.parametrize(
    ("timeout_s", "patience_s"), [(None, 300.0), (5.0, 5.0), (300.0, 300.0), (1000.0, 300.0)]
)
def test_patience_is_the_lesser_of_what_the_client_and_the_queue_allow(
    timeout_s: float | None, patience_s: float
) -> None:
    assert Wish("m", "r", timeout_s=timeout_s).patience_s(300.0) == patience_s


@pytest.mark.parametrize(
    ("max_parallel", "running", "is_over"), [(None, 99, False), (2, 1, False), (2, 2, True), (2, 3, True)]
)
def test_a_key_that_runs_as_many_as_it_may_is_over(
    max_parallel: int | None, running: int, is_over: bool
) -> None:
    assert Wish("m", "r", max_parallel=max_parallel).is_over(running) is is_over


def test_a_generated_token_costs_as_much_as_two_of_a_prompt() -> None:
    assert (cost(100, 0), cost(0, 100), cost(10, 5)) == (100.0, 200.0, 20.0)


def test_a_new_ticket_is_its_wish_and_has_no_history() -> None:
    ticket = Ticket(Wish("m", "r", key_id="k", priority=Priority.LOW), 10.0, 310.0)
    assert (ticket.model, ticket.key_id, ticket.priority) == ("m", "k", Priority.LOW)
    assert (ticket.arrived_at, ticket.deadline, ticket.granted_at) == (10.0, 310.0, None)
    assert (ticket.waits, ticket.released, ticket.abandoned, ticket.charged) == (False, False, False, 0.0)


def test_tickets_with_the_same_wish_are_two() -> None:
    wish = Wish("m", "r")
    assert Ticket(wish, 1.0, 2.0) != Ticket(wish, 1.0, 2.0)
