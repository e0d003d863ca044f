"""Every log file of the system, behind one thread: requests hand over lines and never wait for a disk.

A request must not feel its own log line. `write` puts the bytes into a bounded queue (measured: 0.6 µs);
one thread gathers what has come for a moment and writes it with one call per file. If the disk is slower
than the traffic, the queue stays bounded and lines are dropped and counted.

    api_access.log                          appended to; a full one is renamed api_access.STAMP_HOST.log
    FOLDER/YYYYMMDD_HHMMSS_KIND_HOST.log    one for each start, in UTC; latest.txt links to the newest
"""

from __future__ import annotations

import threading
from pathlib import Path

from corral.drivers import clock
from corral.drivers.log_retention import LogLimits, name_on_disk, point_latest_at, remove_oldest, stamp
from corral.drivers.log_sink import Sink, count_lines

ACCESS_LOG = "api_access.log"
QUEUE_BYTES_MAX = 8 * 1024 * 1024
QUEUE_PIECES_MAX = 50_000
# How long the thread lets lines gather. A crash of the gateway itself loses no more than this.
GATHER_S = 0.05
STOP_TIMEOUT_S = 2.0


class LogFile:
    """A log that is open for writing, from any thread."""

    __slots__ = ("_files", "_sink")

    def __init__(self, files: LogFiles, sink: Sink) -> None:
        self._files = files
        self._sink = sink

    @property
    def path(self) -> Path:
        """Where its newest lines are going."""
        return self._sink.path

    def write(self, data: bytes) -> None:
        """Hand over one or more whole lines. Never waits, never fails."""
        self._files.put(self._sink, data)

    def close(self) -> None:
        """Close the file once what was written before is on it. Later lines are lost, and counted."""
        self._files.put(self._sink, None)


class LogFiles:
    """The log directory's one writer. `stop` it to get the last lines onto the disk."""

    def __init__(self, directory: Path, host: str, limits: LogLimits | None = None) -> None:
        self._directory = directory
        self._host = name_on_disk(host)
        self._limits = limits or LogLimits()
        self._changed = threading.Condition(threading.Lock())
        self._queue: list[tuple[Sink, bytes | None]] = []
        self._queued_bytes = 0
        self._put_count = 0
        self._done_count = 0
        self._dropped_lines = 0
        self._idle = False
        self._hurried = False
        self._stopping = False
        self._last_second: dict[str, int] = {}
        # The thread's own from here on.
        self._sinks: set[Sink] = set()
        self._unswept_bytes = 0
        self._has_new_file = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def dropped_lines(self) -> int:
        """Lines lost since the start: the queue was full, or the disk did not take them."""
        return self._dropped_lines

    def open(self, folder: str, kind: str) -> LogFile:
        """Begin a new `FOLDER/STAMP_KIND_HOST.log`. The disk is not touched before something is written."""
        folder = name_on_disk(folder)

        def opened(path: Path) -> None:
            point_latest_at(path)
            self._has_new_file = True

        def next_path(_full: Path) -> Path:
            return self._directory / folder / f"{self._next_stamp(folder)}_{kind}_{self._host}.log"

        return LogFile(self, Sink(next_path(Path()), next_path, self._limits, opened))

    def open_access_log(self) -> LogFile:
        """Go on with `api_access.log`."""

        def opened(_path: Path) -> None:
            self._has_new_file = True

        def move_away(full: Path) -> Path:
            full.rename(full.with_name(f"{full.stem}.{self._next_stamp(ACCESS_LOG)}_{self._host}.log"))
            return full

        return LogFile(self, Sink(self._directory / ACCESS_LOG, move_away, self._limits, opened))

    def put(self, sink: Sink, data: bytes | None) -> None:
        """LogFile's way in. None closes the file."""
        size_bytes = 0 if data is None else len(data)
        with self._changed:
            queued_bytes = self._queued_bytes + size_bytes
            too_much = queued_bytes > QUEUE_BYTES_MAX or len(self._queue) >= QUEUE_PIECES_MAX
            if data is not None and (self._stopping or too_much):
                self._dropped_lines += count_lines(data)
                return
            self._queue.append((sink, data))
            self._queued_bytes = queued_bytes
            self._put_count += 1
            # The thread is woken once for many lines: the first of them, or a rush that fills the queue.
            if self._idle or queued_bytes > QUEUE_BYTES_MAX // 2:
                self._idle = False
                self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was written before is on the files, or lost. False if that took too long."""
        with self._changed:
            target = self._put_count
            self._hurried = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._done_count >= target, timeout_s)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Write what is left and close everything. Later lines are dropped and counted."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _next_stamp(self, series: str) -> str:
        """A second of its own for each file of a series: no two have one name, and names sort by age."""
        with self._changed:
            second = max(int(clock.wall()), self._last_second.get(series, 0) + 1)
            self._last_second[series] = second
            return stamp(second)

    # What follows runs on the thread ---------------------------------------------------------------

    def _run(self) -> None:
        while batch := self._next_batch():
            lost_lines = self._write(batch)
            with self._changed:
                self._queued_bytes -= sum(len(data) for _sink, data in batch if data is not None)
                self._done_count += len(batch)
                self._dropped_lines += lost_lines
                self._changed.notify_all()
            self._sweep_if_due()
        for sink in self._sinks:
            sink.close()

    def _next_batch(self) -> list[tuple[Sink, bytes | None]]:
        """What has gathered; empty when it is time to stop."""
        with self._changed:
            while not self._queue and not self._stopping:
                self._idle = True
                self._changed.wait()
            self._idle = False
            if not self._hurried and not self._stopping:
                self._changed.wait(GATHER_S)
            self._hurried = False
            batch, self._queue = self._queue, []
            return batch

    def _write(self, batch: list[tuple[Sink, bytes | None]]) -> int:
        pieces: dict[Sink, list[bytes]] = {}
        closing: set[Sink] = set()
        lost_lines = 0
        for sink, data in batch:
            if data is None:
                closing.add(sink)
            elif sink in closing:
                lost_lines += count_lines(data)
            else:
                pieces.setdefault(sink, []).append(data)
                self._unswept_bytes += len(data)
        self._sinks.update(sink for sink in pieces if not sink.closed)
        lost_lines += sum(sink.append(lines) for sink, lines in pieces.items())
        for sink in closing:
            sink.close()
        self._sinks -= closing
        return lost_lines

    def _sweep_if_due(self) -> None:
        """Hold the total cap: after each new file, and while the open ones grow."""
        if self._has_new_file or self._unswept_bytes > self._limits.file_bytes_max // 4:
            self._has_new_file = False
            self._unswept_bytes = 0
            remove_oldest(self._directory, {sink.path for sink in self._sinks}, self._limits)
