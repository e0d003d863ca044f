"""How often a key may ask: so many requests in any 60 seconds, whichever 60 seconds one looks at.

The window slides in truth: every admitted request is remembered by its own time, so there is no minute's
turn at which a client could ask twice as much, and the wait that a refusal names is exact. A refused
request is not counted: who keeps knocking is let in as soon as who waits.

Keys are limited by key_id, callers without a key by their address. Keys are as many as the operator
wrote down; addresses are as many as the internet has, so both kinds live in tables with a bound.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from corral.errors import RateLimitExceeded
from corral.formats.duration import format_duration
from corral.formats.key_file import LINES_MAX
from corral.policy.authentication import Principal

WINDOW_S = 60.0
KEYS_MAX = LINES_MAX
ADDRESSES_MAX = 10_000
# How many forgotten windows one newcomer sweeps out: more than one, so that a table shrinks after a
# flood, and few, so that nobody's request pays for the flood.
SWEEP_MAX = 2

_LINES = (
    b"x-ratelimit-limit-requests: %d\r\n"
    b"x-ratelimit-remaining-requests: %d\r\n"
    b"x-ratelimit-reset-requests: %b\r\n"
)
_FULL_WINDOW = format_duration(WINDOW_S).encode("ascii")


class Admission(NamedTuple):
    """What was decided, and what the client is told about it."""

    allowed: bool
    limit: int  # 0: unlimited
    remaining: int
    reset_s: float  # until the whole limit is available again
    retry_after_s: float  # until a request like this one would be admitted: 0 if it was


UNLIMITED = Admission(allowed=True, limit=0, remaining=0, reset_s=0.0, retry_after_s=0.0)


class SlidingWindow:
    """The requests of one key or address that still count.

    The limit is an argument, as `now` is: the lines of one key_id may differ in theirs, and a reload may
    change it, while what has been asked in the last minute stays what it is.
    """

    __slots__ = ("_leaving", "_window_s")

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        # When each admitted request leaves the window, oldest first. Kept instead of when it came, so
        # that a wait and its end are computed from the same number and a client is never let down by
        # the last bit of a float.
        self._leaving: deque[float] = deque()

    def admit(self, limit: int, now: float) -> Admission:
        """Count this request if fewer than `limit` (at least 1) came in the window that ends now."""
        leaving = self._leaving
        while leaving and leaving[0] <= now:
            leaving.popleft()
        count = len(leaving)
        if count < limit:
            leaving.append(now + self._window_s)
            return Admission(True, limit, limit - count - 1, self._window_s, 0.0)
        # One more fits when only limit - 1 are left. That is the oldest one's leaving, except after the
        # limit was lowered.
        return Admission(False, limit, 0, leaving[-1] - now, leaving[count - limit] - now)

    def is_empty(self, now: float) -> bool:
        return not self._leaving or self._leaving[-1] <= now


class WindowTable:
    """Windows by name, at most `windows_max` of them, those used last at the end.

    A newcomer sweeps out windows that have run empty. If every place is taken by one that has not, the
    one that was used longest ago goes: only a flood of addresses brings that about, and the alternative
    would be to turn away newcomers because of it.
    """

    __slots__ = ("_windows", "_windows_max")

    def __init__(self, windows_max: int) -> None:
        self._windows_max = windows_max
        self._windows: OrderedDict[str, SlidingWindow] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def admit(self, name: str, limit: int, now: float) -> Admission:
        window = self._windows.get(name)
        if window is None:
            self._make_room(now)
            window = self._windows[name] = SlidingWindow()
        else:
            self._windows.move_to_end(name)
        return window.admit(limit, now)

    def _make_room(self, now: float) -> None:
        for _ in range(min(SWEEP_MAX, len(self._windows))):
            oldest = next(iter(self._windows.values()))
            if len(self._windows) < self._windows_max and not oldest.is_empty(now):
                return
            self._windows.popitem(last=False)


class RateLimiter:
    """The windows of all keys and of all addresses: apart, so that a flood of these can't push out those."""

    __slots__ = ("_addresses", "_keys")

    def __init__(self) -> None:
        self._keys = WindowTable(KEYS_MAX)
        self._addresses = WindowTable(ADDRESSES_MAX)

    def admit(self, principal: Principal, client_address: str, now: float) -> Admission:
        limit = principal.requests_per_minute
        if not limit:
            return UNLIMITED
        if principal.by_address:
            return self._addresses.admit(client_address, limit, now)
        return self._keys.admit(principal.key_id, limit, now)


def refusal(admission: Admission) -> RateLimitExceeded:
    """The error for a request that was not admitted."""
    wait = format_duration(admission.retry_after_s)
    message = f"Rate limit of {admission.limit} requests per minute reached. Try again in {wait}."
    return RateLimitExceeded(message, retry_after_s=admission.retry_after_s)


def lines(admission: Admission) -> bytes:
    """The headers that tell a client where it stands, as lines. Without a limit there is nothing to tell."""
    if not admission.limit:
        return b""
    # Right after an admission the full limit is a full window away: the usual case, and a constant.
    reset = _FULL_WINDOW if admission.allowed else format_duration(admission.reset_s).encode("ascii")
    return _LINES % (admission.limit, admission.remaining, reset)
