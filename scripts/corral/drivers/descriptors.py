"""Descriptors: how many files and sockets this process may have open, and how many of them clients may take.

A connection too many has to be noticed before the kernel notices it: where no descriptor is left, no
engine can be reached either, and no log be opened.
"""

from __future__ import annotations

import logging
import resource

from corral.drivers.http_server.server import TOLD_MAX

log = logging.getLogger("corral.descriptors")

# Of the gateway itself: sockets to listen on, logs, the database, the health process, models that are being
# read, the devices of a driver, which are some for each GPU. Without GPUs it is 13 at rest (measured).
OWN = 128
# Of one engine beside its slots: its output, its log, its file while that is read in, and what is asked of it
# beside the requests.
PER_ENGINE = 8


def raise_limit() -> None:
    """10,000 connections need as many descriptors; the usual soft limit is 1,024."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_allowed(wanted: int, *, engines: int, slots: int) -> int:
    """So many connections, or as many as the limit has room for; then the log says what to do.

    So many engines may run at a time, and work on so many requests together, each on a connection of its own.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return wanted
    kept = OWN + PER_ENGINE * engines
    # Where a limit is that tight there are fewer clients than slots, and so fewer requests.
    room = hard - min(kept, hard // 2)
    room -= min(slots, room // 2)
    # Those that are told that they are too many take descriptors as well: up to as many again.
    allowed = max(room - TOLD_MAX, room // 2)
    if wanted <= allowed:
        return wanted
    log.warning(
        "MAX_CONNECTIONS is %d, and this process may open no more than %d files: it takes %d connections. "
        "Allow it %d files (`ulimit -n`, LimitNOFILE= of a systemd unit, --ulimit nofile= of a container), "
        "or set MAX_CONNECTIONS lower.",
        wanted,
        hard,
        allowed,
        wanted + TOLD_MAX + slots + kept,
    )
    return allowed
