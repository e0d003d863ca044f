"""The gate from socket to socket, without a process: a real server and client, a real fleet, and behind
them an engine that is a script, so that a test decides every byte that comes from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from corral.catalogue import Catalogue, Model
from corral.drivers import clock
from corral.drivers.http_client import Address, HttpClient
from corral.drivers.http_server import HttpServer
from corral.drivers.listening import listen_sockets
from corral.drivers.patrol import Patrol
from corral.fleet import Engine, Fleet
from corral.formats import http1, key_file, prometheus_text
from corral.formats.status import Phase, StatusDocument
from corral.handlers import replies, status
from corral.handlers.gate import Gate
from corral.handlers.record import Recorder
from corral.handlers.routes import Routes
from corral.metrics import Metrics
from corral.policy.authentication import KeyRing
from corral.policy.placement import Placement
from corral.policy.scheduler import ModelLimits, Terms
from tests.drivers.serving import LIMITS, RawClient
from tests.fleet.herd import FakeEngines, FakeMemory
from tests.models import a_model
from tests.settings.desk import Desk
from tests.waiting import eventually

KEY = "sk-alice-0123456789"
KEYS = f"alice:{KEY}:rpm=0\n"
TICK_S = 0.005
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
JSON_MEDIA = b"application/json"
NOWHERE = Address("127.0.0.1", 1)


class Seen(NamedTuple):
    """A request as the engine got it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return only(name, self.headers)


class Reply(NamedTuple):
    """An answer as the client got it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return only(name, self.headers)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in an answer that is nothing but one."""
        document = self.json()
        assert document.keys() == {"error"}
        inner: dict[str, Any] = document["error"]
        assert {"message", "type", "param", "code"} <= inner.keys()
        return inner


def only(name: str, headers: list[tuple[str, str]]) -> str | None:
    """The value of a header (in lower case) that may be there once."""
    values = [value for each, value in headers if each == name]
    assert len(values) <= 1, headers
    return values[0] if values else None


# What an engine may do with a request ------------------------------------------------------------

Script = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]
STREAM_HEAD = http1.response_head(
    200, [(b"Content-Type", b"text/event-stream"), (b"Transfer-Encoding", b"chunked")]
)


def answering(
    body: bytes = b'{"ok": true}', status: int = 200, *headers: tuple[bytes, bytes], media: bytes = JSON_MEDIA
) -> Script:
    """A whole answer with its length."""

    async def script(seen: Seen, writer: asyncio.StreamWriter) -> None:
        own = [(b"Content-Type", media), (b"Content-Length", b"%d" % len(body)), (b"Server", b"llama.cpp")]
        writer.write(http1.response_head(status, [*own, *headers]) + (b"" if seen.method == "HEAD" else body))

    return script


