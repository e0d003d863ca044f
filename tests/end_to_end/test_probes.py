"""Probes: the same truth on both ports, and a machine that they neither wake nor keep awake."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from corral.handlers import routes
from tests.conftest import StartCorral
from tests.end_to_end.talk import CHAT, authorization, chat, is_in_state, metric
from tests.support import Corral, ask, free_port, listens, open_request
from tests.waiting import wait_until

OWN_PATH = "/my/health"
STATES = ("/ping", OWN_PATH, "/ready", "/readyz")
LIFE = ("/live", "/healthz")
SLOW = {"demo": {"model_path": "demo.gguf", "flags": ["--stand-in", '{"load_s": 1.5}']}}


def codes(url: str, *paths: str) -> list[int]:
    return [ask(url + path).status for path in paths]


def state(corral: Corral) -> str:
    """The model's, as the gateway tells it: with one port there is no other teller."""
    told: str = corral.ask("/v1/models/demo/status").json()["status"]
    return told


def last_activity(corral: Corral) -> float:
    return metric(corral, "router_last_activity_timestamp_seconds")


def test_both_ports_say_the_same_while_a_model_is_preloaded_and_after(
    start_corral: StartCorral, stand_in: Path
) -> None:
    corral = start_corral(
        engine=stand_in,
        environment={"HEALTH_CHECK_PATH": OWN_PATH},
        config={"system": {"preload_models": ["*"]}, "models": SLOW},
        until_up=False,
    )
    ports = (corral.url, corral.health_url)
    wait_until(lambda: all(map(listens, ports)), "both listen")
    for url in ports:
        assert codes(url, *STATES) == [204, 204, 503, 503]
        assert codes(url, *LIFE) == [200, 200]
    wait_until(lambda: ask(f"{corral.url}/ping").status != 204, "the preload is settled")
    assert is_in_state(corral, "ready")
    for url in ports:
        assert codes(url, *STATES, *LIFE) == [200] * 6


def test_a_preload_that_fails_is_settled_too(start_corral: StartCorral, stand_in: Path) -> None:
    broken = {"demo": {"model_path": "demo.gguf", "flags": ["--stand-in", '{"exit_code": 3}']}}
    corral = start_corral(engine=stand_in, config={"system": {"preload_models": ["demo"]}, "models": broken})
    for url in (corral.url, corral.health_url):
        assert codes(url, "/ping", "/ready") == [200, 200]


# A machine that they neither wake nor keep awake --------------------------------------------------

IDLE_S, IDLE_EXIT_S = 1.0, 2.5
# An hour in which a platform probes each port once a second, in the time that so many probes take.
PROBES_PER_HOUR = 3600
STREAMS = ("/status/stream", "/v1/models/status/stream")
# All that can be looked at on the gateway's port, so that a route that is new is not forgotten.
LOOKS = [path for path, route in routes.PATHS.items() if "GET" in route.methods and path not in STREAMS]
GATEWAY_PATHS = (*LOOKS, OWN_PATH, *(f"/v1/models/demo{action}" for action in ("", "/status")))
HEALTH_PATHS = (*STATES, *LIFE, "/", "/health", "/metrics", "/status", "/status/demo", "/whatever/else")


class Prober:
    """Asks one port for every path in turn, by GET and by HEAD, on one connection, until it is enough.

    It brings a key, as a dashboard does; the paths for platforms don't look at it.
    """

    def __init__(self, corral: Corral, url: str, paths: Sequence[str]) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
        self._headers = authorization(corral)
        self._questions = [(method, path) for method in ("GET", "HEAD") for path in paths]
        self.count = 0

    def probe(self, enough: threading.Event) -> None:
        with closing(self._connection):
            for method, path in itertools.cycle(self._questions):
                if enough.is_set() and self.count >= PROBES_PER_HOUR:
                    return
                self._connection.request(method, path, headers=self._headers)
                with self._connection.getresponse() as answer:
                    answer.read()
                assert answer.status == 200, f"{method} {path}: {answer.status}"
                self.count += 1


