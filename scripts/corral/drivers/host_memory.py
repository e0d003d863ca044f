"""How much memory this machine, or the container we are in, has and can still give.

Inside a container /proc/meminfo tells of the whole machine; what the container may take stands in its
cgroup, version 2 or 1. The smaller of the two is the truth. A cgroup counts the files that it has read
as used; the kernel drops those when memory is wanted, and /proc/meminfo calls them available, so they
are taken out of the cgroup's count too.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

MEMINFO = Path("/proc/meminfo")


class Cgroup(NamedTuple):
    """Where one version of cgroups keeps its figures."""

    limit: Path
    usage: Path
    stat: Path
    file_prefix: str


CGROUP_2 = Path("/sys/fs/cgroup")
CGROUP_1 = Path("/sys/fs/cgroup/memory")


class HostMemory(NamedTuple):
    total_bytes: int
    available_bytes: int


def read() -> HostMemory | None:
    """None where the kernel does not say (not Linux)."""
    fields = _fields(MEMINFO, ":")
    if "MemTotal" not in fields or "MemAvailable" not in fields:
        return None
    total, available = fields["MemTotal"] * 1024, fields["MemAvailable"] * 1024
    for cgroup in (
        Cgroup(CGROUP_2 / "memory.max", CGROUP_2 / "memory.current", CGROUP_2 / "memory.stat", ""),
        Cgroup(
            CGROUP_1 / "memory.limit_in_bytes",
            CGROUP_1 / "memory.usage_in_bytes",
            CGROUP_1 / "memory.stat",
            "total_",
        ),
    ):
        limit, usage = _number(cgroup.limit), _number(cgroup.usage)
        # Version 1 says "no limit" with a number close to 2**63.
        if limit is not None and usage is not None and limit < total:
            stat = _fields(cgroup.stat, " ")
            files = sum(stat.get(f"{cgroup.file_prefix}{age}_file", 0) for age in ("active", "inactive"))
            return HostMemory(limit, max(0, min(available, limit - max(0, usage - files))))
    return HostMemory(total, available)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _fields(file: Path, separator: str) -> dict[str, int]:
    """`name: 123 kB` or `name 123`, a line each. What is no number is left out."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(separator) for line in lines)
    return {
        name: int(words[0]) for name, _, rest in pairs if (words := rest.split()) and words[0].isdecimal()
    }
