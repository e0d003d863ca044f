"""Waiting for a fact, with a deadline: what tests do instead of sleeping for as long as it might take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

DEADLINE_S = 15.0
POLL_S = 0.005
# For what is measured: programs that take seconds to start, moments that matter to the millisecond.
LONG_DEADLINE_S = 60.0
FINE_POLL_S = 0.0005


def wait_until(fact: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + deadline_s
    while not fact():
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        time.sleep(POLL_S)


def moments(*facts: Callable[[], object]) -> list[float]:
    """When each of these has become true: of what is started together, anything may be the first."""
    deadline = time.monotonic() + LONG_DEADLINE_S
    found: dict[Callable[[], object], float] = {}
    while len(found) < len(facts):
        assert time.monotonic() < deadline, f"not within {LONG_DEADLINE_S:g} s"
        for fact in facts:
            if fact not in found and fact():
                found[fact] = time.monotonic()
        time.sleep(FINE_POLL_S)
    return [found[fact] for fact in facts]


async def eventually(fact: Callable[[], object], what: str) -> None:
    """The same, while the event loop runs on."""
    deadline = time.monotonic() + DEADLINE_S
    while not fact():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        await asyncio.sleep(POLL_S)


def is_running(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
