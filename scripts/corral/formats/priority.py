"""The three classes in which requests wait. Keys are given one, requests ask for one, the queue obeys it."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """A smaller number is served first, so the larger of two is the more modest."""

    HIGH = 1
    NORMAL = 2
    LOW = 3
