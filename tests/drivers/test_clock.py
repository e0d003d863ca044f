from __future__ import annotations

from datetime import date
from email.utils import parsedate_to_datetime

import pytest

from corral.drivers import clock


def test_a_text_of_the_second_is_made_once_a_second() -> None:
    made: list[int] = []

    def make(second: int) -> str:
        made.append(second)
        return str(second)

    text = clock.PerSecond(make)
    assert [text.at(now) for now in (7.0, 7.9, 8.0, 8.5)] == ["7", "7", "8", "8"]
    assert made == [7, 8]


def test_dates_are_what_http_and_iso_say() -> None:
    assert clock.http_date(784111777) == b"Sun, 06 Nov 1994 08:49:37 GMT"
    assert parsedate_to_datetime(clock.http_date(1_800_000_000).decode()).timestamp() == 1_800_000_000
    assert clock.iso_second(784111777) == "1994-11-06T08:49:37"


def test_the_clocks_run() -> None:
    assert clock.monotonic() <= clock.monotonic()
    assert clock.wall() > 1_700_000_000


@pytest.mark.parametrize(
    ("wall_s", "expected"), [(1_801_439_999.9, date(2027, 1, 31)), (1_801_440_000.0, date(2027, 2, 1))]
)
def test_the_day_turns_at_midnight_in_utc(
    wall_s: float, expected: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "wall", lambda: wall_s)
    assert clock.today() == expected
