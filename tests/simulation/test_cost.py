from __future__ import annotations

from statistics import median

import pytest

from tests.simulation.cost import decision_us, departure_us

BUDGET_US = 20.0


@pytest.mark.parametrize("keys", [1, 100, 10_000])
def test_a_decision_costs_little_more_among_ten_thousand_than_among_a_hundred(keys: int) -> None:
    """Two misses in a row: these machines are busy, and a bad moment says nothing."""
    for _ in range(2):
        rounds = [(decision_us(100, keys), decision_us(10_000, keys)) for _ in range(3)]
        few, many = (median(each) for each in zip(*rounds, strict=True))
        if many <= BUDGET_US and many <= 3 * few:
            return
    pytest.fail(f"{few:.1f} µs among 100, {many:.1f} µs among 10,000 that wait")


def test_a_departure_costs_no_more_for_the_hundreds_of_models_that_others_wait_for() -> None:
    for _ in range(2):
        if (spent_us := median(departure_us(300) for _ in range(3))) <= BUDGET_US:
            return
    pytest.fail(f"{spent_us:.1f} µs")
