"""What the kernel knows of a process: its processor time to the nanosecond, its memory, its cores.

/proc/PID/stat counts processor time in ticks of 10 ms, and /proc/PID/task/TID/schedstat forgets a thread
that has ended: of a program with a thread for each request it lost a third (measured). The processor clock
of a process has what the scheduler itself has measured, of threads that have ended too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROC = Path("/proc")


def cpu_ns(pids: Iterable[int]) -> int:
    """The processor time that these processes have used, with all their threads."""
    return sum(time.clock_gettime_ns(cpu_clock(pid)) for pid in pids)


def cpu_clock(pid: int) -> int:
    """The number of a process's processor clock, as clock_getcpuclockid(3) makes it."""
    return (~pid << 3) | 2  # CPUCLOCK_SCHED: by the scheduler, in nanoseconds


def resident_bytes(pids: Iterable[int]) -> int:
    return sum(status_bytes((PROC / str(pid) / "status").read_text(), "VmRSS") for pid in pids)


def status_bytes(text: str, name: str) -> int:
    """A line of /proc/PID/status such as `VmRSS:    1234 kB`."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise ValueError(f"no {name} in a process's status")


def family(pid: int) -> list[int]:
    """A process and all that descend from it, itself first."""
    parents = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = parent_in((entry / "stat").read_text())
            except OSError:
                continue  # it has ended just now
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def parent_in(stat: str) -> int:
    """The parent in /proc/PID/stat. The name before it may hold spaces and brackets."""
    return int(stat.rpartition(")")[2].split()[1])


def command_of(pid: int) -> str:
    return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


# Cores --------------------------------------------------------------------------------------------


def two_cores() -> tuple[int, int]:
    """One for the proxy, one for everything else. The lowest is what most interrupts go to."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("the benchmark needs two processor cores: one for the proxy, one for the load")
    return cores[1], cores[0]


def move(pids: Iterable[int], core: int) -> None:
    """These processes run there from now on, with all their threads."""
    for pid in pids:
        for thread in (PROC / str(pid) / "task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started within runs there, and so do all that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def machine() -> str:
    """The processor and the kernel, in words."""
    lines = (PROC / "cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = f"{len(names)} × {names[0]}" if names else f"{os.cpu_count()} cores"
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{processor}, {memory_gib:.0f} GiB, {os.uname().sysname} {os.uname().release}"
