"""Starts programs. The only place that does, so that the rules for children hold for all of them.

A child is a process group of its own (a signal reaches whatever it starts), dies when we die (the exec
shim asks the kernel for it), holds none of our descriptors, reads nothing, and writes its two outputs
into one pipe. The kernel ties it to the thread that spawned it, so only the main thread may spawn.

The pipe is read by the event loop, one bounded piece a turn: a child that floods its log slows itself
down, not the requests. By the time a child's end is announced, all that it said has been delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from corral.drivers import clock
from corral.drivers.reaper import Reaper

EXEC_SHIM = Path(__file__).with_name("exec_shim.py")
# What a pipe holds on Linux: more could not be had in one read.
READ_BYTES_MAX = 65_536
# Read after a child's death at most: a stranger who has inherited the pipe might write for ever.
LAST_WORDS_BYTES_MAX = 1_048_576

# Called with what the child wrote, as it comes, and once with b"" when nothing more will.
OnOutput = Callable[[bytes], None]


class Child:
    """One process that we have started, until it is reaped."""

    def __init__(
        self, popen: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, on_output: OnOutput
    ) -> None:
        assert popen.stdout is not None
        self.pid = popen.pid
        self.started_at = clock.monotonic()
        self.exit_code: int | None = None
        self._popen = popen
        self._loop = loop
        self._exited: asyncio.Future[int] = loop.create_future()
        self._on_output = on_output
        self._pipe: IO[bytes] | None = popen.stdout
        os.set_blocking(self._pipe.fileno(), False)
        loop.add_reader(self._pipe.fileno(), self._read)

    @property
    def alive(self) -> bool:
        """Whether it has not been reaped yet: until then its pid is its own."""
        return self.exit_code is None

    @property
    def exited(self) -> asyncio.Future[int]:
        """A promise of the exit code, negative for a signal. Cancelling it hurts no other waiter."""
        return asyncio.shield(self._exited)

    def signal_group(self, number: signal.Signals) -> None:
        """Signal it and whatever it has started. After its end nothing happens: the pid may be another's."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def died(self, exit_code: int) -> None:
        """The reaper's call."""
        remaining = LAST_WORDS_BYTES_MAX
        while self._pipe is not None and remaining > 0:
            size = self._read()
            if size == 0:
                break
            remaining -= size
        self._close_pipe()
        self.exit_code = exit_code
        # Otherwise Popen would ask for the pid again one day, when it may belong to another process.
        self._popen.returncode = exit_code
        self._exited.set_result(exit_code)

    def _read(self) -> int:
        """Deliver one piece; the number of its bytes, 0 for none."""
        if self._pipe is None:
            return 0
        try:
            data = os.read(self._pipe.fileno(), READ_BYTES_MAX)
        except BlockingIOError:
            return 0
        if data:
            self._on_output(data)
        else:
            self._close_pipe()
        return len(data)

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()
            self._pipe = None
            self._on_output(b"")


def spawn(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    reaper: Reaper,
    on_output: OnOutput,
    cwd: Path | None = None,
) -> Child:
    """Start `argv`, whose first word is a path, with exactly `env`.

    A program that can't be run is no error here: it ends with exit code 127 and says why. OSError means
    that no process could be had at all.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children may be spawned from the main thread only: they die with their thread")
    loop = asyncio.get_running_loop()
    shim = [sys.executable, "-I", "-S", str(EXEC_SHIM), str(os.getpid()), "--"]
    popen = subprocess.Popen(
        [*shim, *argv],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        start_new_session=True,
    )
    child = Child(popen, loop, on_output)
    reaper.watch(child.pid, child.died)
    return child
