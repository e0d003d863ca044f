"""Amounts of memory as people write and read them.

Memory comes in powers of two, and so do the units here, whatever they are called: the 24 GB on a card's
box are 24 GiB.
"""

from __future__ import annotations

import re

_UNITS = ((1 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki"))
_WRITTEN = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?([KMGT])i?B?", re.IGNORECASE)


def amount(size_bytes: int) -> str:
    """For a sentence: 22.8 GiB, 412.0 MiB, 97 bytes."""
    for size, unit in _UNITS[1:]:
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}B"
    return f"{size_bytes} bytes"


def short(size_bytes: int) -> str:
    """For a table: 22.8Gi, 412Mi. Six characters at most, up to a thousand TiB."""
    for size, unit in _UNITS:
        # What would be rounded up to 1024 is one of the next unit.
        if size_bytes >= 0.999 * size:
            number = size_bytes / size
            return f"{number:.0f}{unit}" if number >= 99.95 else f"{number:.1f}{unit}"
    return str(size_bytes)


def parse(text: str) -> int:
    """The bytes that `24GiB`, `24G` or `24.5 GB` mean. Raises ValueError; a number needs its unit."""
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        raise ValueError(text)
    size = next(size for size, unit in _UNITS if unit[0] == found[2].upper())
    return round(float(found[1]) * size)
