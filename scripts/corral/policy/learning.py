"""What a model really took last time, and what that says about the next.

A prediction knows the file and the flags, a measurement the truth, drivers and all. So a measurement is
kept for each file and set of flags, and the next start goes by it with a small margin; what was never
measured gets a wide one. A start that ran out of memory was told too little, and is told more.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from enum import Enum
from typing import NamedTuple

from corral.formats.learned import Learned as Learned
from corral.formats.learned import LearnedKey as LearnedKey
from corral.policy.memory import LaunchOptions

UNLEARNED_MULTIPLIER = 1.1
# Two loads of the same file with the same flags differ by no more (allocators round, contexts vary).
LEARNED_MULTIPLIER = 1.02
# How much more is asked for after running out of memory with what was asked for.
FAILURE_MULTIPLIER = 1.1


class Source(Enum):
    PREDICTED = "predicted"
    LEARNED = "learned"
    FILE_SIZE = "file size"  # nothing else is known of a file that can't be read


class Estimate(NamedTuple):
    """What to reserve for a start."""

    predicted_bytes: int
    bytes: int  # margin included
    margin_bytes: int
    source: Source

    @property
    def factor(self) -> float:
        """What turns the prediction for one of several GPUs into its part of the estimate."""
        return self.bytes / self.predicted_bytes if self.predicted_bytes else 1.0


def learned_key(fingerprint: str, options: LaunchOptions, gpu_layers: int) -> LearnedKey:
    """Only what changes the memory is in the key, so a new temperature forgets nothing.

    `gpu_layers` is where the layers went in the end, which a placement may have decided otherwise.
    """
    changed = [f"gpu_layers={gpu_layers}"]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name != "gpu_layers" and (field.default is MISSING or value != field.default):
            changed.append(f"{field.name}={_written(value)}")
    return LearnedKey(fingerprint, " ".join(changed))


def estimate(
    predicted_bytes: int, learned: Learned | None, multiplier: float = UNLEARNED_MULTIPLIER
) -> Estimate:
    """What a start will take, with the margin that the source deserves."""
    if learned is None:
        expected, factor, source = predicted_bytes, multiplier, Source.PREDICTED
    else:
        # It may have been measured on fewer GPUs, and each more has a context of its own.
        unmeasured = max(0, predicted_bytes - learned.predicted_bytes)
        expected, factor, source = learned.measured_bytes + unmeasured, LEARNED_MULTIPLIER, Source.LEARNED
    total = round(expected * max(1.0, factor))
    return Estimate(predicted_bytes, total, total - expected, source)


def error_ratio(learned: Learned) -> float:
    """How far off the prediction was: 0.1 is ten per cent too much, −0.1 too little."""
    if not learned.measured_bytes:
        return 0.0
    return (learned.predicted_bytes - learned.measured_bytes) / learned.measured_bytes


def _written(value: object) -> str:
    # A set has no order of its own, and the key must be the same in every run.
    return ",".join(sorted(value)) if isinstance(value, frozenset) else repr(value)
