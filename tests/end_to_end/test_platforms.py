"""Each platform, played against the image's own entrypoint: its probes, its ports, its signals, its clock.

What a platform promises to do is written above its tests. A platform's own time limits are the tests'.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import StartCorral
from tests.end_to_end.talk import (
    CHAT,
    DONE,
    chat,
    content,
    events,
    is_in_state,
    metric,
    model_status,
    open_chat,
    request,
)
from tests.support import (
    KEY,
    ROOT,
    Answer,
    Corral,
    ask,
    free_port,
    listens,
    make_certificate,
    open_request,
    ping,
)
from tests.waiting import wait_until

ENTRYPOINT = ROOT / "entrypoint.sh"
SLOW_LOAD_S = 1.5
SLOW = {
    "system": {"preload_models": ["demo"]},
    "models": {"demo": {"model_path": "demo.gguf", "flags": ["--stand-in", f'{{"load_s": {SLOW_LOAD_S}}}']}},
}
# A second model whose answers never end.
ENDLESS = {
    "models": {
        "demo": {"model_path": "demo.gguf"},
        "endless": {
            "model_path": "demo.gguf",
            "flags": ["--stand-in", '{"tokens": 100000, "token_delay_s": 0.05}'],
        },
    }
}
# An engine that does not end when it is told to, as one that hangs in a driver, with an answer under way.
STUBBORN = {
    "models": {
        "demo": {
            "model_path": "demo.gguf",
            "flags": ["--stand-in", '{"tokens": 100000, "token_delay_s": 0.05, "ignore_sigterm": true}'],
        }
    }
}
READY_LINE = "READY after "
# A path that only the operator knows.
OWN_PATH = "/probes/one"

Start = Callable[..., Corral]


@pytest.fixture
def start_image(start_corral: StartCorral, stand_in: Path) -> Start:
    """Starts what the image starts, with the stand-in engine; up or not, as `until_up` says."""

    def start(**options: Any) -> Corral:
        return start_corral(**{"engine": stand_in, "program": ENTRYPOINT} | options)

    return start


def codes_until_200(url: str, path: str = "/ping") -> list[int]:
    """Every different answer that a probe gets, in order, from the first until all is well."""
    seen: list[int] = []

    def healthy() -> bool:
        if not listens(url):
            return False
        status = ask(url + path).status
        if seen[-1:] != [status]:
            seen.append(status)
        return status == 200

    wait_until(healthy, f"{path} answers 200")
    return seen


# The entrypoint itself ----------------------------------------------------------------------------


def test_the_process_that_was_started_becomes_the_gateway_and_its_exit_code_is_true(
    start_image: Start,
) -> None:
    corral = start_image()
    command = Path(f"/proc/{corral.pid}/cmdline").read_bytes().split(b"\0")
    assert b"scripts/gateway.py" in command, "a shell stands between the signals and the gateway"
    newest = corral.data / "logs" / "_boot" / "latest.txt"
    assert newest.is_symlink()
    wait_until(lambda: READY_LINE in newest.read_text(), "the log's own thread has written the line")
    assert corral.stop() == 0


@pytest.mark.parametrize("word", ["serve", "train", "start"])
def test_a_word_that_a_platform_adds_is_passed_over(start_image: Start, word: str) -> None:
    assert content(start_image(arguments=[word]).ask(CHAT, chat()))


def test_the_one_model_must_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "models" / "gone.gguf"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "DATA_DIR": str(tmp_path)}
    environment |= {"GATEWAY_PORT": str(free_port()), "PORT_HEALTH": str(free_port())}
    ran = subprocess.run(
        [str(ENTRYPOINT)],
        env=environment | {"MODEL_PATH": str(missing), "RUNTIME_DIR": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ran.returncode == 1
    assert f"FATAL: Model file not found: {missing}\n" in ran.stderr


# RunPod: 204 while it initializes and then 200, on PORT_HEALTH or on PORT if they are the same; the
# platform's own key is in Authorization, so ours comes in X-API-Key.


def test_runpod_on_two_ports(start_image: Start) -> None:
    corral = start_image(config=SLOW, until_up=False)
    assert codes_until_200(corral.health_url) == [204, 200]


def test_runpod_on_one_port(start_image: Start) -> None:
    port = str(free_port())
    one = {"GATEWAY_PORT": "", "PORT": port, "PORT_HEALTH": port}
    corral = start_image(config=SLOW, environment=one, until_up=False)
    assert codes_until_200(corral.url) == [204, 200]


def test_runpods_own_key_is_none_of_ours(start_image: Start) -> None:
    corral = start_image()
    theirs = {"Authorization": "Bearer rpa_theplatformsownkey0123456789"}
    assert ask(corral.url + CHAT, chat(), headers=theirs).status == 401
    assert content(ask(corral.url + CHAT, chat(), headers=theirs | {"X-API-Key": KEY}))


# Cloud Run: says the port in PORT, and allows 10 s from SIGTERM to the end. What runs meanwhile should be
# through by then, or be cut by us and not by it.


def test_cloud_run(start_image: Start) -> None:
    port = str(free_port())
    recipe = (ROOT / "deploy" / "platforms" / "cloud-run.yaml").read_text()
    drain = re.search(r'name: DRAIN_TIMEOUT_S\n +value: "(\d+)"', recipe)
    assert drain is not None
    own = {"GATEWAY_PORT": "", "PORT": port, "DRAIN_TIMEOUT_S": drain[1]}
    corral = start_image(environment=own, config=STUBBORN)
    assert corral.url.endswith(port)
    assert seconds_to_stop(corral, signal.SIGTERM) < 10


def seconds_to_stop(corral: Corral, number: signal.Signals) -> float:
    """From a platform's signal to the end, at its slowest: an answer without an end, a stubborn engine."""
    with open_chat(corral, stream=True) as stream:
        assert stream.readline().startswith(b"data: ")
        began = time.monotonic()
        assert corral.stop(number) == 0
        return time.monotonic() - began


