from __future__ import annotations

import pytest

from corral.formats.duration import format_duration


@pytest.mark.parametrize(
    ("duration_s", "expected"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.0001, "1ms"),
        (0.07, "70ms"),
        (0.12, "120ms"),
        (0.9995, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (2.007, "2.007s"),
        (59.9991, "1m0s"),
        (59.999, "59.999s"),
        (60, "1m0s"),
        (86.4, "1m26.4s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (90061.25, "25h1m1.25s"),
    ],
)
def test_durations_are_written_rounded_up_to_a_millisecond(duration_s: float, expected: str) -> None:
    assert format_duration(duration_s) == expected
