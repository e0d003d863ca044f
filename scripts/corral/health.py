"""The health process's logic: probes answered from one file, and from nothing else.

A platform asks every few seconds whether this machine should live, wait for traffic, or be taken out.
Those questions must not count as traffic and must not wake anything, and they must be answered while
the gateway is too busy, or too dead, to answer itself. So another process answers them. It reads the
status file, asks the kernel whether the file's writer lives, and never talks to the gateway or to a
llama-server.

`observe` decides what a reading means and `answer` what a path says of it; both are plain functions.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

from corral import errors
from corral.drivers import clock, process_facts
from corral.drivers.http_server import Exchange, HttpServer, ServerLimits
from corral.drivers.listening import listen_sockets
from corral.drivers.patrol import Patrol
from corral.drivers.status_file import Fault, StatusReader, writer_alive
from corral.formats import http1, openai, sse
from corral.formats.status import (
    HEARTBEAT_S,
    PING_CODES,
    ServerState,
    StatusDocument,
    View,
    model_entry,
    server_state,
    view_body,
    view_events,
)

# The gateway replaces the file at least every 5 s; after three times that it hangs.
STALE_AFTER_S = 15.0
# How often an open stream looks at the file.
STREAM_POLL_S = 0.25
# Where the kernel doesn't end us together with the gateway, we look for it this often.
GATEWAY_POLL_S = 1.0

# Probes are small, few and quick; whoever is not is no probe.
LIMITS = ServerLimits(
    head=http1.Limits(),
    body_max_bytes=0,
    bodies_max_bytes=0,
    connections_max=1000,
    header_timeout_s=10.0,
    body_timeout_s=10.0,
    write_timeout_s=30.0,
    keepalive_timeout_s=75.0,
)
METHODS = ("GET", "HEAD")
STREAM_PATH = "/status/stream"
JSON_TYPE = (b"content-type", b"application/json")
# No cache between a platform and us may answer for us.
NO_STORE = (b"cache-control", b"no-store")


class Answer(NamedTuple):
    """A status, and a JSON document or an empty body."""

    status: int
    document: Mapping[str, object] | None = None


def observe(
    reading: StatusDocument | Fault, is_writer_alive: bool, now: float, gateway_pid: int | None
) -> View:
    """What a reading of the file means. `now` is wall time, as the file's own is.

    A gateway writes before it starts us. If its word is not there (or is another gateway's, whose file lies
    in the same place), it could not be written, and nothing can be known of it.
    """
    if not isinstance(reading, StatusDocument):
        alone = reading is Fault.MISSING and gateway_pid is None  # started where no gateway is, or none yet
        return View(ServerState.UNKNOWN if alone else ServerState.UNREADABLE, {})
    if gateway_pid not in (None, reading.pid):
        return View(ServerState.UNREADABLE, {})
    if not is_writer_alive:
        return View(ServerState.GONE, reading.models)
    if now - reading.written_at > STALE_AFTER_S:
        return View(ServerState.STALE, reading.models)
    return View(server_state(reading), reading.models)


def answer(path: str, check_path: str, view: View) -> Answer:
    """What a GET of `path` is answered. A path that means nothing here still says that we are alive."""
    code = PING_CODES[view.server]
    if path in ("/ping", check_path):
        return Answer(code)
    if path in ("/ready", "/readyz"):
        return Answer(200, {"status": "ready"}) if code == 200 else Answer(503, {"status": "not ready"})
    if path in ("/live", "/healthz"):
        return Answer(200, {"status": "ok"})
    if path == "/status":
        return Answer(200, view_body(view))
    if path.startswith("/status/"):
        return _model_answer(unquote(path.removeprefix("/status/")), view)
    return Answer(200)


def _model_answer(alias: str, view: View) -> Answer:
    model = view.models.get(alias)
    if model is None:
        raise errors.ModelNotFound(f"There is no model '{alias}' here. GET /status shows those there are.")
    return Answer(200, {"model": alias, **model_entry(model)})


class Health:
    """Answers requests from the status file that `reader` reads. Beside a gateway it must be that one's."""

    def __init__(self, reader: StatusReader, check_path: str, gateway_pid: int | None) -> None:
        self._reader = reader
        self._check_path = check_path
        self._gateway_pid = gateway_pid

    async def handle(self, exchange: Exchange) -> None:
        head = exchange.head
        if head.method not in METHODS:
            raise errors.MethodNotAllowed(
                f"The health server takes GET and HEAD, not {head.method}.",
                headers=(("allow", ", ".join(METHODS)),),
            )
        if head.path == STREAM_PATH:
            await self._stream(exchange)
            return
        status, document = answer(head.path, self._check_path, self.view())
        if document is None:
            exchange.respond(status, [NO_STORE])
        else:
            exchange.respond(status, [JSON_TYPE, NO_STORE], json.dumps(document).encode())

    def view(self) -> View:
        reading = self._reader.read()
        alive = isinstance(reading, StatusDocument) and writer_alive(reading)
        return observe(reading, alive, clock.wall(), self._gateway_pid)

    async def _stream(self, exchange: Exchange) -> None:
        """Everything at once, then what changes, until the client leaves."""
        exchange.start(200, sse.HEADERS)
        if exchange.head.method == "HEAD":
            exchange.finish()
            return
        seen: View | None = None
        heartbeat_at = clock.monotonic() + HEARTBEAT_S
        while True:
            view = self.view()
            for name, data in view_events(seen, view):
                exchange.write(sse.event(name, data))
            seen = view
            if clock.monotonic() >= heartbeat_at:
                heartbeat_at += HEARTBEAT_S
                exchange.write(sse.event("heartbeat", {}))
            await exchange.drain()
            await asyncio.sleep(STREAM_POLL_S)


def error_page(error: errors.CorralError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    own = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in error.headers]
    return [JSON_TYPE, *own], openai.error_body(error)


def server_for(answering: Health) -> HttpServer:
    """However many are connected, a probe is answered; only a stream, which stays, needs a place."""
    return HttpServer(
        answering.handle,
        LIMITS,
        Patrol(),
        error_page,
        never_refused=lambda head: head.path != STREAM_PATH,
    )


async def serve(
    host: str | None, port: int, status_path: str, check_path: str, gateway_pid: int | None
) -> None:
    """Answer probes until a signal says stop, or until the gateway that started us is gone."""
    sockets = listen_sockets(host, port)
    answering = Health(StatusReader(status_path), check_path, gateway_pid)
    server = server_for(answering)
    await server.listen(sockets)
    if gateway_pid is None:
        print(f"health server: listening on port {sockets[0].getsockname()[1]}", flush=True)
    await _asked_to_stop(gateway_pid)
    await server.close()


async def _asked_to_stop(gateway_pid: int | None) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if gateway_pid is not None:
        started_ticks = process_facts.start_ticks(gateway_pid)

        def look() -> None:
            if process_facts.is_alive(gateway_pid, started_ticks):
                loop.call_later(GATEWAY_POLL_S, look)
            else:
                stopped.set()

        look()
    await stopped.wait()
