from __future__ import annotations

from math import inf

import pytest

from corral.policy.scheduler.pace import GENERATED_TOKENS_GUESS, SERVICE_S_GUESS, Average, Pace


def test_the_first_observation_replaces_the_guess_and_later_ones_weigh_a_fifth() -> None:
    average = Average(100.0)
    assert (average.value, average.known) == (100.0, False)
    average.learn(10.0)
    assert (average.value, average.known) == (10.0, True)
    average.learn(20.0)
    assert average.value == 12.0


def test_after_five_observations_two_thirds_are_forgotten() -> None:
    average = Average(0.0)
    average.learn(100.0)
    for _ in range(5):
        average.learn(0.0)
    assert average.value == pytest.approx(32.768)


def test_a_pace_begins_with_guesses() -> None:
    pace = Pace(load_s_guess=7.0)
    assert pace.load_s.value == 7.0
    assert pace.service_s.value == SERVICE_S_GUESS
    assert pace.generated_tokens.value == GENERATED_TOKENS_GUESS
    assert pace.gap_s(5.0) == inf


def test_the_next_request_is_as_far_away_as_usual_or_as_it_has_been_already() -> None:
    pace = Pace(1.0)
    pace.arrived(10.0)
    assert pace.gap_s(10.0) == inf, "one request tells nothing of the next"
    pace.arrived(12.0)
    assert (pace.gap_s(12.0), pace.gap_s(14.0), pace.gap_s(30.0)) == (2.0, 2.0, 18.0)
    pace.arrived(19.0)
    assert pace.gap_s(19.0) == 3.0
