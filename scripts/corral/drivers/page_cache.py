"""Has the kernel read a model's files before the model is started.

A request may wait for room, or for a port, or for a slow start; the disk can work meanwhile. What is
then read again comes from memory. Nothing depends on it: where it can't be done, nothing happens.

The advice WILLNEED is given in small pieces, because the kernel reads no more for one call than the
device's read-ahead (128 KiB unless somebody changed it) and drops the rest in silence: of a file
advised 16 MiB at a time, half was missing (measured). A call only starts the reading, but it waits
when the disk has enough to do. So it is a thread that calls, one file after the other, and it ends when
there is nothing left to read.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path

PIECE_BYTES = 128 * 1024


class WarmUp:
    """Somebody's wish to have some files read."""

    def __init__(self, cache: PageCache) -> None:
        self._cache = cache

    def cancel(self) -> None:
        """It is no longer wanted. What is read already stays; harmless when all is read."""
        self._cache.cancel(self)


class PageCache:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Files yet to be read, and who wants them. The first one is being read.
        self._wanted: dict[Path, set[WarmUp]] = {}
        self._reader: threading.Thread | None = None

    def warm(self, paths: Iterable[Path]) -> WarmUp:
        """Have these files read, after those that are wanted already. Returns at once."""
        wish = WarmUp(self)
        if not hasattr(os, "posix_fadvise"):
            return wish
        with self._lock:
            for path in paths:
                self._wanted.setdefault(path, set()).add(wish)
            if self._wanted and self._reader is None:
                self._reader = threading.Thread(target=self._read_all, name="page-cache", daemon=True)
                self._reader.start()
        return wish

    def cancel(self, wish: WarmUp) -> None:
        """WarmUp's way in. A file goes on being read as long as anybody else wants it."""
        with self._lock:
            for path in list(self._wanted):
                self._wanted[path].discard(wish)
                if not self._wanted[path]:
                    del self._wanted[path]

    # What follows runs on the thread ---------------------------------------------------------------

    def _read_all(self) -> None:
        while (path := self._next()) is not None:
            try:
                done = self._read(path)
            except OSError:
                done = True  # what is missing or can't be read is its llama-server's to complain about
            if done:
                with self._lock:
                    self._wanted.pop(path, None)

    def _next(self) -> Path | None:
        with self._lock:
            path = next(iter(self._wanted), None)
            if path is None:
                self._reader = None
            return path

    def _read(self, path: Path) -> bool:
        """Whether it came to an end; False if nobody wants it any more."""
        # Non-blocking, or else opening a pipe would wait for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            size_bytes = status.st_size if stat.S_ISREG(status.st_mode) else 0
            for offset in range(0, size_bytes, PIECE_BYTES):
                if path not in self._wanted:
                    return False
                os.posix_fadvise(descriptor, offset, PIECE_BYTES, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
        return True
