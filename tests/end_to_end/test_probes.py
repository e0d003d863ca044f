"""Probes: the same truth on both ports, and a machine that they neither wake nor keep awake."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import StartCorral
from tests.end_to_end.talk import CHAT, chat, is_in_state, metric
from tests.support import Corral, ask, listens
from tests.waiting import wait_until

OWN_PATH = "/my/health"
STATES = ("/ping", OWN_PATH, "/ready", "/readyz")
LIFE = ("/live", "/healthz")
# Everything that a platform, a scraper or a curious person may ask without meaning to use a model.
HARMLESS = (*STATES, *LIFE, "/", "/health", "/metrics")
SLOW = {"demo": {"model_path": "demo.gguf", "flags": ["--stand-in", '{"load_s": 1.5}']}}


def codes(url: str, *paths: str) -> list[int]:
    return [ask(url + path).status for path in paths]


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


@pytest.fixture
def probed(start_corral: StartCorral, stand_in: Path) -> Corral:
    """Unloads a model that had nothing to do for half a second."""
    return start_corral(
        engine=stand_in,
        environment={"HEALTH_CHECK_PATH": OWN_PATH},
        config={"system": {"idle_timeout_sec": 0.5}},
    )


def test_probes_are_no_traffic_and_load_no_model(probed: Corral) -> None:
    before = last_activity(probed)
    for url in (probed.url, probed.health_url):
        for path in (*HARMLESS, "/status", "/status/demo"):
            ask(url + path)
            ask(url + path, method="HEAD")
    for path in ("/health", "/v1/models", "/v1/models/demo"):
        assert probed.ask(path).status == 200
    assert is_in_state(probed, "off")
    assert last_activity(probed) == before
    assert metric(probed, "router_requests_total") == 0

    began = time.time()
    assert probed.ask(CHAT, chat()).status == 200
    assert last_activity(probed) >= began


def test_probes_keep_no_model_loaded(probed: Corral) -> None:
    assert probed.ask(CHAT, chat()).status == 200
    active = last_activity(probed)

    def gone_under_constant_probing() -> bool:
        codes(probed.url, *HARMLESS)
        codes(probed.health_url, *HARMLESS)
        return is_in_state(probed, "off")

    assert is_in_state(probed, "ready")
    wait_until(gone_under_constant_probing, "it is unloaded while it is being probed", 5)
    assert last_activity(probed) == active
