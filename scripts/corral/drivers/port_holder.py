"""Whose port is it? A process of ours that has been given a port may have come too late for it.

A port is chosen a moment before the process that is to have it can bind it. A stranger who takes it in
between may well answer the questions that are meant for ours, so the kernel is asked, which knows the
owner of every socket (proc_pid_net(5), proc_pid_fd(5)).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
# Columns of a table's line, and the state LISTEN in it.
_LOCAL_ADDRESS, _STATE, _INODE = 1, 3, 9
_LISTEN = b"0A"
# Position in /proc/PID/stat, counted from the field that follows the name.
_GROUP = 2


def is_held_by(port: int, leader: int) -> bool | None:
    """Whether a process, or one of the group that it leads, listens on a port. None: the kernel won't say."""
    tables = [table for table in _TABLES if os.path.exists(table)]  # without IPv6 there is one
    if not tables:
        return None
    sockets = {f"socket:[{inode}]" for table in tables for inode in _listening(table, port)}
    return any(_holds_any(pid, sockets) for pid in _group(leader))


def _listening(table: str, port: int) -> Iterator[int]:
    with open(table, "rb") as file:
        for line in file.readlines()[1:]:
            fields = line.split()
            if fields[_STATE] == _LISTEN and int(fields[_LOCAL_ADDRESS].rpartition(b":")[2], 16) == port:
                yield int(fields[_INODE])


def _group(leader: int) -> Iterator[int]:
    """The leader first: it is alone as a rule, and then nobody else need be looked at."""
    yield leader
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != leader:
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read(4096).rpartition(b")")[2].split()[_GROUP]) == leader:
                    yield int(name)


def _holds_any(pid: int, sockets: set[str]) -> bool:
    directory = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(directory)
    except OSError:
        return False
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # closed just now
            if os.readlink(f"{directory}/{descriptor}") in sockets:
                return True
    return False
