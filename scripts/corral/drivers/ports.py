"""Finds a port for the next llama-server: the lowest of a range that nobody listens on.

A port is tried by binding it for a moment, with SO_REUSEADDR: connections of an earlier server that the
kernel still remembers (TIME_WAIT) don't count, a listener does. The wildcard addresses are tried, since
they clash with a listener on any address: a llama-server beside a stranger's socket on the same port
would be reached by some clients and not by others.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Container

_WILDCARDS = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))


def lowest_free_port(first: int, last: int, taken: Container[int] = ()) -> int | None:
    """The lowest port of `first` to `last` that is neither taken nor in use; None if there is none."""
    for port in range(first, last + 1):
        if port not in taken and not is_in_use(port):
            return port
    return None


def is_in_use(port: int) -> bool:
    """Whether somebody listens on it, or we may not."""
    return any(not _can_bind(family, address, port) for family, address in _WILDCARDS)


def _can_bind(family: socket.AddressFamily, address: str, port: int) -> bool:
    try:
        probe = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        # A machine without IPv6 has no listener there either.
        return True
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRNOTAVAIL
        return True
