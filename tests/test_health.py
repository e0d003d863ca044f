"""What the health port says, by value; and its stream of changes over a real connection."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from corral import errors, health
from corral.drivers import clock, process_facts, status_file
from corral.drivers.listening import listen_sockets
from corral.drivers.status_file import Fault, StatusReader
from corral.formats.status import (
    ModelState,
    ModelStatus,
    Phase,
    ServerState,
    StatusDocument,
    View,
    to_json,
)

DEADLINE_S = 20.0
WRITTEN_AT = 1_800_000_000.0
MODELS = {
    "org/phi": ModelStatus(ModelState.READY, port=8085, vram_mb=4096),
    "llama-3b": ModelStatus(ModelState.OFF),
}
SERVING = StatusDocument(
    instance="box-1",
    pid=os.getpid(),
    pid_started=process_facts.start_ticks(os.getpid()),
    written_at=WRITTEN_AT,
    phase=Phase.SERVING,
    preload_settled=True,
    single_model_failed=False,
    models=MODELS,
)
READY = View(ServerState.READY, MODELS)


@pytest.mark.parametrize(
    ("reading", "alive", "age_s", "word"),
    [
        pytest.param(SERVING, True, 0.0, "ready", id="fresh"),
        pytest.param(SERVING, True, 15.0, "ready", id="just-fresh"),
        pytest.param(SERVING, True, 15.1, "stale", id="stale"),
        pytest.param(SERVING, True, -60.0, "ready", id="clock-set-back"),
        pytest.param(SERVING, False, 0.0, "gone", id="writer-dead"),
        pytest.param(SERVING, False, 60.0, "gone", id="writer-long-dead"),
        pytest.param(
            dataclasses.replace(SERVING, phase=Phase.DRAINING), True, 0.0, "draining", id="draining"
        ),
        pytest.param(
            dataclasses.replace(SERVING, phase=Phase.STARTING), True, 0.0, "starting", id="starting"
        ),
        pytest.param(Fault.MISSING, False, 0.0, "unknown", id="no-file"),
        pytest.param(Fault.GARBAGE, False, 0.0, "unreadable", id="garbage"),
        pytest.param(Fault.TOO_LARGE, False, 0.0, "unreadable", id="too-large"),
        pytest.param(Fault.UNREADABLE, False, 0.0, "unreadable", id="not-allowed-to-read"),
    ],
)
def test_a_reading_means(reading: StatusDocument | Fault, alive: bool, age_s: float, word: str) -> None:
    view = health.observe(reading, alive, WRITTEN_AT + age_s, None)
    assert view.server.value == word
    assert view.models == (MODELS if isinstance(reading, StatusDocument) else {})


@pytest.mark.parametrize(
    ("reading", "word"),
    [
        pytest.param(SERVING, "ready", id="its-own"),
        pytest.param(dataclasses.replace(SERVING, pid=1), "unreadable", id="another-gateways"),
        pytest.param(Fault.MISSING, "unreadable", id="no-file"),
        pytest.param(Fault.GARBAGE, "unreadable", id="garbage"),
    ],
)
def test_beside_a_gateway_only_that_gateways_word_counts(reading: StatusDocument | Fault, word: str) -> None:
    view = health.observe(reading, True, WRITTEN_AT, SERVING.pid)
    assert view == View(ServerState(word), MODELS if word == "ready" else {})


@pytest.mark.parametrize(
    ("word", "ping", "is_ready"),
    [
        ("ready", 200, 200),
        ("unknown", 200, 200),
        ("starting", 204, 503),
        ("draining", 503, 503),
        ("failed", 503, 503),
        ("stale", 503, 503),
        ("gone", 503, 503),
        ("unreadable", 503, 503),
    ],
)
def test_probes_get_the_code_of_the_servers_word(word: str, ping: int, is_ready: int) -> None:
    view = View(ServerState(word), {})
    assert health.answer("/ping", "/check", view) == (ping, None)
    assert health.answer("/check", "/check", view) == (ping, None)
    for path in ("/ready", "/readyz"):
        assert health.answer(path, "/check", view).status == is_ready
    for path in ("/live", "/healthz", "/status"):
        assert health.answer(path, "/check", view).status == 200


@pytest.mark.parametrize("path", ["/ready", "/live", "/status", "/"])
def test_the_check_path_is_a_ping_even_where_something_else_would_be(path: str) -> None:
    assert health.answer(path, path, View(ServerState.STARTING, {})) == (204, None)


@pytest.mark.parametrize("path", ["/", "/anything", "/pingpong", "/metrics", "*"])
def test_any_other_path_says_that_we_are_alive(path: str) -> None:
    assert health.answer(path, "/ping", READY) == (200, None)


def test_status_is_the_promised_document() -> None:
    assert health.answer("/status", "/ping", READY).document == {
        "server": {"status": "ready"},
        "models": {
            "org/phi": {"status": "ready", "port": 8085, "vram_mb": 4096},
            "llama-3b": {"status": "off"},
        },
        "summary": {"ready": 1, "off": 1},
    }


@pytest.mark.parametrize("path", ["/status/org/phi", "/status/org%2Fphi"], ids=["plain", "percent-encoded"])
def test_one_model_is_found_by_its_name_in_the_path(path: str) -> None:
    assert health.answer(path, "/ping", READY).document == {
        "model": "org/phi",
        "status": "ready",
        "port": 8085,
        "vram_mb": 4096,
    }


@pytest.mark.parametrize(
    "path",
    ["/status/qwen", "/status/org%252Fphi", "/status/"],
    ids=["unknown", "encoded-twice", "no-name"],
)
def test_an_unknown_model_is_not_found(path: str) -> None:
    with pytest.raises(errors.ModelNotFound, match="GET /status"):
        health.answer(path, "/ping", READY)


# Over a connection ------------------------------------------------------------------------------


def with_server(
    path: Path, conversation: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> None:
    """Run `conversation` against a health server that reads `path`."""

    async def run() -> None:
        sockets = listen_sockets("127.0.0.1", 0)
        server = health.server_for(health.Health(StatusReader(str(path)), "/ping", None))
        await server.listen(sockets)
        reader, writer = await asyncio.open_connection(*sockets[0].getsockname())
        try:
            await asyncio.wait_for(conversation(reader, writer), DEADLINE_S)
        finally:
            writer.close()
            await server.close()

    asyncio.run(run())


def publish(path: Path, **models: ModelState) -> None:
    document = dataclasses.replace(
        SERVING,
        written_at=clock.wall(),
        models={alias: ModelStatus(state) for alias, state in models.items()},
    )
    status_file.write(str(path), to_json(document))


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def read_event(reader: asyncio.StreamReader) -> tuple[str, Any]:
    """One chunk that holds one event."""
    size = int(await reader.readline(), 16)
    chunk = await reader.readexactly(size + 2)
    name, data = chunk.decode().strip().split("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_a_stream_gives_everything_then_changes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "STREAM_POLL_S", 0.01)
    path = tmp_path / "status.json"
    publish(path, a=ModelState.OFF, b=ModelState.READY)

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /status/stream HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await read_head(reader)
        assert head.startswith(b"HTTP/1.1 200 ")
        for line in (
            b"content-type: text/event-stream\r\n",
            b"cache-control: no-cache, no-transform\r\n",
            b"x-accel-buffering: no\r\n",
        ):
            assert line in head
        name, everything = await read_event(reader)
        assert name == "full_status"
        assert everything["models"] == {"a": {"status": "off"}, "b": {"status": "ready"}}
        publish(path, a=ModelState.OFF, b=ModelState.READY)  # only the time has changed
        for state in (ModelState.STARTING, ModelState.LOADING, ModelState.READY):
            publish(path, a=state, b=ModelState.READY)
            assert await read_event(reader) == ("model_update", {"alias": "a", "status": state.value})

    with_server(path, conversation)


def test_a_quiet_stream_shows_that_it_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "STREAM_POLL_S", 0.01)
    monkeypatch.setattr(health, "HEARTBEAT_S", 0.05)
    path = tmp_path / "status.json"
    publish(path, a=ModelState.OFF)

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /status/stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await read_head(reader)
        assert [(await read_event(reader))[0] for _ in range(4)] == ["full_status"] + ["heartbeat"] * 3

    with_server(path, conversation)


def test_a_stream_asked_for_with_head_has_no_body(tmp_path: Path) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HEAD /status/stream HTTP/1.1\r\nHost: x\r\n\r\nGET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"text/event-stream" in await read_head(reader)
        assert b"application/json" in await read_head(reader), "the next answer follows at once"

    with_server(tmp_path / "status.json", conversation)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("target", ["/ping", "/status/stream", "/nowhere"])
def test_other_methods_are_refused_with_those_that_are_allowed(
    tmp_path: Path, method: str, target: str
) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        head = await read_head(reader)
        assert head.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nallow: GET, HEAD\r\n" in head

    with_server(tmp_path / "status.json", conversation)


@pytest.mark.parametrize(("target", "status"), [("/ping", 200), ("/live", 200), ("/status/stream", 503)])
def test_beyond_all_connections_a_probe_is_answered_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, status: int
) -> None:
    monkeypatch.setattr(health, "LIMITS", dataclasses.replace(health.LIMITS, connections_max=1))
    path = tmp_path / "status.json"
    publish(path, a=ModelState.OFF)

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")  # the one that there is room for
        await read_head(reader)
        later, its_writer = await asyncio.open_connection(*writer.get_extra_info("peername"))
        its_writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await read_head(later)).startswith(b"HTTP/1.1 %d " % status)
        its_writer.close()

    with_server(path, conversation)
