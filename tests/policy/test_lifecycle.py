from __future__ import annotations

import itertools

import pytest

from corral.formats.status import ModelState
from corral.policy.lifecycle import (
    DEATHS_MAX,
    GOOD_SPELL_S,
    JITTER,
    PAUSE_MAX_S,
    RESIDENT,
    TABLE,
    Deaths,
    Event,
    ImpossibleEvent,
    next_state,
)

EVERY_CELL = list(itertools.product(ModelState, Event))


@pytest.mark.parametrize(("state", "event"), EVERY_CELL, ids=lambda each: each.value)
def test_every_cell_is_a_move_or_an_error(state: ModelState, event: Event) -> None:
    if (state, event) in TABLE:
        assert next_state(state, event) is TABLE[state, event]
    else:
        with pytest.raises(ImpossibleEvent, match=f"{event.value} in state {state.value}"):
            next_state(state, event)


def test_every_state_can_be_reached_from_off_and_left_again() -> None:
    reached, fringe = {ModelState.OFF}, [ModelState.OFF]
    while fringe:
        here = fringe.pop()
        for (state, _event), following in TABLE.items():
            if state is here and following not in reached:
                reached.add(following)
                fringe.append(following)
    assert reached == set(ModelState)
    assert {state for state, _event in TABLE} == set(ModelState)


def test_every_state_with_a_process_survives_its_death_and_can_be_stopped() -> None:
    for state in RESIDENT - {ModelState.STOPPING}:
        assert next_state(state, Event.DIED) is ModelState.BACKOFF
        assert next_state(state, Event.STOP) is ModelState.STOPPING
    assert next_state(ModelState.STOPPING, Event.EXITED) is ModelState.OFF


def test_only_a_reset_leaves_failed() -> None:
    assert [event for state, event in TABLE if state is ModelState.FAILED] == [Event.RESET]


def test_the_pause_doubles_from_one_second_up_to_a_minute() -> None:
    assert [Deaths(count).pause_s(0.0) for count in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, PAUSE_MAX_S]
    assert Deaths(5_000).pause_s(0.0) == PAUSE_MAX_S


def test_luck_lengthens_the_pause_a_little() -> None:
    assert Deaths(1).pause_s(1.0) == 1.0 + JITTER


def test_five_deaths_in_a_row_are_too_many() -> None:
    deaths = Deaths()
    for _ in range(DEATHS_MAX - 1):
        deaths = deaths.another(lived_s=GOOD_SPELL_S - 1)
        assert not deaths.too_many
    assert deaths.another(lived_s=GOOD_SPELL_S - 1).too_many


def test_a_good_minute_forgives_the_deaths_before() -> None:
    assert Deaths(DEATHS_MAX - 1).another(lived_s=GOOD_SPELL_S) == Deaths(1)
