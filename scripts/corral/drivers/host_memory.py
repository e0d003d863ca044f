"""How much memory this machine, or the container we are in, has and can still give.

Inside a container /proc/meminfo tells of the whole machine; what the container may take stands in its
cgroup, version 2 or 1. The smaller of the two is the truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

MEMINFO = Path("/proc/meminfo")
CGROUP_2 = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))
CGROUP_1 = (
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class HostMemory(NamedTuple):
    total_bytes: int
    available_bytes: int


def read() -> HostMemory | None:
    """None where the kernel does not say (not Linux)."""
    try:
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError, IndexError):
        return None
    for limit_file, usage_file in (CGROUP_2, CGROUP_1):
        limit, usage = _number(limit_file), _number(usage_file)
        # Version 1 says "no limit" with a number close to 2**63.
        if limit is not None and usage is not None and limit < total:
            return HostMemory(limit, max(0, min(available, limit - usage)))
    return HostMemory(total, available)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