# SageMaker: runs the image with the word `serve`; GET /ping on 8080 is answered 200 within 2 s, else it is
# no healthy instance; POST /invocations is the only other path. Unknown headers do not arrive. 8080 is also
# where the llama-server of a single model would listen if nobody said otherwise.


def test_sagemaker(start_image: Start, demo_files: Path) -> None:
    port = str(free_port())
    own = {"AUTH_ENABLED": "false", "GATEWAY_PORT": port, "PORT_BACKEND": port}
    own["MODEL_PATH"] = str(demo_files / "demo.gguf")
    began = time.monotonic()
    corral = start_image(arguments=["serve"], environment=own, until_up=False)
    assert codes_until_200(corral.url)[-1] == 200
    assert time.monotonic() - began < 2
    assert content(ask(f"{corral.url}/invocations", chat()))
    whole = {"messages": chat()["messages"], "model": "demo", "stream": True}
    stream = ask(f"{corral.url}/invocations", whole)
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert events(stream.body)[-1] == DONE


# Knative and KServe: a readiness probe through their proxy; 503 until it is ready and 200 from then on, and
# 503 again when it stops, while what runs is let finish.


def test_knative(start_image: Start) -> None:
    corral = start_image(config=SLOW, until_up=False)
    assert codes_until_200(corral.url, "/readyz") == [503, 200]
    steady = {"tokens": 20, "token_delay_s": 0.05}
    with open_chat(corral, stream=True, stand_in=steady) as stream:
        assert stream.readline().startswith(b"data: ")
        corral.tell(signal.SIGTERM)
        wait_until(lambda: ask(f"{corral.url}/readyz").status == 503, "no new ones are sent to it")
        assert stream.read().endswith(b"data: [DONE]\n\n")


# Azure Container Apps: start-up, readiness and liveness take 200 to 399. A 204 from /ping is one of these, so
# readiness asks /ready. Each probe has a port of its own.


def test_azure(start_image: Start) -> None:
    corral = start_image(config=SLOW, until_up=False)
    wait_until(lambda: listens(corral.url) and listens(corral.health_url), "both ports listen")
    assert 200 <= ask(f"{corral.url}/live").status <= 399
    assert ask(f"{corral.health_url}/ready").status == 503
    assert codes_until_200(corral.health_url, "/ready")[-1] == 200


# Hugging Face endpoints: a route of one's own choice every second, on the serving port; 200 only when ready.
# The model lies in /repository: tests/test_deploy.py finds it there.


def test_hugging_face(start_image: Start) -> None:
    own = {"HEALTH_CHECK_PATH": OWN_PATH}
    corral = start_image(config=SLOW, environment=own, until_up=False)
    assert codes_until_200(corral.url, "/ready") == [503, 200]
    assert ask(corral.url + OWN_PATH).status == 200


