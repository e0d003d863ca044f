"""One log file on the disk, seen from the log writer's thread: opened, appended to, rotated, endured.

A log must never be the reason that something else fails. So every failure of the disk (full, read-only,
gone, forbidden) has the same answer: the lines are lost and counted, and after a second it is tried
again from the start, with a fresh open. That also heals what others do to the file: a second look at
its path, once a second, notices that it was moved or removed.

The file may also be a pipe, or a link to the standard output. It is opened non-blocking, so a pipe that
nobody reads costs one short wait a second, not the other logs.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from corral.drivers import clock
from corral.drivers.log_retention import LogLimits

log = logging.getLogger("corral.logs")

RETRY_S = 1.0
# How long a full pipe is waited for, while the other logs wait too.
PIPE_PATIENCE_S = 0.05
# One write's size at most: what a slow disk is asked for at once.
WRITE_BYTES_MAX = 1_048_576
OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC

# Given the path of a file that is full: where to go on. May move the full one out of the way.
Rotate = Callable[[Path], Path]


class Sink:
    """Appends lines to `path`, and to its successors."""

    def __init__(
        self, path: Path, rotate: Rotate, limits: LogLimits, on_opened: Callable[[Path], None]
    ) -> None:
        self.path = path
        self._rotate = rotate
        self._limits = limits
        self._on_opened = on_opened
        self.closed = False
        self._fd = -1
        self._size_bytes = 0
        self._born_at = 0.0
        self._rotates = True
        self._mid_line = False
        self._look_at = 0.0
        self._retry_at = 0.0
        self._outage_lines = 0

    def append(self, pieces: list[bytes]) -> int:
        """Write pieces of whole lines. Returns how many lines were lost."""
        return sum(self._append(group) for group in self._groups(pieces))

    def close(self) -> None:
        """For good."""
        self.closed = True
        self._release()

    def _groups(self, pieces: list[bytes]) -> Iterator[bytes]:
        """Joined as far as one write and one file can take them."""
        bytes_max = min(WRITE_BYTES_MAX, self._limits.file_bytes_max)
        group: list[bytes] = []
        size_bytes = 0
        for piece in pieces:
            if group and size_bytes + len(piece) > bytes_max:
                yield b"".join(group)
                group, size_bytes = [], 0
            group.append(piece)
            size_bytes += len(piece)
        if group:
            yield b"".join(group)

    def _append(self, data: bytes) -> int:
        now = clock.monotonic()
        if self.closed or now < self._retry_at:
            return self._lost(data)
        rest = memoryview(data)
        try:
            self._make_ready(len(data))
            if self._mid_line:
                self._mid_line = self._write(b"\n", now) == 0
            while rest:
                rest = rest[self._write(rest, now) :]
        except OSError as error:
            written = len(data) - len(rest)
            if written:
                self._mid_line = not data.endswith(b"\n", 0, written)
            self._endure(error)
            return self._lost(bytes(rest))
        if self._outage_lines:
            log.warning("%s is written again; %d lines of it were lost", self.path, self._outage_lines)
            self._outage_lines = 0
        return 0

    def _write(self, data: bytes | memoryview, started_at: float) -> int:
        try:
            written = os.write(self._fd, data)
        except BlockingIOError:
            patience_s = started_at + PIPE_PATIENCE_S - clock.monotonic()
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            if not poll.poll(max(0.0, patience_s * 1000)):
                raise
            written = os.write(self._fd, data)
        self._size_bytes += written
        return written

    def _make_ready(self, size_bytes: int) -> None:
        if self._fd >= 0 and clock.monotonic() >= self._look_at and not self._is_in_place():
            self._release()
        if self._fd < 0:
            self._open()
        if self._is_due(size_bytes):
            self._release()
            self.path = self._rotate(self.path)
            self._open()

    def _is_due(self, size_bytes: int) -> bool:
        too_large = self._size_bytes + size_bytes > self._limits.file_bytes_max
        too_old = clock.wall() - self._born_at > self._limits.file_age_max_s
        return self._rotates and self._size_bytes > 0 and (too_large or too_old)

    def _is_in_place(self) -> bool:
        self._look_at = clock.monotonic() + RETRY_S
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, OPEN_FLAGS, 0o640)
        status = os.fstat(self._fd)
        self._rotates = stat.S_ISREG(status.st_mode)
        self._size_bytes = status.st_size
        # When an older file was begun is not recorded anywhere; when it was last written is close enough.
        self._born_at = status.st_mtime
        self._look_at = clock.monotonic() + RETRY_S
        self._on_opened(self.path)

    def _release(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _endure(self, error: OSError) -> None:
        self._retry_at = clock.monotonic() + RETRY_S
        # A pipe stays open: closing it would tell its slow reader that this was the end.
        if error.errno != errno.EAGAIN:
            self._release()
        if self._outage_lines == 0:
            log.warning("cannot write %s (%s): its lines are lost until that is mended", self.path, error)

    def _lost(self, data: bytes) -> int:
        lines = count_lines(data)
        self._outage_lines += lines
        return lines


def count_lines(data: bytes) -> int:
    return data.count(b"\n") + (not data.endswith(b"\n"))
