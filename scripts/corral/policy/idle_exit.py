"""When a gateway that nobody needs should end by itself: for platforms that bill until a process exits."""

from __future__ import annotations


class IdleExit:
    """Is asked now and then, and says yes once nothing was asked of any model for long enough."""

    def __init__(self, after_s: float, now: float) -> None:
        self._after_s = after_s
        self._quiet_since = now

    def due(self, now: float, *, last_activity: float, busy: bool) -> bool:
        """`last_activity` is when a request for a model last came or ended, on the clock of `now`."""
        self._quiet_since = now if busy else max(self._quiet_since, last_activity)
        return now - self._quiet_since >= self._after_s
