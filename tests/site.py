"""A place for a gateway that runs inside the test's own process, and what tests of one ask it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from corral import app, settings
from corral.app import App
from corral.settings import Settings
from tests import root_logger
from tests.drivers.serving import RawClient
from tests.handlers.gatehouse import Reply, read_reply, request
from tests.in_a_loop import turns
from tests.stand_in_launcher import write_launcher
from tests.support import free_port
from tests.waiting import is_running

ALICE, BOB = "sk-alice-0123456789abcdef", "sk-bob-0123456789abcdef"


class Site:
    """A place to run in: ports, directories, a keys file, two model files, and the stand-in engine."""

    def __init__(self, root: Path, models: Path) -> None:
        self.root = root
        self.port, self.health_port = free_port(), free_port()
        self.keys_file = root / "data" / "api_keys.txt"
        self.status_file = root / "run" / "status.json"
        shutil.copytree(models, root / "data" / "models")
        self.write_keys(f"alice:{ALICE}\n")
        self.environ = {
            "HOME": str(root),
            "PATH": os.environ["PATH"],
            "DATA_DIR": str(root / "data"),
            "RUNTIME_DIR": str(root / "run"),
            "LLAMA_SERVER_PATH": str(write_launcher(root)),
            "GATEWAY_PORT": str(self.port),
            "PORT_HEALTH": str(self.health_port),
            "PORT_BACKEND": str(free_port()),
        }

    def write_keys(self, text: str) -> None:
        self.keys_file.touch(mode=0o600)
        self.keys_file.write_text(text)

    def load(self, config: dict[str, Any] | None = None, **environ: str) -> Settings:
        # A range of its own, because other tests may start engines at the same time.
        own = {"system": {"scan_models": True}, "server_pool": {"port_start": free_port()}}
        config = own | (config or {})
        (self.root / "data" / "config.json").write_text(json.dumps(config))
        return settings.load(self.environ | environ, cwd=self.root)

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.status_file.read_bytes())
        return document

    @asynccontextmanager
    async def run(self, config: dict[str, Any] | None = None, **environ: str) -> AsyncIterator[App]:
        app = App(self.load(config, **environ))
        try:
            await app.start()
            yield app
        finally:
            await app.close()
            await RawClient.close_all()
            app.reaper.stop()
            await turns()

    async def ask(
        self, path: str, body: object = None, *, key: str = ALICE, port: int | None = None
    ) -> Reply:
        client = await RawClient.connect(port or self.port)
        client.send(request(path, body, key=key))
        reply = await read_reply(client)
        client.close()
        return reply

    def health_pid(self) -> int | None:
        """Of the health process that is there now."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and is_running(int(entry.name)):
                command = (entry / "cmdline").read_bytes()
                if b"health_server.py" in command and os.fsencode(self.status_file) in command:
                    return int(entry.name)
        return None


@contextmanager
def site_with(root: Path, models: Path) -> Iterator[Site]:
    """What a gateway does now and then it does all the time here."""
    with ExitStack() as alterations:
        for name in ("STATUS_EVERY_S", "KEYS_EVERY_S", "CERTIFICATE_EVERY_S", "IDLE_EVERY_S"):
            alterations.enter_context(patch.object(app, name, 0.01))
        alterations.enter_context(root_logger.put_back())
        yield Site(root, models)


def log_text(site: Site) -> str:
    latest = site.root / "data" / "logs" / "_boot" / "latest.txt"
    return latest.read_text() if latest.exists() else ""


class Slow:
    """Something at the start that takes until the test lets it go on."""

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act = act
        self._may_go_on = threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        assert self._may_go_on.wait(10.0)
        return self._act(*arguments)

    def goes_on(self) -> None:
        self._may_go_on.set()


def refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
