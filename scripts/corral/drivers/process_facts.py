"""What the kernel says about a process: whether it lives, whether it is still the same one, what it uses.

A pid alone proves nothing: it is given to another process some time after its owner's death. The pid
together with the start time is never given twice. Where there is no /proc the pid has to do.
"""

from __future__ import annotations

import gc
import os
from typing import NamedTuple

# Positions in /proc/PID/stat, counted from the field that follows the name (proc_pid_stat(5): state is
# field 3, starttime field 22). The name stands in parentheses and may hold spaces and parentheses.
_STATE = 0
_START_TICKS = 19
# A dead process keeps its entry until its parent has waited for it.
_DEAD_STATES = (b"Z", b"X")


class Work(NamedTuple):
    """What a process has done and holds: figures that grow while it gets on with something."""

    cpu_s: float
    read_bytes: int
    resident_bytes: int


class OwnUsage(NamedTuple):
    """What this process uses. None where the kernel does not say."""

    resident_bytes: int | None
    cpu_s: float
    # Objects that the garbage collector has freed so far, by generation.
    gc_collected: tuple[int, ...]


def start_ticks(pid: int) -> int | None:
    """When a living process started, in ticks since the machine's boot. None: it is dead, or unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] in _DEAD_STATES else int(fields[_START_TICKS])


def is_alive(pid: int, started_ticks: int | None) -> bool:
    """Whether the process that had this pid when it was written down still lives."""
    if started_ticks is not None:
        return start_ticks(pid) == started_ticks
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def work_of(pid: int) -> Work:
    """Zeros for what the kernel does not say, or no longer says."""
    stat = _words(f"/proc/{pid}/stat")
    statm = _words(f"/proc/{pid}/statm")
    # After the name, which may hold spaces, come the state and, 11 fields on, user and system time.
    after_name = next((at for at in range(len(stat) - 1, -1, -1) if stat[at].endswith(b")")), len(stat))
    ticks = sum(int(word) for word in stat[after_name + 12 : after_name + 14])
    return Work(
        cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
        read_bytes=_read_bytes(pid),
        resident_bytes=int(statm[1]) * os.sysconf("SC_PAGE_SIZE") if len(statm) > 1 else 0,
    )


def peak_resident_bytes(pid: int) -> int:
    """The most that it has ever held; 0 where the kernel does not say (proc_pid_status(5): VmHWM)."""
    words = _words(f"/proc/{pid}/status")
    return int(words[words.index(b"VmHWM:") + 1]) * 1024 if b"VmHWM:" in words else 0


def _read_bytes(pid: int) -> int:
    """All that went through read calls, and what a memory-mapped file brought in from the disk."""
    words = _words(f"/proc/{pid}/io")
    fields = dict(zip(words[::2], words[1::2], strict=False))
    return int(fields.get(b"rchar:", 0)) + int(fields.get(b"read_bytes:", 0))


def _words(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            return file.read(4096).split()
    except OSError:
        return []


def own_usage() -> OwnUsage:
    times = os.times()
    collected = tuple(generation["collected"] for generation in gc.get_stats())
    return OwnUsage(_resident_bytes(), times.user + times.system, collected)


def _resident_bytes() -> int | None:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read(256).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
