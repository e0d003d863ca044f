"""The table, walked cell by cell."""

from __future__ import annotations

import itertools

import pytest

from corral.formats.http1.states import TABLE, IllegalMove, State, Step, move

# The whole table once more, as one would say it aloud.
LEGAL = {
    "a message begins": {("IDLE", "BEGIN", "HEAD")},
    "a head says how its body ends": {
        ("HEAD", "NO_BODY", "COMPLETE"),
        ("HEAD", "LENGTH", "LENGTH_BODY"),
        ("HEAD", "CHUNKED", "CHUNK_HEAD"),
        ("HEAD", "UNTIL_CLOSE", "CLOSE_BODY"),
        ("HEAD", "INTERIM", "HEAD"),
    },
    "chunks follow each other": {
        ("CHUNK_HEAD", "CHUNK_OPENS", "CHUNK_DATA"),
        ("CHUNK_DATA", "CHUNK_FULL", "CHUNK_END"),
        ("CHUNK_END", "CHUNK_CLOSES", "CHUNK_HEAD"),
        ("CHUNK_HEAD", "LAST_CHUNK", "TRAILERS"),
    },
    "a body ends": {("LENGTH_BODY", "BODY_ENDS", "COMPLETE"), ("TRAILERS", "BODY_ENDS", "COMPLETE")},
    "the caller is told, and asks for more": {("COMPLETE", "TELL", "DONE"), ("DONE", "NEXT", "IDLE")},
    "an end of input is fine between messages": {
        ("IDLE", "EOF", "CLOSED"),
        ("DONE", "EOF", "DONE"),
        ("CLOSED", "EOF", "CLOSED"),
        ("CLOSE_BODY", "EOF", "COMPLETE"),
    },
    "an end of input inside a message is an error": {
        (state, "EOF", "ERROR")
        for state in ("HEAD", "LENGTH_BODY", "CHUNK_HEAD", "CHUNK_DATA", "CHUNK_END", "TRAILERS")
    },
    "wherever bytes are judged, they can be wrong": {
        (state, "FAULT", "ERROR")
        for state in (
            "IDLE",
            "HEAD",
            "LENGTH_BODY",
            "CHUNK_HEAD",
            "CHUNK_DATA",
            "CHUNK_END",
            "TRAILERS",
            "CLOSE_BODY",
            "DONE",
        )
    },
}
NEXT_STATE = {(state, step): after for cells in LEGAL.values() for state, step, after in cells}


@pytest.mark.parametrize(
    ("state", "step"), list(itertools.product(State, Step)), ids=lambda member: member.name.lower()
)
def test_every_cell_leads_where_it_should_or_raises(state: State, step: Step) -> None:
    after = NEXT_STATE.get((state.name, step.name))
    if after is None:
        with pytest.raises(IllegalMove, match=f"{step.name} is not possible in the state {state.name}"):
            move(state, step)
    else:
        assert move(state, step) is State[after]


def test_every_state_has_a_row() -> None:
    assert set(TABLE) == set(State)


def test_nothing_leads_out_of_an_error() -> None:
    assert TABLE[State.ERROR] == {}


def test_every_state_can_be_reached() -> None:
    reached = {State.IDLE}
    while more := {after for state in reached for after in TABLE[state].values()} - reached:
        reached |= more
    assert reached == set(State)