# Fly: stops with SIGINT, and kills after 5 s unless told otherwise.


def test_fly(start_image: Start) -> None:
    corral = start_image(environment={"DRAIN_TIMEOUT_S": "2"}, config=STUBBORN)
    assert seconds_to_stop(corral, signal.SIGINT) < 5


# Koyeb: sleeps when no connection is open, so idle ones have to go; probes by TCP as well.


def test_koyeb(start_image: Start) -> None:
    corral = start_image(environment={"KEEPALIVE_TIMEOUT": "0.3"})
    for url in (corral.url, corral.health_url):
        address = urlsplit(url)
        socket.create_connection((address.hostname, address.port), 5).close()
    with open_request(f"{corral.url}/ping") as answer:
        answer.read()
        wait_until(lambda: metric(corral, "router_open_connections") == 1, "only the scrape's own is open")


# Salad: reaches the container by IPv6 alone.


def test_salad(start_image: Start) -> None:
    corral = start_image()
    for url in (corral.url, corral.health_url):
        assert ping(url.replace("127.0.0.1", "[::1]")) == 200


# Vast: reads a log until a line says that the server is ready, and that line must not change.


@pytest.mark.parametrize("form", ["text", "json"])
def test_vast(start_image: Start, form: str) -> None:
    corral = start_image(config=SLOW, environment={"LOG_FORMAT": form}, until_up=False)
    wait_until(lambda: listens(corral.url), "it listens")
    assert READY_LINE not in corral.log_text
    wait_until(lambda: READY_LINE in corral.log_text, "the line is there")
    assert ping(corral.url) == 200
    assert corral.stop() == 0
    assert corral.log_text.count(READY_LINE) == 1


# Scale to zero -----------------------------------------------------------------------------------

BOTH_PORTS = ("/ping", OWN_PATH, "/ready", "/readyz", "/live", "/healthz", "/health", "/metrics", "/")
HEALTH_PORT = (*BOTH_PORTS, "/status", "/status/demo", "/whatever/else")
IDLE_S = 1.0
# An hour in which a platform probes each port once a second, in the time that so many probes take.
PROBES_PER_HOUR = 3600


