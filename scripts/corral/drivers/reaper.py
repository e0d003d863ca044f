"""Learns how our child processes ended, and buries strays when we are PID 1. All reaping is done here.

A process can be waited for once, so there must be one place that waits. Our own children are asked for
by pid; nothing else in the program may call `wait`, and no asyncio child watcher runs beside this.
In a container we are PID 1 and inherit every orphan. Those are buried too, but `waitpid(-1)` would
also take our own children's endings, so the next dead process is looked at first (WNOWAIT) and taken
by pid only when it is nobody of ours.

A dead leader keeps its process group's number from being used again until it is reaped. So what is
left of its group is killed just before: whoever it had started does not outlive it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable

log = logging.getLogger("corral.reaper")

# SIGCHLD tells us at once. It can be lost only by another's mistake, so looking anyway may be slow.
POLL_S = 5.0
# Orphans buried in one turn of the event loop: a fork bomb must not hold up the requests.
STRAYS_PER_TURN_MAX = 100
# The ending of a child that somebody else has waited for; what asyncio reports in that case as well.
UNKNOWN_EXIT_CODE = 255

# Called with the exit code, negative for a signal, as in `subprocess`.
OnDeath = Callable[[int], None]


class Reaper:
    """Watches children by pid. Belongs to the main thread and its event loop."""

    def __init__(self, *, buries_strays: bool | None = None) -> None:
        self._buries_strays = os.getpid() == 1 if buries_strays is None else buries_strays
        self._watched: dict[int, OnDeath] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.add_signal_handler(signal.SIGCHLD, self.look)
        self._arm_timer()
        self.look()

    def stop(self) -> None:
        """Stop looking. Children that still live stay unreaped: stop them first."""
        if self._loop is not None:
            self._loop.remove_signal_handler(signal.SIGCHLD)
            self._loop = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def watch(self, pid: int, on_death: OnDeath) -> None:
        """Call `on_death` once, from the event loop, when `pid` has ended: also if it already has."""
        self._watched[pid] = on_death
        if self._loop is not None:
            self._arm_timer()

    def look(self) -> None:
        """Reap whoever of ours has ended. Runs on SIGCHLD; calling it at any other time is harmless."""
        for pid in tuple(self._watched):
            self._look_at(pid)
        if self._buries_strays:
            self._bury_strays()

    def _look_at(self, pid: int) -> None:
        try:
            # Not on macOS before Python 3.13, where the group then dies by the caller's signals alone.
            if hasattr(os, "waitid"):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    return
                _kill_group(pid)
            waited, status = os.waitpid(pid, os.WNOHANG)
            if waited == 0:
                return
            exit_code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            log.warning("process %d was waited for by someone else; how it ended is unknown", pid)
            exit_code = UNKNOWN_EXIT_CODE
        self._watched.pop(pid)(exit_code)

    def _bury_strays(self) -> None:
        for _ in range(STRAYS_PER_TURN_MAX):
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if dead is None:
                    return
                if dead.si_pid in self._watched:
                    self._look_at(dead.si_pid)
                else:
                    os.waitpid(dead.si_pid, os.WNOHANG)
            except ChildProcessError:
                return
        if self._loop is not None:
            self._loop.call_soon(self.look)

    def _arm_timer(self) -> None:
        if self._timer is None and self._loop is not None and (self._watched or self._buries_strays):
            self._timer = self._loop.call_later(POLL_S, self._poll)

    def _poll(self) -> None:
        self._timer = None
        self.look()
        self._arm_timer()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
