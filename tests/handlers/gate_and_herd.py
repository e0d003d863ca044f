"""A gate on a real socket, with a herd behind it whose every step the test decides.

Requests take the whole way through routes, handlers and the HTTP server. Time stands still unless the test
moves it, and no process starts: see tests/fleet/herd.py.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from corral import settings
from corral.catalogue import Catalogue
from corral.drivers.http_client import HttpClient
from corral.drivers.log_files import LogFiles
from corral.drivers.patrol import Patrol
from corral.formats import key_file
from corral.formats.status import Phase, StatusDocument
from corral.handlers.gate import Gate
from corral.handlers.record import Recorder
from corral.handlers.routes import Routes
from corral.policy.authentication import KeyRing
from corral.settings import LogFormat
from tests.drivers.serving import RawClient, serving
from tests.fleet.herd import Herd
from tests.in_a_loop import DEADLINE_S
from tests.models import a_model

KEY = "sk-gate-0123456789abcdef"
FLUSH_S = 5.0


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> Any:
        return self.json()["error"]


class GateAndHerd:
    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        directory: Path,
        *,
        models: Mapping[str, int] | None = None,
        aliases: Mapping[str, str] | None = None,
        keys: str = "",
        environ: Mapping[str, str] | None = None,
        **herd_options: Any,
    ) -> None:
        self.herd = Herd(monkeypatch, models, **herd_options)
        self.fleet = self.herd.fleet
        self.phase = Phase.SERVING
        self.port = 0
        self._logs = LogFiles(directory / "logs", "test")
        self._access_log = directory / "logs" / "api_access.log"
        own = {"HOME": str(directory), "PATH": "", "DATA_DIR": str(directory / "data")}
        self.parts = Gate(
            version="test",
            settings=settings.load(own | dict(environ or {}), cwd=directory),
            catalogue=Catalogue(
                {name: a_model(name) for name in self.herd.models}, dict(aliases or {}), warnings=()
            ),
            fleet=self.fleet,
            client=HttpClient(Patrol()),
            metrics=self.herd.metrics,
            keys=KeyRing((), requests_per_minute=0),
            recorder=Recorder(self._logs.open_access_log(), LogFormat.TEXT, self.herd.metrics),
            status=self._status,
            open_connections=lambda: 0,
            dropped_log_lines=lambda: 0,
        )
        self.set_keys(f"tester:{KEY}:rpm=0\n{keys}")

    def _status(self) -> StatusDocument:
        return StatusDocument(
            instance="test",
            pid=1,
            pid_started=None,
            written_at=0.0,
            phase=self.phase,
            preload_settled=self.fleet.preload_settled,
            single_model_failed=False,
            models=self.fleet.statuses(),
        )

    def set_keys(self, text: str) -> None:
        """What the gateway does when the keys file has changed."""
        self.parts.keys = KeyRing(key_file.parse(text).keys, requests_per_minute=100)

    def access_log(self) -> str:
        assert self._logs.flush(FLUSH_S)
        return self._access_log.read_text() if self._access_log.exists() else ""

    # Requests ----------------------------------------------------------------------------------

    async def send(
        self,
        path: str,
        document: object = None,
        *,
        method: str | None = None,
        key: str | None = KEY,
        headers: Mapping[str, str] | None = None,
    ) -> RawClient:
        """A request on a connection of its own. POST if it has a body."""
        body = b"" if document is None else json.dumps(document).encode()
        lines = [
            f"{method or ('POST' if body else 'GET')} {path} HTTP/1.1",
            "Host: corral.test",
            f"Content-Length: {len(body)}",
            *([f"Authorization: Bearer {key}"] if key else []),
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        client = await RawClient.connect(self.port)
        client.send("\r\n".join([*lines, "", ""]).encode() + body)
        return client

    async def ask(self, path: str, document: object = None, **options: Any) -> Reply:
        """A request and its whole answer."""
        return await reply(await self.send(path, document, **options))

    def close(self) -> None:
        self._logs.stop()


async def reply(client: RawClient) -> Reply:
    """The answer to what was sent on this connection."""
    return Reply(*await client.answer())


Scenario = Callable[..., Coroutine[Any, Any, None]]


def with_gate(**options: Any) -> Callable[[Scenario], Callable[..., None]]:
    """A test whose first argument is a gate, and whose others are pytest's.

    Whatever else it asserts, at its end nothing may be held.
    """

    def decorate(scenario: Scenario) -> Callable[..., None]:
        wanted = list(inspect.signature(scenario).parameters)[1:]

        def test(**given: Any) -> None:
            gate = GateAndHerd(given["monkeypatch"], given["tmp_path"], **options)
            played = _play(gate, scenario(gate, **{name: given[name] for name in wanted}))
            asyncio.run(asyncio.wait_for(played, DEADLINE_S))

        names = dict.fromkeys(["monkeypatch", "tmp_path", *wanted])
        parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        test.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return test

    return decorate


async def _play(gate: GateAndHerd, scenario: Coroutine[Any, Any, None]) -> None:
    try:
        async with serving(Routes(gate.parts).handle) as (_server, gate.port):
            await scenario
        await gate.herd.close()
        gate.herd.check_nothing_is_held()
    finally:
        gate.close()
