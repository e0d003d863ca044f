"""LlamaEngines with real processes: the stand-in llama-server behind a real reaper, logs and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from corral import errors
from corral.catalogue import Catalogue
from corral.drivers import socket_files, tasks
from corral.drivers.http_client import Address, HttpClient
from corral.drivers.http_server import Exchange
from corral.drivers.log_files import LogFiles
from corral.drivers.patrol import Patrol
from corral.drivers.reaper import Reaper
from corral.fleet import EngineDied, LlamaEngines
from corral.fleet import engines as engines_module
from corral.fleet.engines import Death, LlamaEngine
from corral.formats import http1
from corral.formats.slots import Slot
from corral.policy.placement import Kind, Placement
from corral.settings import Settings, SingleModel, children_environment, make_model
from tests.drivers.serving import serving
from tests.fleet.herd import SOMEWHERE
from tests.in_a_loop import in_a_loop, turns
from tests.models import a_model
from tests.settings.desk import Desk
from tests.stand_in_launcher import read_events, write_launcher
from tests.support import free_port
from tests.waiting import eventually, is_running


class Yard:
    """Where engines are started: a settings file, a log directory, and what the stand-in has recorded."""

    def __init__(self, root: Path, **stand_in: str) -> None:
        self.root = root
        self.journal = root / "journal"
        self.port = free_port()
        environ = {f"STAND_IN_{name.upper()}": value for name, value in stand_in.items()}
        environ |= {"STAND_IN_LOG": str(self.journal), "DATA_DIR": str(root / "data")}
        config = {
            "system": {"llama_server_path": str(write_launcher(root))},
            "server_pool": {"port_start": self.port},
        }
        self.settings: Settings = Desk(root).load(config, environ)
        self.path = Path("/models/demo.gguf")
        self.own_ports = frozenset({1, 2})
        self.client = HttpClient(Patrol())
        self.started: list[LlamaEngine] = []

    def replace(self, part: str, **values: Any) -> None:
        """Change a group of the settings."""
        changed = dataclasses.replace(getattr(self.settings, part), **values)
        self.settings = dataclasses.replace(self.settings, **{part: changed})

    def serve_one_model(self, port: int) -> None:
        """As if the environment had named it, and this as the port of its llama-server."""
        single = SingleModel(make_model("demo", self.path, gpu_layers=99), port)
        self.settings = dataclasses.replace(self.settings, single_model=single)

    @asynccontextmanager
    async def open(self, has_gpus: bool = False) -> AsyncIterator[LlamaEngines]:
        """Engines that can be started. Whatever still runs at the end is killed and reaped."""
        reaper, client = Reaper(), self.client
        logs = LogFiles(self.settings.logs.directory, "box")
        model = a_model("demo", path=self.path)
        engines = LlamaEngines(
            self.settings,
            Catalogue({"demo": model}, {}, ()),
            children_environment(self.settings),
            client,
            logs,
            reaper,
            self.own_ports,
            has_gpus=has_gpus,
        )
        reaper.start(asyncio.get_running_loop())
        try:
            yield engines
        finally:
            for engine in self.started:
                client.close(engine.address)
                if engine.alive:
                    engine.kill("the test is over")
                    await tasks.outcome(engine.until_exit())
            reaper.stop()
            logs.stop()
            await turns()

    async def start(self, engines: LlamaEngines) -> LlamaEngine:
        engine = await tasks.outcome(engines.start("demo", SOMEWHERE))
        self.started.append(engine)
        return engine

    def log_text(self) -> str:
        return (self.settings.logs.directory / "llama-demo" / "latest.txt").read_text()


async def death_of(engines: LlamaEngines) -> str:
    """How a start comes to nothing, in its own words."""
    with pytest.raises(EngineDied) as caught:
        await tasks.outcome(engines.start("demo", SOMEWHERE))
    return str(caught.value)


@in_a_loop
async def test_a_model_becomes_a_process_that_answers_and_goes_when_told(tmp_path: Path) -> None:
    yard = Yard(tmp_path, load_s="0.1")
    async with yard.open() as engines:
        engine = await yard.start(engines)
        near = yard.settings.paths.runtime / "engines" / f"{yard.port}.sock"
        assert engine.address == Address("127.0.0.1", yard.port, str(near))
        assert is_running(engine.pid)
        assert engine.alive
        await tasks.outcome(engine.until_ready())
        assert await tasks.outcome(engine.says_healthy())
        argv = read_events(yard.journal, "start")[0]["argv"]
        assert argv[argv.index("--port") + 1] == str(yard.port)
        assert argv[argv.index("--alias") + 1] == "demo"
        assert near.is_socket()
        await tasks.outcome(engine.stop())
        assert (engine.alive, engine.stopped) == (False, True)
        assert await tasks.outcome(engine.until_exit()) == "exit code 0"
        assert not is_running(engine.pid)
        assert engine.log_tail(1)[0].startswith("srv  llama_server: listening on")
        assert not near.exists()
    first, *rest = yard.log_text().splitlines()
    assert first.startswith(f"[corral] {tmp_path}/llama-server --model /models/demo.gguf")
    assert "srv    load_model: loading model" in rest[0]


@in_a_loop
async def test_a_process_says_how_many_slots_it_has_and_which_of_them_work(tmp_path: Path) -> None:
    yard = Yard(tmp_path, token_delay_s="30")
    yard.replace("herd", default_parallel=3)
    async with yard.open() as engines:
        engine = await yard.start(engines)
        await tasks.outcome(engine.until_ready())
        assert await tasks.outcome(engine.slots()) == 3
        assert await tasks.outcome(engine.busy_slots()) == ()
        head = http1.request_head(
            "POST", "/v1/chat/completions", [(b"host", b"x"), (b"content-length", b"2")]
        )
        asked = tasks.outcome(yard.client.send(engine.address, "POST", head + b"{}", silence_s=60.0))
        await eventually(
            lambda: any(event["method"] == "POST" for event in read_events(yard.journal, "request")),
            "the request has come",
        )
        assert await tasks.outcome(engine.busy_slots()) == (Slot(0, 0, 0),)
        sample = await tasks.outcome(engine.sample())
        assert (sample.slots, sample.held_up) == ((Slot(0, 0, 0),), 0)
        (connection,) = (each for each in yard.client._pools[engine.address].open if each._answering)
        connection.pause()
        assert (await tasks.outcome(engine.sample())).held_up == 1
        yard.client.close(engine.address)
        with pytest.raises(errors.UpstreamError):
            await asked


@pytest.mark.parametrize(
    ("answer", "total", "busy"),
    [
        (b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"total_slots": 4}', 4, ()),
        (b'HTTP/1.1 501 No\r\nContent-Length: 18\r\n\r\n{"total_slots": 4}', None, ()),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", None, ()),
        (b"", None, None),
    ],
    ids=["it says so", "it won't say", "it says something else", "it does not answer"],
)
@in_a_loop
async def test_a_process_that_says_nothing_of_its_slots_says_nothing(
    answer: bytes, total: int | None, busy: tuple[Slot, ...] | None
) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    engine = LlamaEngine(None, address, HttpClient(Patrol()))  # type: ignore[arg-type]
    assert await tasks.outcome(engine.slots()) == total
    assert await tasks.outcome(engine.busy_slots()) == busy
    server.close()


@in_a_loop
async def test_an_exit_while_loading_says_how_and_keeps_the_last_lines(tmp_path: Path) -> None:
    yard = Yard(tmp_path, exit_code="3", stderr_text="error: no such tensor")
    async with yard.open() as engines:
        engine = await yard.start(engines)
        with pytest.raises(EngineDied, match=r"^exit code 3$"):
            await tasks.outcome(engine.until_ready())
        assert engine.log_tail(1) == ["error: no such tensor"]
        assert (engine.alive, engine.stopped) == (False, False)


@in_a_loop
async def test_an_exit_while_loading_is_noticed_at_once_however_rarely_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corral.fleet.engines.POLL_S", 60.0)
    monkeypatch.setattr("corral.fleet.engines.POLL_SLOWEST_S", 60.0)
    yard = Yard(tmp_path, load_s="0.2", exit_code="3")
    async with yard.open() as engines:
        engine = await yard.start(engines)
        with pytest.raises(EngineDied, match=r"^exit code 3$"):
            await tasks.outcome(engine.until_ready())


@in_a_loop
async def test_a_process_that_is_killed_for_a_reason_dies_of_that_reason(tmp_path: Path) -> None:
    yard = Yard(tmp_path, never_ready="true")
    async with yard.open() as engines:
        engine = await yard.start(engines)
        ready = tasks.outcome(engine.until_ready())
        engine.kill("it hung")
        with pytest.raises(EngineDied, match=r"^it hung \(killed by SIGKILL\)$"):
            await ready
        assert not engine.stopped


@in_a_loop
async def test_a_stop_while_loading_ends_the_load(tmp_path: Path) -> None:
    yard = Yard(tmp_path, never_ready="true")
    async with yard.open() as engines:
        engine = await yard.start(engines)
        ready = tasks.outcome(engine.until_ready())
        await eventually(lambda: read_events(yard.journal, "request"), "it was asked for its health")
        await tasks.outcome(engine.stop())
        with pytest.raises(EngineDied, match="killed by SIGTERM"):
            await ready


@in_a_loop
async def test_who_does_not_listen_to_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corral.fleet.engines.STOP_PATIENCE_S", 0.1)
    yard = Yard(tmp_path, ignore_sigterm="true")
    async with yard.open() as engines:
        engine = await yard.start(engines)
        await tasks.outcome(engine.until_ready())
        await tasks.outcome(engine.stop())
        assert await tasks.outcome(engine.until_exit()) == "killed by SIGKILL"


@in_a_loop
async def test_a_stop_cuts_the_requests_first_because_a_busy_engine_waits_for_them(tmp_path: Path) -> None:
    yard = Yard(tmp_path, token_delay_s="30")
    async with yard.open() as engines:
        engine = await yard.start(engines)
        await tasks.outcome(engine.until_ready())
        body = b"{}"
        head = http1.request_head(
            "POST", "/v1/chat/completions", [(b"host", b"x"), (b"content-length", b"%d" % len(body))]
        )
        asked = tasks.outcome(yard.client.send(engine.address, "POST", head + body, silence_s=60.0))
        await eventually(
            lambda: any(event["method"] == "POST" for event in read_events(yard.journal, "request")),
            "the request has come",
        )
        stopped = tasks.outcome(engine.stop())
        with pytest.raises(errors.UpstreamError, match="was stopped"):
            await asked
        await stopped
        assert await tasks.outcome(engine.until_exit()) == "exit code 0"
    assert [event["tokens"] for event in read_events(yard.journal, "client_gone")] == [0]


@in_a_loop
async def test_an_answer_that_never_ends_costs_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines_module, "ANSWER_SILENCE_S", 0.05)
    gone = asyncio.Event()

    async def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        gone.set()
        writer.close()

    server = await asyncio.start_server(half_an_answer, "127.0.0.1", 0)
    async with server:
        address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        client = HttpClient(Patrol(0.01))
        engine = LlamaEngine(None, address, client)  # type: ignore[arg-type]
        assert not await tasks.outcome(engine.says_healthy())
        await asyncio.wait_for(gone.wait(), 5)


@in_a_loop
async def test_without_a_llama_server_the_words_say_what_to_do(tmp_path: Path) -> None:
    yard = Yard(tmp_path)
    yard.replace("paths", llama_server=None)
    async with yard.open() as engines:
        assert "run `make engine`, or set LLAMA_SERVER_PATH" in await death_of(engines)


@in_a_loop
async def test_a_program_that_cannot_be_run_dies_with_its_reason(tmp_path: Path) -> None:
    yard = Yard(tmp_path)
    broken = tmp_path / "broken"
    broken.write_text("no program")
    yard.replace("paths", llama_server=broken)
    async with yard.open() as engines:
        engine = await yard.start(engines)
        with pytest.raises(EngineDied, match="exit code 127"):
            await tasks.outcome(engine.until_ready())
        assert str(broken) in engine.log_tail(1)[0]


@in_a_loop
async def test_no_process_to_be_had_is_a_death_and_its_port_stays_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_more: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    yard = Yard(tmp_path)
    async with yard.open() as engines:
        with monkeypatch.context() as patch:
            patch.setattr("corral.drivers.llama_process.spawn", refuse)
            assert "Resource temporarily unavailable" in await death_of(engines)
        assert (await yard.start(engines)).address.port == yard.port


@in_a_loop
async def test_ports_that_are_taken_are_passed_over_and_come_back(tmp_path: Path) -> None:
    yard = Yard(tmp_path)
    async with yard.open() as engines:
        with socket.create_server(("127.0.0.1", yard.port)):
            first = await yard.start(engines)
        second, third = await yard.start(engines), await yard.start(engines)
        ports = [engine.address.port for engine in (first, second, third)]
        assert ports[0] > yard.port
        assert ports[1] == yard.port
        assert ports[2] > ports[0]
        second.kill("over")
        await tasks.outcome(second.until_exit())
        await turns()
        assert (await yard.start(engines)).address.port == yard.port


@in_a_loop
async def test_one_that_cannot_listen_at_a_socket_dies_of_it_once_and_the_next_has_its_port_alone(
    tmp_path: Path,
) -> None:
    yard = Yard(tmp_path, one_host="true")
    async with yard.open() as engines:
        engine = await yard.start(engines)
        with pytest.raises(EngineDied):
            await tasks.outcome(engine.until_ready())
        assert engine.died_of() is Death.PORT  # and so another is started at once
        engine = await yard.start(engines)
        assert engine.address == Address("127.0.0.1", yard.port)
        await tasks.outcome(engine.until_ready())


@in_a_loop
async def test_without_a_safe_place_for_sockets_it_has_its_port_alone_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    yard = Yard(tmp_path)
    yard.replace("paths", runtime=tmp_path / ("x" * 100))
    with caplog.at_level("INFO", "corral.fleet"):
        async with yard.open() as engines:
            for _ in range(2):
                assert (await yard.start(engines)).address.socket_path == ""
    said = [record.getMessage() for record in caplog.records if "get no socket" in record.getMessage()]
    assert len(said) == 1
    assert "too long" in said[0]


@in_a_loop
async def test_it_is_asked_at_its_socket_and_at_its_port_where_that_has_gone(tmp_path: Path) -> None:
    yard = Yard(tmp_path)
    async with yard.open() as engines:
        engine = await yard.start(engines)
        await tasks.outcome(engine.until_ready())
        with socket.socket(socket.AF_INET) as probe:  # nobody listens there
            probe.bind(("127.0.0.1", 0))
            elsewhere = engine.address._replace(port=probe.getsockname()[1])
            near_alone = LlamaEngine(None, elsewhere, yard.client)  # type: ignore[arg-type]
            assert await tasks.outcome(near_alone.says_healthy())
            yard.client.close(elsewhere)
        socket_files.remove(engine.address.socket_path)
        yard.client.close(engine.address)
        assert await tasks.outcome(engine.says_healthy())


@in_a_loop
async def test_the_one_models_port_is_passed_over_too_if_it_is_taken(tmp_path: Path) -> None:
    yard = Yard(tmp_path)
    yard.serve_one_model(yard.port)
    yard.own_ports = frozenset({yard.port})  # as on a platform that wants the gateway on 8080
    async with yard.open() as engines:
        assert (await yard.start(engines)).address.port > yard.port


@pytest.mark.parametrize(
    ("single", "remedy"), [(False, "server_pool.port_start"), (True, "PORT_BACKEND")], ids=["herd", "single"]
)
@in_a_loop
async def test_no_free_port_is_said_with_the_range_and_the_remedy(
    tmp_path: Path, single: bool, remedy: str
) -> None:
    yard = Yard(tmp_path)
    if single:
        yard.serve_one_model(65535)
    else:
        yard.replace("herd", port_start=65535)
    with socket.create_server(("127.0.0.1", 65535)):
        async with yard.open() as engines:
            assert await death_of(engines) == (
                f"no port is free from 65535 to 65535: free one, or set {remedy}"
            )


@in_a_loop
async def test_a_file_name_that_is_no_text_does_not_stand_in_the_way(tmp_path: Path) -> None:
    yard = Yard(tmp_path)
    yard.path = Path("/models/\udcff two.gguf")
    async with yard.open() as engines:
        await yard.start(engines)
    # The line can be pasted into a shell as it is, but for what no text can say.
    assert "--model '/models/? two.gguf' --alias demo" in yard.log_text().splitlines()[0]


# Loads that stand still, ports that are lost, GPUs that are given ---------------------------------


@in_a_loop
async def test_a_load_in_which_nothing_grows_any_more_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_module, "LOAD_STALL_S", 0.5)
    yard = Yard(tmp_path, never_ready="1")
    async with yard.open() as engines:
        engine = await yard.start(engines)
        with pytest.raises(EngineDied, match="its load stood still for"):
            await tasks.outcome(engine.until_ready())
        assert engine.died_of() is Death.OTHER  # killed by us, and not for want of memory


@pytest.mark.parametrize(
    ("words", "death"),
    [
        ("start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8085", Death.PORT),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", Death.MEMORY),
        ("error: no such tensor", Death.OTHER),
    ],
)
@in_a_loop
async def test_what_a_load_died_of_is_read_off_its_last_words(
    tmp_path: Path, words: str, death: Death
) -> None:
    yard = Yard(tmp_path, exit_code="1", stderr_text=words)
    async with yard.open() as engines:
        engine = await yard.start(engines)
        with pytest.raises(EngineDied):
            await tasks.outcome(engine.until_ready())
        assert engine.died_of() is death


@in_a_loop
async def test_a_process_sees_the_gpus_that_it_was_given_and_no_others(tmp_path: Path) -> None:
    yard = Yard(tmp_path)
    two = Placement(Kind.SPREAD, 33, ("GPU-b", "GPU-c"), (1, 1), 1, (3, 1))
    for placement, visible, layers in ((two, "GPU-b,GPU-c", "33"), (SOMEWHERE, "", "0")):
        async with yard.open(has_gpus=True) as engines:
            engine = await tasks.outcome(engines.start("demo", placement))
            yard.started.append(engine)
            await tasks.outcome(engine.until_ready())
        start = [event for event in read_events(yard.journal) if event["event"] == "start"][-1]
        assert start["env"]["CUDA_VISIBLE_DEVICES"] == visible
        assert start["argv"][start["argv"].index("-ngl") + 1] == layers
        assert ("--tensor-split" in start["argv"]) is bool(placement.tensor_split)


@in_a_loop
async def test_a_stranger_who_has_taken_the_port_in_between_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def healthy(exchange: Exchange) -> None:
        exchange.respond(200, [], b'{"status":"ok"}')

    yard = Yard(tmp_path)
    async with serving(healthy) as (_, port), yard.open() as engines:
        # As if the stranger had come a moment after the look whether the port is free.
        monkeypatch.setattr("corral.fleet.engines.lowest_free_port", lambda *_range: port)
        engine = await yard.start(engines)
        with pytest.raises(EngineDied):
            await tasks.outcome(engine.until_ready())
        assert not engine.alive
