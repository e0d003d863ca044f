"""Connections as they begin: taken from a listening socket, or made to an address."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from corral.drivers.event_loop import READABLE, WRITABLE, watcher_of
from corral.drivers.socket_transport import SocketTransport
from corral.drivers.threads import in_thread

log = logging.getLogger("corral.connections")

# What a listening socket gives at a time, at most; the others come with the next turn.
ACCEPTS_MAX = 128
# No descriptor is left, or no memory: trying again at once would help nobody.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
EXHAUSTED_PAUSE_S = 1.0


class Listener:
    """Gives every connection that comes to a listening socket to `take`, as a non-blocking socket."""

    def __init__(
        self,
        listening: socket.socket,
        take: Callable[[socket.socket], object],
        accepts_max: int = ACCEPTS_MAX,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._watcher = watcher_of(self._loop)
        self.socket = listening
        self._fd = listening.fileno()
        self._take = take
        self._accepts_max = accepts_max
        self._watch()

    def _watch(self) -> None:
        if self._fd >= 0:
            self._watcher.watch(self._fd, READABLE, self._on_ready)

    def _on_ready(self, _events: int) -> None:
        for _ in range(self._accepts_max):
            try:
                connected, _address = self.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                log.error("no new connections for a second: %s", error)
                self._watcher.watch(self._fd, 0, self._on_ready)
                self._loop.call_later(EXHAUSTED_PAUSE_S, self._watch)
                return
            connected.setblocking(False)
            try:
                self._take(connected)
            except OSError:
                connected.close()  # it has gone before it was greeted

    def close(self) -> None:
        if self._fd >= 0:
            self._watcher.watch(self._fd, 0, self._on_ready)
            self._fd = -1
            self.socket.close()


async def connect(
    host: str,
    port: int,
    make_protocol: Callable[[], asyncio.Protocol],
    timeout_s: float,
    socket_path: str = "",
) -> asyncio.Protocol:
    """A connection to the first address of `host` that takes one. Raises OSError, also for a time-out.

    Before them a socket in the file system is tried, if there is one: where it is full, or not there, a
    port serves as well.
    """
    if socket_path:
        with contextlib.suppress(OSError):
            return await _connect(socket.AF_UNIX, socket_path, make_protocol, timeout_s)
    failure: OSError = OSError(errno.EADDRNOTAVAIL, f"{host} has no address")
    for family, address in await _addresses(host, port):
        try:
            return await _connect(family, address, make_protocol, timeout_s)
        except OSError as error:
            failure = error
    raise failure


async def _connect(
    family: int, address: Any, make_protocol: Callable[[], asyncio.Protocol], timeout_s: float
) -> asyncio.Protocol:
    loop = asyncio.get_running_loop()
    connected = socket.socket(family, socket.SOCK_STREAM)
    try:
        connected.setblocking(False)
        await _connected(loop, connected, address, timeout_s)
        protocol = make_protocol()
        SocketTransport(loop, connected, protocol)
    except BaseException:
        connected.close()
        raise
    return protocol


async def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, (host, port))]  # a number is its own address; names are asked for in a thread
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await in_thread(ask, f"the address of {host}")
    return [(entry[0], entry[4]) for entry in found]


async def _connected(
    loop: asyncio.AbstractEventLoop, connecting: socket.socket, address: Any, timeout_s: float
) -> None:
    code = connecting.connect_ex(address)
    if code == errno.EINPROGRESS:
        settled: asyncio.Future[None] = loop.create_future()

        def settle(error: OSError | None = None) -> None:
            if not settled.done():
                settled.set_result(None) if error is None else settled.set_exception(error)

        watcher, fd = watcher_of(loop), connecting.fileno()
        timer = loop.call_later(timeout_s, settle, TimeoutError(f"no answer within {timeout_s:g} s"))
        watcher.watch(fd, WRITABLE, lambda _events: settle())
        try:
            await settled
        finally:
            timer.cancel()
            watcher.watch(fd, 0, lambda _events: None)
        code = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, f"connect call failed {address}: {errno.errorcode.get(code, code)}")
