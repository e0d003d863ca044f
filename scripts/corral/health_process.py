"""The health process as the gateway sees it: started before anything slow, restarted, and ended last.

It is told all that it needs on its command line, reads one status file, and goes by itself when the
gateway dies without a goodbye. One that can't live, because its port is taken, is tried again with the
pauses that a model gets.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from corral import settings
from corral.drivers import clock
from corral.drivers.process import Child, spawn
from corral.drivers.reaper import Reaper
from corral.policy import lifecycle
from corral.settings import Settings

log = logging.getLogger("corral")

HEALTH_SERVER = Path(__file__).resolve().parent.parent / "health_server.py"
STOP_S = 2.0


class HealthProcess:
    def __init__(self, config: Settings, status_path: str, reaper: Reaper) -> None:
        self._settings = config
        self._status_path = status_path
        self._reaper = reaper
        self._child: Child | None = None
        self._started_at = 0.0
        self._deaths = lifecycle.Deaths()
        self._told: set[str] = set()
        self._ended = False

    def start(self) -> None:
        server = self._settings.server
        argv = [sys.executable, "-I", str(HEALTH_SERVER), "--port", str(server.health_port)]
        argv += ["--host", server.host or "", "--status-file", self._status_path]
        argv += ["--path", server.health_check_path, "--gateway-pid", str(os.getpid())]
        environment = settings.children_environment(self._settings)
        self._started_at = clock.monotonic()
        try:
            self._child = spawn(argv, env=environment, reaper=self._reaper, on_output=self._said)
        except OSError as error:
            self._restart_after(f"the health server cannot be started ({error}) and is tried again")
        else:
            self._child.exited.add_done_callback(self._exited)

    async def stop(self) -> None:
        self._ended = True
        if self._child is not None and self._child.alive:
            self._child.signal_group(signal.SIGTERM)
            # If it hangs it still goes with us: the kernel ends it.
            await asyncio.wait([self._child.exited], timeout=STOP_S)

    def _said(self, data: bytes) -> None:
        for line in data.decode("utf-8", "replace").splitlines():
            self._tell(logging.INFO, line)

    def _tell(self, level: int, words: str) -> None:
        """What every try brings again is no news, until one has lived for a while."""
        if words not in self._told:
            self._told.add(words)
            log.log(level, "%s", words)

    def _exited(self, exited: asyncio.Future[int]) -> None:
        if not self._ended:
            self._restart_after(f"the health server ended ({exited.result()}) and is started again")

    def _restart_after(self, trouble: str) -> None:
        lived_s = clock.monotonic() - self._started_at
        if lived_s >= lifecycle.GOOD_SPELL_S:
            self._told.clear()
        self._tell(logging.ERROR, trouble)
        self._deaths = self._deaths.another(lived_s)
        asyncio.get_running_loop().call_later(self._deaths.pause_s(luck=0.0), self._restart)

    def _restart(self) -> None:
        if not self._ended:
            self.start()