def probe(url: str, paths: Sequence[str], gone: threading.Event) -> None:
    """An hour of probes on one connection, of every path in turn, and more until the model is gone."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
    for number in itertools.count():
        if number >= PROBES_PER_HOUR and gone.is_set():
            break
        connection.request("GET", paths[number % len(paths)])
        with connection.getresponse() as answer:
            answer.read()
            assert answer.status == 200
    connection.close()


def test_an_hour_of_probes_keeps_nothing_awake_and_a_request_does(start_image: Start) -> None:
    own = {"HEALTH_CHECK_PATH": OWN_PATH}
    corral = start_image(environment=own, config={"system": {"idle_timeout_sec": IDLE_S}})
    assert content(corral.ask(CHAT, chat()))
    active = metric(corral, "router_last_activity_timestamp_seconds")
    gone = threading.Event()
    probers = [
        threading.Thread(target=probe, args=(url, paths, gone))
        for url, paths in ((corral.url, BOTH_PORTS), (corral.health_url, HEALTH_PORT))
    ]
    for prober in probers:
        prober.start()
    try:
        wait_until(lambda: is_in_state(corral, "off"), "the model is unloaded under fire", 10 * IDLE_S)
    finally:
        gone.set()
    for prober in probers:
        prober.join()
    assert is_in_state(corral, "off")
    assert metric(corral, "router_last_activity_timestamp_seconds") == active
    assert metric(corral, "router_requests_total") == 1
    assert content(corral.ask(CHAT, chat()))
    assert metric(corral, "router_last_activity_timestamp_seconds") > active
    assert model_status(corral)["status"] == "ready"


def test_probes_do_not_put_off_the_end_and_a_request_does(start_image: Start) -> None:
    corral = start_image(environment={"IDLE_EXIT_S": "2.5"})
    began = time.monotonic()
    wait_until(lambda: probed(corral) and time.monotonic() - began > 1, "a second of probes")
    assert content(corral.ask(CHAT, chat()))
    asked = time.monotonic()
    wait_until(lambda: probed(corral) or corral.exit_code is not None, "one more")
    wait_until(lambda: not probed(corral), "it goes although it is probed")
    assert corral.wait_until_ended() == 0
    assert time.monotonic() - asked >= 2.5


def probed(corral: Corral) -> bool:
    try:
        return ping(corral.url) == 200 and ping(corral.health_url) == 200
    except OSError:
        return False


# TLS without a proxy -----------------------------------------------------------------------------


class Secure:
    """An instance that speaks HTTPS, and a client that trusts its certificate of the moment and no other."""

    def __init__(self, folder: Path, start: Start) -> None:
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"
        self.renew()
        files = {"TLS_CERT_FILE": str(self.cert), "TLS_KEY_FILE": str(self.key)}
        self.corral = start(environment=files, config=ENDLESS, until_up=False)
        wait_until(
            lambda: ping(self.corral.health_url) == 200, "the health port, which stays plain, says 200"
        )

    def renew(self) -> None:
        make_certificate(self.cert, self.key)

    @property
    def access_log(self) -> str:
        file = self.corral.data / "logs" / "api_access.log"
        return file.read_text() if file.exists() else ""

    def connect(self) -> ssl.SSLSocket:
        trust = ssl.create_default_context(cafile=str(self.cert))
        plain = socket.create_connection(("localhost", urlsplit(self.corral.url).port), 20)
        return trust.wrap_socket(plain, server_hostname="localhost")

    @contextmanager
    def open(self, document: object) -> Iterator[http.client.HTTPResponse]:
        """Read an answer as it comes. Leaving early closes the connection."""
        trust = ssl.create_default_context(cafile=str(self.cert))
        port = urlsplit(self.corral.url).port
        connection = http.client.HTTPSConnection("localhost", port, context=trust, timeout=20)
        try:
            connection.request("POST", CHAT, json.dumps(document), {"Authorization": f"Bearer {KEY}"})
            with connection.getresponse() as answer:
                yield answer
        finally:
            connection.close()

    def ask(self, document: object) -> Answer:
        with self.open(document) as answer:
            return Answer(answer.status, answer.headers, answer.read())

    def is_trusted(self) -> bool:
        try:
            return self.ask(chat()).status == 200
        except ssl.SSLCertVerificationError:
            return False


def test_https_with_a_certificate_that_is_renewed(tmp_path: Path, start_image: Start) -> None:
    secure = Secure(tmp_path, start_image)
    corral = secure.corral
    assert content(secure.ask(chat()))
    assert events(secure.ask(chat(stream=True)).body)[-1] == DONE
    assert f"https://0.0.0.0:{urlsplit(corral.url).port}" in corral.log_text
    assert ping(corral.url) is None, "the port speaks HTTPS only"
    assert not re.search("WARNING|ERROR", corral.log_text), "and whoever does not is no news"
    with secure.open(chat("endless", stream=True)) as stream:
        secure.renew()
        wait_until(secure.is_trusted, "the new certificate is in force")
        for _ in range(100):
            assert stream.readline(), "the connection that was open before goes on"
    secure.key.write_text("no key")
    wait_until(lambda: "stays in force" in corral.log_text, "it is told why nothing changes")
    assert secure.is_trusted()


def test_encrypted_requests_in_a_row_are_answered_in_order(tmp_path: Path, start_image: Start) -> None:
    secure = Secure(tmp_path, start_image)
    with secure.connect() as client, client.makefile("rb") as answers:
        client.sendall(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n" * 40)
        client.sendall(b"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        statuses = re.findall(rb"HTTP/1.1 (\d+) ", answers.read())
    assert statuses == [b"200"] * 40 + [b"404"]


def test_a_goodbye_before_the_answer_means_gone(tmp_path: Path, start_image: Start) -> None:
    """TLS knows no half-closed connection that is of use: the answer could not be sent any more."""
    secure = Secure(tmp_path, start_image)
    with secure.connect() as client:
        client.sendall(request(secure.corral, chat("endless")))
        client.unwrap()
    wait_until(lambda: "client_gone" in secure.access_log, "it is noticed")


def test_a_client_that_leaves_an_encrypted_stream_is_noticed(tmp_path: Path, start_image: Start) -> None:
    secure = Secure(tmp_path, start_image)
    with secure.open(chat("endless", stream=True)) as stream:
        assert stream.readline().startswith(b"data: ")
    wait_until(lambda: "client_gone" in secure.access_log, "it is noticed")
