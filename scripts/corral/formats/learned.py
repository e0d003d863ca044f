"""What is learnt from a load: its size in truth, and what this is good for.

Policy judges by it and a driver keeps it on the disk, and those two don't know each other; so the values
that they share stand below both.
"""

from __future__ import annotations

from typing import NamedTuple


class LearnedKey(NamedTuple):
    """What a measurement is good for: this file, started with these flags."""

    fingerprint: str
    flags: str


class Learned(NamedTuple):
    """A measurement, and what had been predicted for the same layout."""

    measured_bytes: int
    predicted_bytes: int
