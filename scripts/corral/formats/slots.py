"""What llama-server says of its slots: `/props` how many there are, `/slots` which of them work.

Their other fields are nobody's business here.
"""

from __future__ import annotations

import json
from typing import NamedTuple

SLOTS_MAX = 4096


class Slot(NamedTuple):
    """One slot with a task. `tokens` is how far it has come: prompt tokens read and tokens written."""

    number: int
    task: int
    tokens: int


def read_busy(body: bytes) -> tuple[Slot, ...] | None:
    """The busy slots, or None for anything that is not an answer to the question."""
    try:
        slots = json.loads(body)
        if not isinstance(slots, list):
            return None
        return tuple(_slot(each) for each in slots[:SLOTS_MAX] if each["is_processing"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def read_total(body: bytes) -> int | None:
    """How many requests it works on at a time, or None for anything that is not an answer to that."""
    try:
        total = json.loads(body)["total_slots"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    is_number = isinstance(total, int) and not isinstance(total, bool)
    return total if is_number and 1 <= total <= SLOTS_MAX else None


def _slot(entry: dict[str, object]) -> Slot:
    # Older versions give one object, newer ones a list of them (measured).
    following = entry.get("next_token")
    if isinstance(following, list):
        following = following[0] if following else None
    decoded = following.get("n_decoded") if isinstance(following, dict) else None
    read = entry.get("n_prompt_tokens_processed")
    return Slot(_whole(entry.get("id")), _whole(entry.get("id_task")), _whole(decoded) + _whole(read))


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
