"""What `llama-fit-params --fit-print on` prints: memory by device, the host last.

    CUDA0 4096 512 300
    Host 306 0 9

The numbers are whole MiB of weights, of context and of intermediate results, each rounded down. The
program's log comes out of the same pipe, so lines that don't look like a row are passed over; what does
look like one must make a whole table, or there is none.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MIB = 1 << 20
# A table has a line per device, and a log at its usual length some dozens.
TEXT_CHARS_MAX = 65_536
DEVICES_MAX = 256

HOST = "Host"
# Nine digits of MiB are a petabyte.
_ROW = re.compile(r"([A-Za-z][A-Za-z0-9_]{0,63}) ([0-9]{1,9}) ([0-9]{1,9}) ([0-9]{1,9}) ?")


class FitPrintError(ValueError):
    """It is no such table: says what is wrong with it."""


class DeviceRow(NamedTuple):
    """What one device would hold."""

    device: str
    model_bytes: int
    context_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.model_bytes + self.context_bytes + self.compute_bytes


class FitPrint(NamedTuple):
    devices: tuple[DeviceRow, ...]
    host: DeviceRow


def parse(text: str) -> FitPrint:
    """The table in all that the program has said. Raises FitPrintError."""
    if len(text) > TEXT_CHARS_MAX:
        raise FitPrintError(f"it says more than {TEXT_CHARS_MAX} characters")
    found = [(number, row) for number, line in enumerate(text.split("\n")) if (row := _row(line))]
    if not found:
        raise FitPrintError("there is no table in what it says")
    numbers, rows = zip(*found, strict=True)
    if numbers[-1] - numbers[0] != len(rows) - 1:
        raise FitPrintError("its table is torn apart")
    *devices, host = rows
    names = {row.device for row in rows}
    if host.device != HOST or len(names) != len(rows) or len(devices) > DEVICES_MAX:
        raise FitPrintError(f"its table is not one of devices and then {HOST}")
    return FitPrint(tuple(devices), host)


def _row(line: str) -> DeviceRow | None:
    match = _ROW.fullmatch(line)
    return DeviceRow(match[1], *(int(size) * MIB for size in match.groups()[1:])) if match else None
