"""The health server as a real process: started, asked over HTTP, and told the truth by its file alone."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corral.drivers import clock, process_facts, status_file
from corral.formats.status import ModelState, ModelStatus, Phase, StatusDocument, to_json
from tests.support import free_port
from tests.waiting import wait_until

PROGRAM = Path(__file__).resolve().parent.parent / "scripts" / "health_server.py"
DEADLINE_S = 20.0
DOCUMENT = StatusDocument(
    instance="box-1",
    pid=os.getpid(),
    pid_started=process_facts.start_ticks(os.getpid()),
    written_at=0.0,
    phase=Phase.SERVING,
    preload_settled=True,
    single_model_failed=False,
    models={"m": ModelStatus(ModelState.READY, port=8085)},
)


class Server:
    """A running health server and the file that it reads."""

    def __init__(self, process: subprocess.Popen[Any], port: int, path: Path) -> None:
        self.process = process
        self.port = port
        self.path = path

    def ask(self, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(host, self.port, timeout=DEADLINE_S)
        with contextlib.closing(connection):
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def codes(self, *paths: str) -> list[int]:
        return [self.ask(path)[0] for path in paths]

    def publish(self, age_s: float = 0.0, **changes: Any) -> None:
        document = dataclasses.replace(DOCUMENT, written_at=clock.wall() - age_s, **changes)
        status_file.write(str(self.path), to_json(document))


@contextlib.contextmanager
def start(path: Path, *more: str) -> Iterator[Server]:
    argv = [sys.executable, "-I", str(PROGRAM), "--port", "0", "--status-file", str(path), "--path", "/check"]
    with subprocess.Popen([*argv, *more], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            yield Server(process, int(line.rpartition(" ")[2]), path)
        finally:
            process.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with start(tmp_path / "status.json") as running:
        yield running


def test_it_follows_a_gateway_through_its_life(server: Server) -> None:
    probes = ("/ping", "/check", "/ready", "/readyz")
    assert server.codes(*probes) == [200] * 4, "no file: it runs alone"
    server.publish(phase=Phase.STARTING, preload_settled=False)
    assert server.codes(*probes) == [204, 204, 503, 503]
    server.publish(preload_settled=False)
    assert server.codes(*probes) == [204, 204, 503, 503]
    server.publish()
    assert server.codes(*probes) == [200] * 4
    server.publish(single_model_failed=True)
    assert server.codes(*probes) == [503] * 4
    server.publish(phase=Phase.DRAINING)
    assert server.codes(*probes) == [503] * 4
    assert server.codes("/live", "/healthz", "/", "/whatever") == [200] * 4


def test_a_stale_file_takes_the_machine_out(server: Server) -> None:
    server.publish(age_s=14.0)
    assert server.codes("/ping", "/ready") == [200, 200]
    server.publish(age_s=16.0)
    assert server.codes("/ping", "/ready") == [503, 503]
    assert server.codes("/live", "/status") == [200, 200]
    assert json.loads(server.ask("/status")[1])["server"] == {"status": "stale"}


def test_a_dead_writer_takes_the_machine_out_and_the_server_stays(server: Server) -> None:
    with subprocess.Popen(["sleep", "60"]) as writer:
        server.publish(pid=writer.pid, pid_started=process_facts.start_ticks(writer.pid))
        assert server.codes("/ping", "/ready") == [200, 200]
        writer.kill()
        # Dead is dead: also while its parent has not yet asked how it ended.
        os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)
        assert server.codes("/ping", "/ready") == [503, 503]
    assert server.codes("/ping", "/ready", "/live") == [503, 503, 200]
    assert json.loads(server.ask("/status")[1])["server"] == {"status": "gone"}


def test_a_pid_that_was_given_to_another_process_is_no_writer(server: Server) -> None:
    assert DOCUMENT.pid_started is not None
    server.publish(pid_started=DOCUMENT.pid_started + 1)
    assert server.codes("/ping") == [503]


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff\x00", b"[]"], ids=["empty", "cut", "binary", "list"])
def test_garbage_takes_the_machine_out_and_breaks_nothing(server: Server, payload: bytes) -> None:
    status_file.write(str(server.path), payload)
    assert server.codes("/ping", "/ready", "/live", "/status") == [503, 503, 200, 200]
    server.publish()
    assert server.codes("/ping") == [200]


def test_status_says_what_the_file_says(server: Server) -> None:
    server.publish()
    code, payload = server.ask("/status")
    assert code == 200
    assert json.loads(payload) == {
        "server": {"status": "ready"},
        "models": {"m": {"status": "ready", "port": 8085}},
        "summary": {"ready": 1},
    }
    assert json.loads(server.ask("/status/m")[1]) == {"model": "m", "status": "ready", "port": 8085}
    code, payload = server.ask("/status/nobody")
    assert (code, json.loads(payload)["error"]["code"]) == (404, "model_not_found")


def test_head_is_answered_as_get_but_without_a_body(server: Server) -> None:
    assert server.ask("/status", "HEAD") == (200, b"")
    assert server.ask("/ping", "HEAD") == (200, b"")
    assert server.ask("/ping", "POST")[0] == 405


def test_it_is_reached_over_both_families(server: Server) -> None:
    assert server.ask("/live", host="127.0.0.1")[0] == 200
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        assert server.ask("/live", host="::1")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint"])
def test_a_signal_ends_it_with_success_even_while_a_stream_is_open(
    server: Server, number: signal.Signals
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as stream:
        stream.sendall(b"GET /status/stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stream.recv(1000).startswith(b"HTTP/1.1 200 ")
        server.process.send_signal(number)
        assert server.process.wait(DEADLINE_S) == 0


@pytest.fixture
def gateway() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody who may be called the gateway, and be killed."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_it_goes_when_its_gateway_goes(tmp_path: Path, gateway: subprocess.Popen[bytes]) -> None:
    port = free_port()
    argv = [sys.executable, str(PROGRAM), "--port", str(port), "--status-file", str(tmp_path / "s")]
    with subprocess.Popen([*argv, "--path", "/ping", "--gateway-pid", str(gateway.pid)]) as process:
        server = Server(process, port, tmp_path / "s")

        def code() -> int | None:
            with contextlib.suppress(ConnectionRefusedError):
                return server.codes("/ping")[0]
            return None

        try:
            wait_until(lambda: code() == 503, "its gateway has not written, and would have before")
            server.publish()
            assert code() == 503, "somebody else has"
            server.publish(pid=gateway.pid, pid_started=process_facts.start_ticks(gateway.pid))
            assert code() == 200
            assert process.poll() is None
            gateway.kill()
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()


def test_a_taken_port_ends_it_with_one_line_that_says_so(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        argv = ["--port", str(port), "--status-file", str(tmp_path / "s"), "--path", "/ping"]
        ended = subprocess.run(
            [sys.executable, str(PROGRAM), *argv], capture_output=True, text=True, timeout=DEADLINE_S
        )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert f"port {port}: the port is taken" in ended.stderr


def test_started_by_a_person_it_asks_the_settings(tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "DATA_DIR": str(tmp_path),
        "RUNTIME_DIR": str(tmp_path / "run"),
        "PORT_HEALTH": "0",
        "HEALTH_CHECK_PATH": "/my-check",
    }
    with subprocess.Popen(
        [sys.executable, str(PROGRAM)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        running = Server(process, int(line.rpartition(" ")[2]), tmp_path / "run" / "status.json")
        running.publish(phase=Phase.STARTING)
        assert running.codes("/ping", "/my-check", "/check") == [204, 204, 200]
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


def test_what_the_gateway_starts_reads_no_settings_and_knows_no_policy() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); import health_server; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    rooms = {name.split(".")[1] for name in loaded.stdout.split() if name.startswith("corral.")}
    assert rooms == {"health", "formats", "drivers", "errors"}


def test_its_first_answer_comes_within_100_ms_of_its_start(tmp_path: Path) -> None:
    """At least one start of ten, on a machine that has time; on a busy one Python itself is the measure."""

    def seconds_of_python() -> float:
        started = time.monotonic()
        subprocess.run([sys.executable, "-I", "-c", "import asyncio"], check=True)
        return time.monotonic() - started

    def seconds_to_first_answer() -> float:
        started = time.monotonic()
        with start(tmp_path / "status.json") as running:
            assert running.codes("/ping") == [200]
            return time.monotonic() - started

    pairs = [(seconds_to_first_answer(), seconds_of_python()) for _ in range(10)]
    ours_s, python_s = (min(times) for times in zip(*pairs, strict=True))
    assert ours_s < max(0.1, 2 * python_s)
