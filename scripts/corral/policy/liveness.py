"""Is it thinking, stuck, or dead? Silence alone does not tell.

A llama-server that answers a request which is not streamed sends no byte until it has finished, and with
all its slots busy it withholds even the headers of further answers. So a request that has heard nothing
for `request_timeout_sec` is suspicious and no more. Two samples of the process, taken a moment apart,
decide:

- it answers `/slots`, and as many slots moved as it has requests: it works. Go on waiting;
- it answers, and fewer moved: this request stands still. It is ended, the process is not;
- it does not answer, but burns processor time or writes its log: it is busy with a long batch, in which
  it answers nobody. Go on waiting;
- it does not answer and nothing moves: this request is ended, and the process is on probation. Only if it
  stays unanswering and motionless for all of `PROBATION_S` is it killed.

An answer that waits for its slow reader is left out of the count: the engine may be through with it, and
have no slot for it any more. If it is not, its slot may hide for a while that another request stands still.

`/health` is no witness: it is answered by a thread that knows nothing of the one that computes (measured).
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from corral.formats.slots import Slot

# Between the two samples. Long enough for a slow token on a slow machine.
SAMPLE_GAP_S = 2.0
PROBATION_S = 30.0
# A process that waits for something uses no processor time to speak of.
BUSY_SHARE = 0.05
# A load that moves in none of the ways in which a load can move is not going to end.
LOAD_STALL_S = 120.0


class Sample(NamedTuple):
    """A process at one moment."""

    at: float
    slots: tuple[Slot, ...] | None  # None: it did not answer
    cpu_s: float
    output_bytes: int
    held_up: int = 0  # answers of it that wait for a slow reader


class Verdict(Enum):
    WORKING = "working"
    REQUEST_STUCK = "request stuck"
    SUSPECT = "suspect"


def judge(before: Sample, after: Sample, requests: int) -> Verdict:
    """What two samples say of a process that has this many requests."""
    if after.slots is None:
        return Verdict.WORKING if moves(before, after) else Verdict.SUSPECT
    known = {slot.number: slot for slot in before.slots or ()}
    # A slot that was not busy before, or has another task now, has moved too.
    moved = sum(slot != known.get(slot.number) for slot in after.slots)
    finished = len(known.keys() - {slot.number for slot in after.slots})
    expected = max(1, requests - max(before.held_up, after.held_up))
    return Verdict.WORKING if moved + finished >= expected else Verdict.REQUEST_STUCK


def moves(before: Sample, after: Sample) -> bool:
    """Whether a process that does not answer does anything at all."""
    if after.output_bytes > before.output_bytes:
        return True
    return after.cpu_s - before.cpu_s >= BUSY_SHARE * max(0.001, after.at - before.at)


class LoadProgress(NamedTuple):
    """All that grows while a model loads: what it has printed, read, and holds."""

    output_bytes: int
    read_bytes: int
    resident_bytes: int


class StallTimer:
    """A load's limit: not how long it takes, but how long it stands still."""

    def __init__(self, limit_s: float, now: float) -> None:
        self._limit_s = limit_s
        self._best = LoadProgress(0, 0, 0)
        self._moved_at = now

    def stalled(self, progress: LoadProgress, now: float) -> bool:
        """Take the latest figures; whether nothing has grown for too long."""
        if any(new > old for new, old in zip(progress, self._best, strict=True)):
            self._best = LoadProgress(*map(max, progress, self._best))
            self._moved_at = now
        return now - self._moved_at >= self._limit_s
