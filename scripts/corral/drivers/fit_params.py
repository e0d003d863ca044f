"""Runs `llama-fit-params`, which says what memory a model would take, and brings back what it prints.

It is a child like any other: it dies with us, and the waiting is the event loop's. A small model takes
it 10 ms where there is no GPU (measured); a GPU's driver and a slow disk make that more. One that hangs
or floods is killed, and one that is no longer wanted can be called off.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from corral.drivers.llama_process import exit_in_words
from corral.drivers.process import spawn
from corral.drivers.reaper import Reaper

NAME = "llama-fit-params"
TIMEOUT_S = 60.0
# A process that the kernel holds on to, in a driver perhaps, does not go when it is killed.
KILL_TIMEOUT_S = 5.0
OUTPUT_BYTES_MAX = 65_536


class NoAnswer(Exception):
    """It said nothing that could be read: says why."""


def beside(llama_server: Path | None) -> Path | None:
    """The llama-fit-params of the same build, if there is one."""
    program = llama_server.with_name(NAME) if llama_server is not None else None
    found = program is not None and os.path.isfile(program) and os.access(program, os.X_OK)
    return program if found else None


class FitParams:
    """One run of it. OSError if no process could be had."""

    def __init__(self, argv: Sequence[str | Path], env: Mapping[str, str], reaper: Reaper) -> None:
        self.called_off = False
        self._output = bytearray()
        self._child = spawn(argv, env=env, reaper=reaper, on_output=self._hear)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Until it is reaped. After its answer, only if it could not be ended."""
        return self._child.alive

    def call_off(self) -> None:
        """End it at once: there will be no answer."""
        self.called_off = True
        self._kill()

    async def answer(self, timeout_s: float = TIMEOUT_S) -> str:
        """All that it said, when it is gone. Raises NoAnswer."""
        in_time = await self._ends_within(timeout_s)
        if not in_time:
            self._kill()
            await self._ends_within(KILL_TIMEOUT_S)
        if self.called_off:
            raise NoAnswer("it was called off")
        if self._floods:
            raise NoAnswer(f"it printed more than {OUTPUT_BYTES_MAX} bytes")
        if not in_time:
            raise NoAnswer(f"it had not ended after {timeout_s:g} s")
        if self._child.exit_code:
            raise NoAnswer(exit_in_words(self._child.exit_code))
        return self._output.decode("utf-8", "replace")

    async def gone(self) -> None:
        """Wait until it is reaped, as long as there is hope."""
        await self._ends_within(KILL_TIMEOUT_S)

    async def _ends_within(self, seconds: float) -> bool:
        await asyncio.wait([self._child.exited], timeout=seconds)
        return not self._child.alive

    def _hear(self, data: bytes) -> None:
        if self._floods:
            return
        self._output += data
        if self._floods:
            # Not here: these may be the last words of one that is reaped already, and its pid another's.
            asyncio.get_running_loop().call_soon(self._kill)

    @property
    def _floods(self) -> bool:
        return len(self._output) > OUTPUT_BYTES_MAX

    def _kill(self) -> None:
        self._child.signal_group(signal.SIGKILL)
