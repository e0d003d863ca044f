"""The three classes in which requests wait. Keys are given one, requests ask for one, the queue obeys it."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Priority(IntEnum):
    """A smaller number is served first, so the larger of two is the more modest."""

    HIGH = 1
    NORMAL = 2
    LOW = 3


# For the way of a request, as with the state of a model: a name is looked up sooner than an enum's member.
NORMAL: Final = Priority.NORMAL

_BY_NAME = {"high": Priority.HIGH, "normal": Priority.NORMAL, "low": Priority.LOW}
_BY_NAME |= {str(int(priority)): priority for priority in Priority}


def read(text: str) -> Priority | None:
    """A priority by its name, in any case, or by its number; None for anything else."""
    return _BY_NAME.get(text.strip().lower())
