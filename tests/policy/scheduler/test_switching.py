"""The rule by value: when a loaded model makes way."""

from __future__ import annotations

import random
from math import inf

import pytest

from corral.formats.priority import Priority
from corral.policy.scheduler.queue import AGED
from corral.policy.scheduler.switching import Claimant, Resident, Terms, patience_s, yields

HIGH, NORMAL, LOW = int(Priority.HIGH), int(Priority.NORMAL), int(Priority.LOW)
TERMS = Terms(aging_s=30.0, min_residency_s=20.0, queue_timeout_s=300.0)

BUSY = Resident(load_s=3.0, ready_for_s=1000.0, level=NORMAL, base=NORMAL, gap_s=0.1)
FREE = Resident(load_s=3.0, ready_for_s=1000.0, level=None, base=None, gap_s=inf)
WAITING = Claimant(load_s=2.0, waited_s=20.0, level=NORMAL, base=NORMAL)


def test_a_model_in_use_goes_when_the_wait_is_worth_four_switches() -> None:
    assert patience_s(BUSY, WAITING, TERMS) == 4 * (3.0 + 2.0)
    assert not yields(BUSY, WAITING._replace(waited_s=19.9), TERMS)
    assert yields(BUSY, WAITING, TERMS)


def test_patience_is_never_more_than_a_quarter_of_what_the_queue_allows() -> None:
    dear = BUSY._replace(load_s=500.0)
    assert patience_s(dear, WAITING, TERMS) == 75.0
    assert not yields(dear, WAITING._replace(waited_s=74.9), TERMS)
    assert yields(dear, WAITING._replace(waited_s=75.0), TERMS)


@pytest.mark.parametrize(
    ("load_s", "min_residency_s", "ready_for_s", "goes"),
    [
        (1.0, 8.0, 7.9, False),  # the residency
        (1.0, 8.0, 8.0, True),
        (10.0, 8.0, 23.9, False),  # twice the price
        (10.0, 8.0, 24.0, True),
        (1.0, 20.0, 11.9, False),  # no longer than the patience
        (1.0, 20.0, 12.0, True),
    ],
)
def test_it_stays_for_its_residency_or_for_what_the_switch_is_worth(
    load_s: float, min_residency_s: float, ready_for_s: float, goes: bool
) -> None:
    terms = TERMS._replace(min_residency_s=min_residency_s)
    resident = BUSY._replace(load_s=load_s, ready_for_s=ready_for_s)
    assert yields(resident, WAITING._replace(waited_s=200.0), terms) is goes


def test_a_higher_class_waits_for_the_price_alone_and_shortens_the_residency() -> None:
    high = WAITING._replace(level=HIGH, base=HIGH)
    assert patience_s(BUSY, high, TERMS) == 5.0
    assert not yields(BUSY._replace(ready_for_s=5.0), high._replace(waited_s=4.9), TERMS)
    assert not yields(BUSY._replace(ready_for_s=4.9), high._replace(waited_s=5.0), TERMS)
    assert yields(BUSY._replace(ready_for_s=5.0), high._replace(waited_s=5.0), TERMS)


def test_rising_makes_nobody_higher() -> None:
    risen = WAITING._replace(level=HIGH, waited_s=19.9)
    assert patience_s(BUSY, risen, TERMS) == 20.0
    assert not yields(BUSY, risen, TERMS)
    # And who has risen on the other side defends its place by what it is now.
    assert patience_s(BUSY._replace(level=HIGH), WAITING._replace(level=HIGH, base=HIGH), TERMS) == 20.0


@pytest.mark.parametrize(
    ("level", "goes"), [(LOW, False), (NORMAL, True), (HIGH, True), (AGED, True)], ids=str
)
def test_a_lower_class_has_to_rise_to_its_opponents(level: int, goes: bool) -> None:
    low = Claimant(load_s=2.0, waited_s=1000.0, level=level, base=LOW)
    assert yields(BUSY, low, TERMS) is goes


def test_who_has_aged_past_the_top_is_withstood_by_nobody() -> None:
    highest = BUSY._replace(level=AGED, base=HIGH)
    aged = Claimant(load_s=2.0, waited_s=1000.0, level=AGED, base=LOW)
    assert yields(highest, aged, TERMS)


def test_one_that_nobody_waits_for_goes_if_its_next_request_is_further_away_than_a_switch() -> None:
    new = WAITING._replace(waited_s=0.0)
    assert yields(FREE._replace(gap_s=5.0), new, TERMS)
    assert not yields(FREE._replace(gap_s=4.9), new, TERMS)
    # It is held for no longer than the price, however fast its requests come.
    assert yields(FREE._replace(gap_s=0.1), new._replace(waited_s=5.0), TERMS)


def test_to_one_that_nobody_waits_for_every_class_is_higher() -> None:
    assert patience_s(FREE, WAITING._replace(level=LOW, base=LOW), TERMS) == 5.0
    assert yields(FREE._replace(gap_s=0.1), Claimant(2.0, 5.0, LOW, LOW), TERMS)


def test_for_a_switch_that_takes_no_time_nothing_is_held() -> None:
    quick = FREE._replace(load_s=0.1, gap_s=0.0, ready_for_s=0.0)
    assert yields(quick, Claimant(0.1, 0.0, LOW, LOW), TERMS)
    assert not yields(quick, Claimant(0.2, 0.0, LOW, LOW), TERMS)


def test_whoever_waits_has_the_place_within_a_bound_that_can_be_computed() -> None:
    luck = random.Random(1)
    for _ in range(2000):
        terms = Terms(luck.uniform(1, 60), luck.uniform(0, 600), luck.uniform(1, 600))
        base, opponent = luck.randint(HIGH, LOW), luck.randint(HIGH, LOW)
        resident = Resident(luck.uniform(0, 60), luck.uniform(0, 1000), opponent, opponent, 0.0)
        claimant = Claimant(luck.uniform(0, 60), 0.0, base, base)
        patience = patience_s(resident, claimant, terms)
        # When it has waited that long, risen as far as that takes, and the other has been there as long.
        waited_s = max(patience, terms.aging_s * max(0, base - opponent))
        late = claimant._replace(waited_s=waited_s, level=max(AGED, base - int(waited_s / terms.aging_s)))
        assert yields(resident._replace(ready_for_s=patience), late, terms)
        assert patience <= terms.queue_timeout_s / 4
