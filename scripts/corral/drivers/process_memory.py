"""How much memory a process holds, by kind, together with the processes that it has started.

The kinds matter to whoever plans: anonymous memory is the process's alone and stays until it ends, the
pages of a mapped file are the kernel's to drop, and shared memory is neither. The kernel keeps the three
sums anyway (proc_pid_status(5)), so a reading costs 7 µs and 6 more for each thread (measured), where
adding up the mappings would walk through every page. In return a sum may lag by some pages a processor.

A script of its user's may stand between us and a llama-server, so what children hold is added. They are
found where the kernel lists them for each thread; where it does not, there are none.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

# A llama-server has no children, and a script that starts it has one. More is somebody's mistake.
PROCESSES_MAX = 100
READ_BYTES_MAX = 16_384

_SUM = re.compile(rb"^(RssAnon|RssFile|RssShmem):\s+(\d{1,15}) kB$", re.MULTILINE)


class ProcessMemory(NamedTuple):
    """What is resident. A page that two of the processes have mapped is counted for both."""

    anonymous_bytes: int
    file_bytes: int
    shared_bytes: int


def read(pid: int) -> ProcessMemory | None:
    """None for a process that is dead, or where the kernel does not say."""
    total = _held_by(pid)
    if total is None:
        return None
    seen, waiting = {pid}, _children(pid)
    while waiting and len(seen) < PROCESSES_MAX:
        child = waiting.pop()
        held = _held_by(child) if child not in seen else None
        if held is not None:
            total = ProcessMemory(*map(sum, zip(total, held, strict=True)))
            waiting += _children(child)
        seen.add(child)
    return total


def _held_by(pid: int) -> ProcessMemory | None:
    sums = {name: int(kibibytes) * 1024 for name, kibibytes in _SUM.findall(_content(pid, "status"))}
    # A process that has died and was not waited for still has a status, but nothing to sum up.
    if not sums:
        return None
    return ProcessMemory(sums.get(b"RssAnon", 0), sums.get(b"RssFile", 0), sums.get(b"RssShmem", 0))


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    lists = (_content(pid, f"task/{thread}/children").split() for thread in threads)
    # The first hundred always lie within what is read, so none of them is cut in half.
    return [int(child) for children in lists for child in children[:PROCESSES_MAX]]


def _content(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read(READ_BYTES_MAX)
    except OSError:
        return b""
