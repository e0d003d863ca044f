"""Descriptors: how many files and sockets this process may have open, and how many of them clients may take.

A connection too many has to be noticed before the kernel notices it: where no descriptor is left, no
engine can be reached either, and no log be opened.
"""

from __future__ import annotations

import logging
import resource

from corral.drivers.http_server.server import TOLD_MAX

log = logging.getLogger("corral.descriptors")

# Not for clients: connections to engines, a few files for each of these, models being read, logs.
KEPT = 256


def raise_limit() -> None:
    """10,000 connections need as many descriptors; the usual soft limit is 1,024."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_allowed(wanted: int) -> int:
    """So many connections, or as many as the limit has room for; then the log says what to do."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return wanted
    room = hard - min(KEPT, hard // 2)
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
        wanted + TOLD_MAX + KEPT,
    )
    return allowed
