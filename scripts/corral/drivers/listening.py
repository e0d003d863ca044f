"""Sockets to listen on, and a client's address as people write it.

The gateway and the health server both listen on every interface unless told otherwise, and some
platforms reach a container over IPv6 only. One `::` socket that takes IPv4 too serves everybody.
asyncio's own helper would set IPV6_V6ONLY and open two, so the sockets are made by hand here.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from corral.errors import SettingsError

# Connections that the kernel holds until they are accepted; it cuts the number to its own limit.
BACKLOG = 1024

# What means every interface by IPv6 and IPv4; and `0.0.0.0` does by IPv4 alone.
_EVERYWHERE = (None, "", "*", "::")
_EVERYWHERE_BY_IPV4 = "0.0.0.0"
_MAPPED_IPV4 = "::ffff:"
# What a machine without IPv6 answers, depending on how it came to have none.
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL)

_REMEDIES = {
    errno.EADDRINUSE: "the port is taken: stop what listens there, or set another port",
    errno.EACCES: "not allowed: ports below 1024 need a privilege, set a higher one",
    errno.EADDRNOTAVAIL: "this machine has no such address: set one that it has, or none for all",
}


def listen_sockets(host: str | None, port: int) -> list[socket.socket]:
    """Sockets that listen on `host`: on all interfaces for None, on IPv4 alone for `0.0.0.0`, else on
    each address that the name has. Port 0 lets the kernel choose."""
    try:
        return [_everywhere(port)] if host in _EVERYWHERE else _named(host, port)
    except (OSError, OverflowError, UnicodeError) as error:
        remedy = _REMEDIES.get(getattr(error, "errno", 0) or 0, f"{error}: set another host or port")
        raise SettingsError(f"cannot listen on {host or 'all interfaces'}, port {port}: {remedy}") from error


def is_everywhere(host: str | None) -> bool:
    """Whether this machine is reached there by its own name for itself."""
    return host in (*_EVERYWHERE, _EVERYWHERE_BY_IPV4)


def client_address(peername: tuple[Any, ...] | None) -> str:
    """A client's address, `-` if it has none. IPv4 that came through the `::` socket is written as IPv4."""
    return str(peername[0]).removeprefix(_MAPPED_IPV4) if peername else "-"


def _everywhere(port: int) -> socket.socket:
    try:
        return _listening(socket.AF_INET6, ("::", port), ipv4_too=True)
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
    return _listening(socket.AF_INET, (_EVERYWHERE_BY_IPV4, port))


def _named(host: str | None, port: int) -> list[socket.socket]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    sockets: list[socket.socket] = []
    refusals: list[OSError] = []
    for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
        try:
            sockets.append(_listening(family, address))
        except OSError as error:
            refusals.append(error)
    # `localhost` often names ::1 on machines whose IPv6 is off: there its other address will do.
    fatal = [error for error in refusals if not sockets or error.errno not in _NO_IPV6]
    if fatal:
        for each in sockets:
            each.close()
        raise fatal[0]
    return sockets


def _listening(family: int, address: tuple[Any, ...], ipv4_too: bool = False) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A restart must not wait for the old connections' TIME_WAIT. A port that is listened on stays taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if ipv4_too else 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
