"""The two clocks. Everything that decides takes `now` as an argument; this is where `now` comes from.

One home for the clock means that a test, or the simulator, can be sure that nothing else reads it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Generic, TypeVar

T = TypeVar("T")

# Seconds that only ever grow: for every duration, deadline and window.
monotonic: Callable[[], float] = time.monotonic
# Seconds since the epoch: for logs, file names and what people read.
wall: Callable[[], float] = time.time


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class PerSecond(Generic[T]):
    """A text of the time that changes once a second and is therefore made once a second."""

    __slots__ = ("_make", "_second", "_text")

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._second = -1
        self._text: T

    def at(self, now: float) -> T:
        second = int(now)
        if second != self._second:
            self._second = second
            self._text = self._make(second)
        return self._text


def http_date(second: int) -> bytes:
    """The value of a Date header (RFC 9110, 6.6.1)."""
    # By hand: email.utils costs 5 ms of start-up (measured), and strftime speaks the machine's language.
    at = time.gmtime(second)
    day, month = _DAYS[at.tm_wday], _MONTHS[at.tm_mon - 1]
    clock = f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}"
    return f"{day}, {at.tm_mday:02} {month} {at.tm_year} {clock} GMT".encode("ascii")


def iso_second(second: int) -> str:
    """ISO 8601 in UTC, without its end, so that a fraction can follow."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


_day = PerSecond(lambda second: datetime.fromtimestamp(second, UTC).date())


def today() -> date:
    """The day in UTC: keys expire by it."""
    return _day.at(wall())
