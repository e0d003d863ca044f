"""The health process as the gateway sees it: started before anything slow, restarted, and ended last.

It is told all that it needs on its command line, reads one status file, and goes by itself when the
gateway dies without a goodbye.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from corral import settings
from corral.drivers.process import Child, spawn
from corral.drivers.reaper import Reaper
from corral.settings import Settings

log = logging.getLogger("corral")

HEALTH_SERVER = Path(__file__).resolve().parent.parent / "health_server.py"
RESTART_S = 1.0
STOP_S = 2.0


class HealthProcess:
    def __init__(self, config: Settings, status_path: str, reaper: Reaper) -> None:
        self._settings = config
        self._status_path = status_path
        self._reaper = reaper
        self._child: Child | None = None
        self._ended = False

    def start(self) -> None:
        server = self._settings.server
        argv = [sys.executable, "-I", str(HEALTH_SERVER), "--port", str(server.health_port)]
        argv += ["--host", server.host or "", "--status-file", self._status_path]
        argv += ["--path", server.health_check_path, "--gateway-pid", str(os.getpid())]
        environment = settings.children_environment(self._settings)
        try:
            self._child = spawn(argv, env=environment, reaper=self._reaper, on_output=self._said)
        except OSError as error:
            log.error("the health server cannot be started (%s) and is tried again", error)
            self._restart_soon()
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
            log.info("%s", line)

    def _exited(self, exited: asyncio.Future[int]) -> None:
        if not self._ended:
            log.error("the health server ended (%s) and is started again", exited.result())
            self._restart_soon()

    def _restart_soon(self) -> None:
        asyncio.get_running_loop().call_later(RESTART_S, self._restart)

    def _restart(self) -> None:
        if not self._ended:
            self.start()
