"""One llama-server: started, listened to, stopped.

What it prints goes to its log file and, as the last hundred lines, stays at hand: when a model fails to
load, those lines are the reason that the client is told. The count of printed bytes shows that a slow
load still moves: the dots of its progress come without a line's end, so bytes count, not lines.

Stopping is SIGTERM to the process group, SIGKILL to whoever is left, and then the wait until it is
reaped; until then its memory is still taken. A llama-server that is answering a request which is not
streamed ignores SIGTERM until that client closes, so the caller closes its sockets first.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from corral.drivers.log_files import LogFile
from corral.drivers.process import Child, spawn
from corral.drivers.reaper import Reaper

TAIL_LINES = 100
# A longer line is cut into several. A prompt printed by a debug flag must not fill the memory.
LINE_BYTES_MAX = 8_192
TERM_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 10.0

# Characters that would move a terminal's cursor, end a line or turn its direction. A tab is white space.
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_HARMLESS = dict.fromkeys(_CONTROLS) | {0x09: " "}


class LineSplitter:
    """Cuts a byte stream into lines of bounded length, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends."""
        lines = (self._rest + data).split(b"\n")
        if max(map(len, lines)) > LINE_BYTES_MAX:
            lines = [piece for line in lines for piece in _cut(line)]
        self._rest = lines.pop()
        return lines

    def finish(self) -> list[bytes]:
        """The last line, if it has no end."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


def _cut(line: bytes) -> list[bytes]:
    return [line[start : start + LINE_BYTES_MAX] for start in range(0, len(line) or 1, LINE_BYTES_MAX)]


class Output:
    """What a process has said: passed on to its log, counted, and the last of it remembered."""

    def __init__(self, log: LogFile) -> None:
        self.size_bytes = 0
        self._log = log
        self._lines: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._splitter = LineSplitter()

    def hear(self, data: bytes) -> None:
        """Take the next bytes; b"" says that they were the last."""
        self.size_bytes += len(data)
        lines = self._splitter.feed(data) if data else self._splitter.finish()
        if lines:
            self._lines.extend(lines)
            self._log.write(b"\n".join(lines) + b"\n")
        if not data:
            self._log.close()

    def tail(self, lines: int) -> list[str]:
        last = list(self._lines)[-lines:] if lines > 0 else []
        return [line.decode("utf-8", "replace").translate(_HARMLESS) for line in last]


class LlamaProcess:
    """A running llama-server, or one that has ended."""

    def __init__(self, child: Child, output: Output) -> None:
        self._child = child
        self._output = output
        self._stopping: asyncio.Future[int | None] | None = None

    @classmethod
    def start(
        cls, argv: Sequence[str | Path], env: Mapping[str, str], log: LogFile, reaper: Reaper
    ) -> LlamaProcess:
        """Start `argv` with exactly `env`. The log is closed when the process has ended.

        OSError if no process could be had; a program that can't be run shows as exit code 127.
        """
        output = Output(log)
        try:
            child = spawn(argv, env=env, reaper=reaper, on_output=output.hear)
        except OSError:
            log.close()
            raise
        return cls(child, output)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def started_at(self) -> float:
        return self._child.started_at

    @property
    def alive(self) -> bool:
        """Until it is reaped."""
        return self._child.alive

    @property
    def exit_code(self) -> int | None:
        """Negative for a signal; None while it lives."""
        return self._child.exit_code

    @property
    def exited(self) -> asyncio.Future[int]:
        """A promise of the exit code, given when all its output has been heard."""
        return self._child.exited

    @property
    def output_bytes(self) -> int:
        """How much it has printed: a count that grows while a load moves."""
        return self._output.size_bytes

    def tail(self, lines: int = TAIL_LINES) -> list[str]:
        """The last lines of its output, fit to be shown to a person."""
        return self._output.tail(lines)

    def kill(self) -> None:
        """End it at once. `exited` tells when it is gone."""
        self._child.signal_group(signal.SIGKILL)

    async def stop(
        self, term_timeout_s: float = TERM_TIMEOUT_S, kill_timeout_s: float = KILL_TIMEOUT_S
    ) -> int | None:
        """End it and wait until it is reaped; its exit code, or None if even SIGKILL did not end it.

        Calls share one stop, and the first one's patience: a second SIGTERM would make llama-server
        drop what it is still answering.
        """
        if self._stopping is None:
            self._stopping = self._begin_stop(term_timeout_s, kill_timeout_s)
        return await asyncio.shield(self._stopping)

    def _begin_stop(self, term_timeout_s: float, kill_timeout_s: float) -> asyncio.Future[int | None]:
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[int | None] = loop.create_future()

        def settle(exit_code: int | None) -> None:
            kill_timer.cancel()
            give_up_timer.cancel()
            if not stopped.done():
                stopped.set_result(exit_code)

        kill_timer = loop.call_later(term_timeout_s, self.kill)
        give_up_timer = loop.call_later(term_timeout_s + kill_timeout_s, settle, None)
        self._child.exited.add_done_callback(lambda exited: settle(exited.result()))
        self._child.signal_group(signal.SIGTERM)
        return stopped


def exit_in_words(exit_code: int) -> str:
    """'exit code 1', or 'killed by SIGKILL'."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"