def sending(*pieces: bytes, close: bool = False) -> Script:
    """Exactly these bytes, each in a packet of its own as far as the kernel plays along."""

    async def script(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if close:
            writer.close()

    return script


def streaming(*events: bytes) -> Script:
    """A stream of events as llama-server sends it: each in a chunk of its own."""
    return sending(STREAM_HEAD, *(http1.chunk(event) for event in events), http1.LAST_CHUNK)


async def silence(_seen: Seen, _writer: asyncio.StreamWriter) -> None:
    """Hear the request, and say nothing."""


class Backend:
    """An engine's socket. Keeps what it has seen, and does with each request what the script says."""

    def __init__(self) -> None:
        self.script: Script = answering()
        self.seen: list[Seen] = []
        self.clients_gone = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server

    async def listen(self) -> Address:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return Address("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                seen = await read_request(reader)
                self.seen.append(seen)
                await self.script(seen, writer)
        self.clients_gone += 1
        writer.close()

    async def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = [
        (name.lower(), value) for name, _, value in (line.partition(": ") for line in head[1:] if line)
    ]
    method, target, _version = head[0].split(" ")
    length = int(dict(headers).get("content-length", "0"))
    return Seen(method, target, headers, await reader.readexactly(length))


class EnginesAt(FakeEngines):
    """Every engine is the one backend, and ready as soon as it is started, unless told to take its time."""

    def __init__(self, address: Address) -> None:
        super().__init__()
        self.address = address
        self.loads_at_once = True

    async def start(self, model: str, placement: Placement) -> Engine:
        await super().start(model, placement)
        engine = self.of(model)
        engine.address = self.address
        if self.loads_at_once:
            engine.answers()
        return engine


class AccessLog:
    """What a LogFile is handed, line by line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, data: bytes) -> None:
        assert data.endswith(b"\n")
        self.lines += data.decode().splitlines(keepends=True)


# The house ---------------------------------------------------------------------------------------


class Gatehouse:
    """Furnished by the test before it is opened, looked at while it is open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models: list[Model] = [a_model("demo")]
        self.keys = KEYS
        self.config: dict[str, Any] = {}
        self.environment: dict[str, str] = {}
        self.slots = 2
        self.limits = LIMITS
        self.phase = Phase.SERVING
        self.backend = Backend()
        self.access_log = AccessLog()
        self.engines: EnginesAt
        self.fleet: Fleet
        self.metrics: Metrics
        self.gate: Gate
        self.server: HttpServer
        self.client: HttpClient
        self.port = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Gatehouse]:
        """Serve. When the test is through, no request may be left in the fleet."""
        address = await self.backend.listen()
        self.build(address)
        sockets = listen_sockets("127.0.0.1", 0)
        self.port = sockets[0].getsockname()[1]
        await self.server.listen(sockets)
        try:
            yield self
            await eventually(lambda: self.fleet.queue.active == 0, "no slot is held")
            assert all(self.fleet.queue.depth(model.name) == 0 for model in self.models)
        finally:
            await self.server.close()
            self.client.close(address)
            for engine in self.engines.started:
                if engine.alive:
                    engine.ends()
            await RawClient.close_all()
            await self.backend.close()

    def build(self, address: Address = NOWHERE) -> Gate:
        """All the parts, put together and not yet listening."""
        settings = Desk(self.root).load(
            self.config, {"DATA_DIR": str(self.root / "data"), **self.environment}
        )
        patrol = Patrol(TICK_S)
        self.engines = EnginesAt(address)
        self.metrics = Metrics("test", 0.0)
        self.client = HttpClient(patrol)
        self.fleet = self._fleet(settings.herd.queue_timeout_s)
        aliases = {alias: model.name for model in self.models for alias in model.aliases}
        self.gate = Gate(
            version="1.2.3",
            settings=settings,
            catalogue=Catalogue({model.name: model for model in self.models}, aliases, ()),
            fleet=self.fleet,
            client=self.client,
            metrics=self.metrics,
            keys=self.ring(self.keys),
            status=self.status,
            recorder=Recorder(self.access_log, settings.logs.format, self.metrics),  # type: ignore[arg-type]
            dropped_log_lines=lambda: 0,
            open_connections=lambda: self.server.connections,
        )
        self.server = HttpServer(
            Routes(self.gate).handle,
            self.limits,
            patrol,
            replies.error_page,
            on_refused=self.gate.recorder.refused,
            never_refused=partial(status.must_be_answered, settings.server.health_check_path),
        )
        return self.gate

    def _fleet(self, queue_timeout_s: float) -> Fleet:
        return Fleet(
            {model.name: ModelLimits(self.slots, False, 10) for model in self.models},
            self.engines,
            FakeMemory(),
            self.metrics,
            models_max=3,
            idle_timeout_s=None,
            terms=Terms(30.0, 20.0, queue_timeout_s),
            request_timeout_s=120.0,
            look_every_s=60.0,
        )

    def ring(self, text: str) -> KeyRing:
        return KeyRing(key_file.parse(text).keys, requests_per_minute=100)

    def status(self) -> StatusDocument:
        return StatusDocument("box", 1, None, clock.wall(), self.phase, True, False, self.fleet.statuses())

    # A client's side ---------------------------------------------------------------------------

    async def connect(self) -> RawClient:
        return await RawClient.connect(self.port)

    async def ask(
        self,
        path: str,
        body: object = None,
        *,
        method: str | None = None,
        key: str | None = KEY,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        client = await self.connect()
        client.send(request(path, body, method=method, key=key, headers=headers))
        reply = await read_reply(client, method or "GET")
        client.close()
        return reply

    # The books ---------------------------------------------------------------------------------

    def counted(self, name: str, **labels: str) -> float:
        """A number of the metrics: 0 for what was never counted, the count of a histogram."""
        for family in self.metrics.families():
            for sample_labels, reading in family[3]:
                if family[0] == name and dict(sample_labels) == labels:
                    return float(sum(reading[1])) if isinstance(reading, tuple) else reading
        return 0.0

    def scraped(self, *names: str) -> list[str]:
        """The lines of a scrape that begin like this."""
        text = prometheus_text.render(self.metrics.families()).decode()
        return [line for line in text.splitlines() if line.startswith(names)]

    async def logged(self, count: int = 1) -> list[list[str]]:
        """The columns of the access log's lines, once there are so many."""
        await eventually(lambda: len(self.access_log.lines) >= count, f"{count} lines in the access log")
        assert len(self.access_log.lines) == count, self.access_log.lines
        return [line.rstrip("\n").split(" | ") for line in self.access_log.lines]


def request(
    path: str,
    body: object = None,
    *,
    method: str | None = None,
    key: str | None = KEY,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A request as it goes over the wire: GET without a body, POST with one, unless said otherwise."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"host": "gate"}
    if key is not None:
        fields["authorization"] = f"Bearer {key}"
    if body is not None:
        fields |= {"content-type": "application/json", "content-length": str(len(data))}
    fields |= headers or {}
    lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


async def read_reply(client: RawClient, method: str = "GET") -> Reply:
    """The next answer, with a length or in chunks; without a body where there can be none."""
    head = await read_head(client)
    if method == "HEAD" or head.status in (204, 304):
        return head
    if head.header("transfer-encoding") == "chunked":
        body = b""
        while size := int(await client.until(b"\r\n"), 16):
            body += (await client.exactly(size + 2))[:-2]
        assert await client.until(b"\r\n") == b"\r\n"
    else:
        body = await client.exactly(int(head.header("content-length") or "0"))
    return head._replace(body=body)


async def read_head(client: RawClient) -> Reply:
    lines = (await client.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines[1:] if line)
    return Reply(int(lines[0].split(" ")[1]), [(name.lower(), value) for name, _, value in pairs], b"")
