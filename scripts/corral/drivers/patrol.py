"""One timer for every deadline: a patrol looks at each of its members a few times a second.

A timer per request would cost a heap push, a cancel and garbage for something that almost never fires.
Here a deadline is a float that its owner writes when it likes, and looking at 10,000 members takes
about a millisecond. The price is precision: a deadline is noticed up to one tick late.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from corral.drivers import clock

log = logging.getLogger("corral.patrol")

TICK_S = 0.1


class Member(Protocol):
    def check(self, now: float) -> None:
        """Look at your deadlines. May leave the patrol, must not raise."""


class Patrol:
    """Calls `check(now)` on every member, once a tick, while there are any."""

    def __init__(self, tick_s: float = TICK_S) -> None:
        self._tick_s = tick_s
        self._members: set[Member] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._members)

    def join(self, member: Member) -> None:
        self._members.add(member)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def leave(self, member: Member) -> None:
        self._members.discard(member)

    def _tick(self) -> None:
        now = clock.monotonic()
        for member in tuple(self._members):
            try:
                member.check(now)
            except Exception:
                # One member's fault must not take everybody else's deadlines away.
                log.exception("a deadline could not be looked at")
                self._members.discard(member)
        # No member, no timer: a gateway at rest does not wake the processor.
        self._timer = (
            asyncio.get_running_loop().call_later(self._tick_s, self._tick) if self._members else None
        )
