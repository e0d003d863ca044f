"""How much memory this machine, or the container we are in, has and can still give.

Inside a container /proc/meminfo tells of the whole machine; what the container may take stands in its
cgroup, version 2 or 1. The smaller of the two is the truth. A cgroup counts the files that it has read
as used; the kernel drops those when memory is wanted, and /proc/meminfo calls them available, so they
are taken out of the cgroup's count too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MEMINFO = Path("/proc/meminfo")
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
# Deeper than any service manager nests them.
DEPTH_MAX = 32


class Files(NamedTuple):
    """What one version of cgroups calls its figures."""

    limit: str
    usage: str
    file_prefix: str  # in memory.stat


VERSION_2 = Files("memory.max", "memory.current", "")
VERSION_1 = Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


class HostMemory(NamedTuple):
    total_bytes: int
    available_bytes: int


def read() -> HostMemory | None:
    """None where the kernel does not say (not Linux)."""
    fields = _fields(MEMINFO, ":")
    if "MemTotal" not in fields or "MemAvailable" not in fields:
        return None
    total, available = fields["MemTotal"] * 1024, fields["MemAvailable"] * 1024
    for folder, files in _own_cgroups():
        limit, usage = _number(folder / files.limit), _number(folder / files.usage)
        # Version 1 says "no limit" with a number close to 2**63.
        if limit is not None and usage is not None and limit < total:
            stat = _fields(folder / "memory.stat", " ")
            dropped = sum(stat.get(f"{files.file_prefix}{age}_file", 0) for age in ("active", "inactive"))
            total, available = limit, max(0, min(available, limit - max(0, usage - dropped)))
    return HostMemory(total, available)


def _own_cgroups() -> Iterator[tuple[Path, Files]]:
    """The folders whose limits hold for this process: its own cgroup's, and all above it (cgroups(7)).

    In a container the path that the kernel names may be the host's and not be there; then only the root
    that the container sees is left, and that is its own.
    """
    for line in _text(OWN_CGROUPS).splitlines():
        hierarchy, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "")
        if hierarchy == "0":
            root, files = CGROUPS, VERSION_2
        elif "memory" in controllers.split(","):
            root, files = CGROUPS / "memory", VERSION_1
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")][:DEPTH_MAX]
        for depth in range(len(parts) + 1):
            yield root.joinpath(*parts[:depth]), files


def _number(file: Path) -> int | None:
    try:
        return int(_text(file))
    except ValueError:
        return None


def _fields(file: Path, separator: str) -> dict[str, int]:
    """`name: 123 kB` or `name 123`, a line each. What is no number is left out."""
    pairs = (line.partition(separator) for line in _text(file).splitlines())
    return {
        name: int(words[0]) for name, _, rest in pairs if (words := rest.split()) and words[0].isdecimal()
    }


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
