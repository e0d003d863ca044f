"""A stream socket as an asyncio transport, without what a gate never needs and pays for all the same.

It does what asyncio's own does, to the letter where a protocol can see it: the order of the calls, flow
control by two marks, what close, abort and a half-closed peer mean. It keeps less (measured: 1.2 KiB a
connection instead of 3.4), is called by the loop's watcher directly, and passes large bytes to the kernel
as they are, without a copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterable
from typing import Any

from corral.drivers.event_loop import READABLE, WRITABLE, watcher_of

log = logging.getLogger("corral.socket")

RECEIVE_MAX_BYTES = 64 * 1024
# Pieces that together are smaller are copied into one, and so is a body behind its head; larger ones are
# handed over one beside the other, which for small ones would cost more than it saves.
JOIN_MAX_BYTES = 16 * 1024
# Whatever epoll says but that the kernel takes more.
HEARD = ~WRITABLE
UNSENT_HIGH_BYTES = 64 * 1024
# The kernel takes no more pieces at a time.
PIECES_MAX = 256


class SocketTransport(asyncio.Transport):
    """One connected, non-blocking socket."""

    __slots__ = (
        "_closing",
        "_ended",
        "_eof_due",
        "_fd",
        "_high_bytes",
        "_leaves",
        "_loop",
        "_low_bytes",
        "_paused_protocol",
        "_protocol",
        "_reading",
        "_receive",
        "_send",
        "_socket",
        "_unsent",
        "_unsent_bytes",
        "_waits",
        "_watcher",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connected: socket.socket, protocol: asyncio.Protocol
    ) -> None:
        self._loop = loop
        self._watcher = watcher_of(loop)
        self._socket = connected
        self._fd = connected.fileno()
        # To be read first and called then: a call of a slot in one step takes Python longer (measured).
        self._receive = connected.recv
        self._send = connected.send
        self._protocol = protocol
        self._unsent: list[bytes | memoryview] = []
        self._unsent_bytes = 0
        self._high_bytes, self._low_bytes = UNSENT_HIGH_BYTES, UNSENT_HIGH_BYTES // 4
        self._paused_protocol = False
        self._reading = True
        self._ended = False  # the peer will send no more
        self._closing = False
        self._eof_due = False
        self._leaves = False  # at the end of this turn
        self._waits = False  # for the kernel to take more
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        protocol.connection_made(self)
        self._watch()

    def _watch(self) -> None:
        events = (READABLE if self._reading else 0) | (WRITABLE if self._waits else 0)
        self._watcher.watch(self._fd, events, self._on_ready)

    def _on_ready(self, events: int) -> None:
        if events & HEARD and self._reading:
            receive = self._receive
            try:
                data = receive(RECEIVE_MAX_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._fail(error)
                return
            if self._watcher.gathers:
                self._watcher.arrived.append((self, data))
            else:
                self.take(data)
            if events == READABLE:
                return
            if events & ~(READABLE | WRITABLE):
                # An error or an end. What came before it is to be heard first: sending would only find out
                # that nobody is there. As long as there is something to read, it is told again.
                return
        if events & ~READABLE and self._unsent and self._fd >= 0:
            if not self._watcher.gathers:
                self._send_on()
            elif not self._leaves:
                # After what has come in this turn: should sending fail, that has been heard.
                self._leaves = True
                self._watcher.leaving.append(self)

    def take(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            if data:
                self._protocol.data_received(data)
            else:
                self._end_of_input()
        except Exception as error:
            log.exception("a connection's protocol failed")
            self._fail(error)

    def _end_of_input(self) -> None:
        self._reading = False
        self._ended = True
        if self._protocol.eof_received():
            self._watch()
        else:
            self.close()

    # Sending -------------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if self._closing or self._eof_due:
            return
        unsent, watcher = self._unsent, self._watcher
        if watcher.gathers:
            # It leaves together with what else comes in this turn, unless that is much.
            if not unsent:
                watcher.leaving.append(self)
                self._leaves = True
            unsent.append(data)
            self._unsent_bytes += len(data)
            if self._unsent_bytes > self._high_bytes:
                self.leave()
                self._wait()
            return
        if not unsent:
            send = self._send
            try:
                sent = send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._fail(error)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        unsent.append(data)
        self._unsent_bytes += len(data)
        self._wait()

    def writelines(self, pieces: Iterable[Any]) -> None:
        pieces = tuple(pieces)
        size = sum(map(len, pieces))
        if size <= JOIN_MAX_BYTES:
            self.write(b"".join(pieces))
        elif not (self._closing or self._eof_due):
            self._unsent += pieces
            self._unsent_bytes += size
            self._send_on()

    def leave(self) -> None:
        """The turn is over, or somebody can't wait for its end."""
        if not self._leaves:
            return
        self._leaves = False
        unsent = self._unsent
        if not unsent:  # it was too much to be kept until now
            return
        if len(unsent) == 1:
            send = self._send
            try:
                sent = send(unsent[0])
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._fail(error)
                return
            if sent == self._unsent_bytes and not self._waits:
                # The usual case. Who is to be told that all is sent has waited for the kernel.
                unsent.clear()
                self._unsent_bytes = 0
            else:
                self._sent(sent)
        else:
            self._send_on()

    def _send_on(self) -> None:
        unsent = self._unsent
        try:
            sent = self._socket.sendmsg(unsent[:PIECES_MAX])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._fail(error)
            return
        self._sent(sent)

    def _sent(self, sent: int) -> None:
        """So many bytes are the kernel's."""
        unsent = self._unsent
        self._unsent_bytes -= sent
        if not self._unsent_bytes:
            unsent.clear()
            if self._closing or self._eof_due:
                self._all_sent()
            if self._waits or self._paused_protocol:
                self._wait()
            return
        whole = 0
        while whole < len(unsent) and sent >= len(unsent[whole]):
            sent -= len(unsent[whole])
            whole += 1
        del unsent[:whole]
        if sent:
            unsent[0] = memoryview(unsent[0])[sent:]
        self._wait()

    def _wait(self) -> None:
        """Until the kernel takes what is left, if anything is; and tell the protocol how much that is."""
        if bool(self._unsent) is not self._waits and self._fd >= 0:
            self._waits = not self._waits
            self._watch()
        if self._unsent_bytes > self._high_bytes and not self._paused_protocol:
            self._paused_protocol = True
            self._protocol.pause_writing()
        elif self._paused_protocol and self._unsent_bytes <= self._low_bytes:
            self._paused_protocol = False
            self._protocol.resume_writing()

    def _all_sent(self) -> None:
        if self._closing:
            self._end(None)
        elif self._eof_due:
            self._shut()

    def write_eof(self) -> None:
        if self._closing or self._eof_due:
            return
        self.leave()
        self._eof_due = True
        if not self._unsent:
            self._shut()

    def _shut(self) -> None:
        with contextlib.suppress(OSError):  # the peer may have reset the connection just now
            self._socket.shutdown(socket.SHUT_WR)

    def can_write_eof(self) -> bool:
        return True

    # Flow ----------------------------------------------------------------------------------------

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high_bytes = UNSENT_HIGH_BYTES if high is None else high
        self._low_bytes = self._high_bytes // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        if self._reading and not self._closing:
            self._reading = False
            self._watch()

    def resume_reading(self) -> None:
        if not (self._reading or self._ended or self._closing):
            self._reading = True
            self._watch()

    # The end -------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Close behind the last byte that is not sent yet."""
        self.leave()
        if self._closing:
            return
        self._closing = True
        self._reading = False
        if self._unsent:
            self._watch()
        else:
            self._end(None)

    def abort(self) -> None:
        """Close now. What has been written in this turn counts as sent."""
        self.leave()
        self._fail(None)

    def _fail(self, error: Exception | None) -> None:
        if self._fd < 0:
            return
        self._closing = True
        self._reading = False
        self._unsent, self._unsent_bytes = [], 0
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self._fd >= 0:
            self._watcher.watch(self._fd, 0, self._on_ready)
            self._fd = -1
            # From a fresh stack, as asyncio does it: whoever closes is often called by whom it would tell.
            self._loop.call_soon(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._socket.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return self._socket
        if name == "peername":
            try:
                return self._socket.getpeername()
            except OSError:
                return default
        return default
