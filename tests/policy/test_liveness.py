from __future__ import annotations

import pytest

from corral.formats.slots import Slot
from corral.policy.liveness import LoadProgress, Sample, StallTimer, Verdict, judge, moves

BUSY = (Slot(0, 7, 100), Slot(1, 8, 50))


def sample(
    at: float, slots: tuple[Slot, ...] | None = (), cpu_s: float = 0.0, output_bytes: int = 0
) -> Sample:
    return Sample(at, slots, cpu_s, output_bytes)


@pytest.mark.parametrize(
    ("before", "after", "requests", "verdict"),
    [
        (BUSY, (Slot(0, 7, 101), Slot(1, 8, 51)), 2, Verdict.WORKING),
        (BUSY, (Slot(0, 7, 101), Slot(1, 8, 50)), 2, Verdict.REQUEST_STUCK),
        (BUSY, (Slot(0, 7, 101), Slot(1, 8, 50)), 1, Verdict.WORKING),
        (BUSY, BUSY, 1, Verdict.REQUEST_STUCK),
        (BUSY, (Slot(0, 9, 1), Slot(1, 8, 51)), 2, Verdict.WORKING),
        (BUSY, (Slot(1, 8, 51),), 2, Verdict.WORKING),
        ((), (), 1, Verdict.REQUEST_STUCK),
        (None, BUSY, 2, Verdict.WORKING),
    ],
    ids=[
        "all move",
        "one of two stands",
        "the one that stands is nobody's any more",
        "all stand",
        "a slot has another task now",
        "a slot has finished",
        "it has the request in no slot at all",
        "it answers again",
    ],
)
def test_a_process_that_answers_is_judged_by_its_slots(
    before: tuple[Slot, ...] | None, after: tuple[Slot, ...], requests: int, verdict: Verdict
) -> None:
    # Processor time and log say nothing here: a stuck request may spin.
    assert judge(sample(0.0, before), sample(2.0, after, cpu_s=2.0, output_bytes=9), requests) is verdict


@pytest.mark.parametrize(("held_up_before", "held_up_after"), [(1, 1), (1, 0), (0, 1)])
def test_what_waits_for_its_reader_need_not_be_in_a_slot(held_up_before: int, held_up_after: int) -> None:
    """The engine may be through with it, and the others are not to blame for that."""
    before = sample(0.0, (Slot(0, 7, 100),))._replace(held_up=held_up_before)
    moved = sample(2.0, (Slot(0, 7, 101),))._replace(held_up=held_up_after)
    stood = sample(2.0, (Slot(0, 7, 100),))._replace(held_up=held_up_after)
    assert judge(before, moved, requests=2) is Verdict.WORKING
    assert judge(before, moved, requests=3) is Verdict.REQUEST_STUCK
    # It is not held up itself, or nobody would ask.
    assert judge(before, stood, requests=1) is Verdict.REQUEST_STUCK


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (sample(2.0, None), Verdict.SUSPECT),
        (sample(2.0, None, cpu_s=0.05), Verdict.SUSPECT),
        (sample(2.0, None, cpu_s=0.2), Verdict.WORKING),
        (sample(2.0, None, output_bytes=1), Verdict.WORKING),
    ],
    ids=["nothing moves", "a breath", "it computes", "it writes its log"],
)
def test_a_process_that_does_not_answer_is_judged_by_what_it_does(after: Sample, verdict: Verdict) -> None:
    assert judge(sample(0.0, BUSY), after, requests=1) is verdict
    assert moves(sample(0.0, BUSY), after) is (verdict is Verdict.WORKING)


def test_two_samples_of_one_moment_show_no_movement() -> None:
    assert not moves(sample(1.0, None), sample(1.0, None))


@pytest.mark.parametrize("grown", ["output_bytes", "read_bytes", "resident_bytes"])
def test_whatever_grows_keeps_a_load_alive(grown: str) -> None:
    timer = StallTimer(10.0, now=0.0)
    still = LoadProgress(1, 1, 1)
    assert not timer.stalled(still, 5.0)
    assert not timer.stalled(still._replace(**{grown: 2}), 14.0)
    assert not timer.stalled(still, 23.9)
    assert timer.stalled(still, 24.0)


def test_what_shrinks_and_grows_again_is_no_progress() -> None:
    timer = StallTimer(10.0, now=0.0)
    for now, resident in ((1.0, 9), (4.0, 5), (7.0, 9), (10.9, 8)):
        assert not timer.stalled(LoadProgress(0, 0, resident), now)
    assert timer.stalled(LoadProgress(0, 0, 9), 11.0)