def probers(corral: Corral) -> list[Prober]:
    """One for each port that there is."""
    found = [Prober(corral, corral.url, GATEWAY_PATHS)]
    if corral.health_url != corral.url:
        found.append(Prober(corral, corral.health_url, HEALTH_PATHS))
    return found


@pytest.fixture(params=["two ports", "one port"])
def ports(request: pytest.FixtureRequest) -> dict[str, str]:
    """Of one's own, or the gateway's for both."""
    port = str(free_port())
    both = {"GATEWAY_PORT": port, "PORT_HEALTH": port} if request.param == "one port" else {}
    return both | {"HEALTH_CHECK_PATH": OWN_PATH}


def test_an_hour_of_probes_wakes_nothing_and_a_request_does(
    start_corral: StartCorral, stand_in: Path, ports: dict[str, str]
) -> None:
    corral = start_corral(engine=stand_in, environment=ports)
    before = last_activity(corral)
    enough = threading.Event()
    enough.set()
    with ThreadPoolExecutor() as pool:
        for probing in [pool.submit(each.probe, enough) for each in probers(corral)]:
            probing.result()
    assert state(corral) == "off"
    assert last_activity(corral) == before
    assert metric(corral, "router_requests_total") == 0

    began = time.time()
    assert corral.ask(CHAT, chat()).status == 200
    assert last_activity(corral) >= began


def test_an_hour_of_probes_keeps_nothing_awake_and_a_request_does(
    start_corral: StartCorral, stand_in: Path, ports: dict[str, str]
) -> None:
    corral = start_corral(engine=stand_in, environment=ports, config={"system": {"idle_timeout_sec": IDLE_S}})
    assert corral.ask(CHAT, chat()).status == 200
    active = last_activity(corral)
    gone = threading.Event()
    with ThreadPoolExecutor() as pool, watching(corral):
        probing = [pool.submit(each.probe, gone) for each in probers(corral)]
        try:
            wait_until(lambda: state(corral) == "off", "the model is unloaded under fire", 10 * IDLE_S)
        finally:
            gone.set()
        for each in probing:
            each.result()
    assert state(corral) == "off"
    assert last_activity(corral) == active
    assert metric(corral, "router_requests_total") == 1
    assert corral.ask(CHAT, chat()).status == 200
    assert last_activity(corral) > active
    assert state(corral) == "ready"


@contextmanager
def watching(corral: Corral) -> Iterator[None]:
    """Somebody has the streams of states open all the time."""
    with ExitStack() as stack:
        for url, path in ((corral.health_url, STREAMS[0]), (corral.url, STREAMS[1])):
            if path == STREAMS[1] or corral.health_url != corral.url:
                stream = stack.enter_context(open_request(url + path, headers=authorization(corral)))
                assert stream.readline().startswith(b"event: full_status")
        yield


def test_probes_do_not_put_off_the_end_and_a_request_does(
    start_corral: StartCorral, stand_in: Path, ports: dict[str, str]
) -> None:
    """Its end is no failure: the platform is told by exit code 0 that all is well."""
    corral = start_corral(engine=stand_in, environment=ports | {"IDLE_EXIT_S": f"{IDLE_EXIT_S:g}"})
    began = time.monotonic()
    asking = probers(corral)
    with ThreadPoolExecutor() as pool, watching(corral):
        probing = [pool.submit(each.probe, threading.Event()) for each in asking]
        wait_until(lambda: time.monotonic() - began > IDLE_EXIT_S / 2, "half the time is over")
        assert corral.ask(CHAT, chat()).status == 200
        asked = time.monotonic()
        assert corral.wait_until_ended() == 0
        assert time.monotonic() - asked >= IDLE_EXIT_S
        for each in probing:
            with pytest.raises((OSError, http.client.HTTPException, AssertionError)):
                each.result()
    assert all(each.count > len(GATEWAY_PATHS) for each in asking), "it went although it was probed"
    assert "IDLE_EXIT_S" in corral.log_text
