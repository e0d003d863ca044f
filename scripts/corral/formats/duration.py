"""Durations as OpenAI's rate-limit headers write them: `120ms`, `1.5s`, `6m0s`, `1h0m0s`."""

from __future__ import annotations

import math

SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS


def format_duration(duration_s: float) -> str:
    """Rounded up to a whole millisecond: whoever waits exactly this long must not come too early."""
    # Rounding to nanoseconds first, because 2.007 * 1000 is a little more than 2007 in binary.
    duration_ms = max(0, math.ceil(round(duration_s * SECOND_MS, 6)))
    if 0 < duration_ms < SECOND_MS:
        return f"{duration_ms}ms"
    hours, rest_ms = divmod(duration_ms, HOUR_MS)
    minutes, rest_ms = divmod(rest_ms, MINUTE_MS)
    seconds = f"{rest_ms / SECOND_MS:g}s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds
