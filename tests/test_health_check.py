"""The health check as a container engine runs it: a process with an exit code, in whatever directory."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import StartCorral
from tests.support import ROOT, make_certificate
from tests.waiting import wait_until

# What the image allows it in all.
TIMEOUT_S = 3.0
TRIES = 3


def check(place: Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program of an installation at `place`, from elsewhere."""
    scripts = place / "scripts"
    if not scripts.exists():
        scripts.symlink_to(ROOT / "scripts")
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(place)}
    return subprocess.run(
        [sys.executable, str(scripts / "health_check.py")],
        cwd="/",
        env=bare | dict(environment or {}),
        capture_output=True,
        text=True,
        timeout=20,
    )


def says_healthy(place: Path, environment: Mapping[str, str]) -> bool:
    return check(place, environment).returncode == 0


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


def test_it_tells_health_from_its_absence(start_corral: StartCorral, tmp_path: Path, free_port: int) -> None:
    corral = start_corral()
    healthy = check(tmp_path, {"PORT_HEALTH": port_of(corral.health_url)})
    assert (healthy.returncode, healthy.stdout, healthy.stderr) == (0, "", "")
    nobody = check(tmp_path, {"PORT_HEALTH": str(free_port)})
    assert nobody.returncode == 1
    assert nobody.stderr.startswith("health check: ")
    assert nobody.stderr.count("\n") == 1


def test_it_finds_what_the_entrypoints_gateway_finds_in_files_wherever_it_is_called(
    start_corral: StartCorral, tmp_path: Path
) -> None:
    only = "127.0.0.3"
    corral = start_corral(environment={"GATEWAY_HOST": only}, until_up=False)
    (tmp_path / ".env").write_text(f"PORT_HEALTH={port_of(corral.health_url)}\n")
    (tmp_path / "config.json").write_text(f'{{"api": {{"host": "{only}"}}}}')
    wait_until(lambda: says_healthy(tmp_path, {}), "the check says healthy", 20.0)
    (tmp_path / ".env").unlink()
    assert not says_healthy(tmp_path, {})


def test_it_goes_to_the_address_that_the_gateway_listens_on(
    start_corral: StartCorral, tmp_path: Path
) -> None:
    only = {"GATEWAY_HOST": "127.0.0.2"}
    corral = start_corral(environment=only, until_up=False)
    ports = {"PORT_HEALTH": port_of(corral.health_url)}
    wait_until(lambda: says_healthy(tmp_path, only | ports), "the check says healthy", 20.0)
    assert not says_healthy(tmp_path, ports), "127.0.0.1 is not listened on"


def test_it_speaks_https_where_the_gateways_port_is_the_only_one(
    start_corral: StartCorral, free_port: int, tmp_path: Path
) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    make_certificate(cert, key)
    own = {"GATEWAY_PORT": str(free_port), "PORT_HEALTH": str(free_port)}
    own |= {"TLS_CERT_FILE": str(cert), "TLS_KEY_FILE": str(key)}
    start_corral(environment=own, until_up=False)
    wait_until(lambda: says_healthy(tmp_path, own), "the check says healthy", 20.0)


@contextlib.contextmanager
def somebody_who_says(answer: bytes) -> Iterator[str]:
    """The port of somebody who answers so, whatever is asked, and is silent after that until the end."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _address = listener.accept()
            with client:
                client.recv(65_536)
                client.sendall(answer)
                over.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield str(listener.getsockname()[1])
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 0, id="up"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", 0, id="models-load"),
        pytest.param(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", 1, id="stopping"),
        pytest.param(b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n", 1, id="a-stranger"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", 1, id="no-http"),
    ],
)
def test_what_an_answer_means(tmp_path: Path, answer: bytes, code: int) -> None:
    with somebody_who_says(answer) as port:
        ran = check(tmp_path, {"PORT_HEALTH": port})
    assert ran.returncode == code
    assert ran.stderr.count("\n") == code, ran.stderr


def test_silence_is_no_health_and_is_told_in_the_time_that_the_image_allows(tmp_path: Path) -> None:
    """At least once in some tries: on a busy machine Python's own start may take as long."""

    def seconds_to_give_up() -> float:
        began = time.monotonic()
        with somebody_who_says(b"") as port:
            ran = check(tmp_path, {"PORT_HEALTH": port})
        assert (ran.returncode, ran.stderr) == (1, "health check: timed out\n")
        return time.monotonic() - began

    assert any(seconds_to_give_up() < TIMEOUT_S for _ in range(TRIES))


def test_settings_that_nothing_can_run_with_are_no_health(tmp_path: Path) -> None:
    ran = check(tmp_path, {"PORT_HEALTH": "many"})
    assert ran.returncode == 1
    assert "PORT_HEALTH" in ran.stderr
    assert ran.stderr.count("\n") == 1
