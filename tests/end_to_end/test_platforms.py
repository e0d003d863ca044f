"""Each platform, played against the image's own entrypoint: its probes, its ports, its signals, its clock.

What a platform promises to do is written above its tests, and what an operator sets there is read from the
recipe or from the table in docs/deploying.md. Where a platform gives so many seconds to answer or to end, the
test does, too; how long it lets a request take or be silent is not waited for.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.conftest import StartCorral
from tests.end_to_end.talk import (
    CHAT,
    DONE,
    chat,
    content,
    events,
    is_in_state,
    metric,
    open_chat,
)
from tests.support import (
    KEY,
    ROOT,
    Corral,
    ask,
    free_port,
    listens,
    open_request,
    ping,
    platform_row,
)
from tests.waiting import wait_until

ENTRYPOINT = ROOT / "entrypoint.sh"
PLATFORMS = ROOT / "deploy" / "platforms"
SLOW_LOAD_S = 1.5
SLOW = {
    "system": {"preload_models": ["demo"]},
    "models": {"demo": {"model_path": "demo.gguf", "flags": ["--stand-in", f'{{"load_s": {SLOW_LOAD_S}}}']}},
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
STEADY = {"tokens": 20, "token_delay_s": 0.05}
READY_LINE = "READY after "
# DRAIN_TIMEOUT_S where nobody sets it.
DEFAULT_DRAIN_S = 30.0
# A path that only the operator knows.
OWN_PATH = "/probes/one"

Start = Callable[..., Corral]


@pytest.fixture
def start_image(start_corral: StartCorral, stand_in: Path) -> Start:
    """Starts what the image starts, with the stand-in engine; up or not, as `until_up` says."""

    def start(**options: Any) -> Corral:
        return start_corral(**{"engine": stand_in, "program": ENTRYPOINT} | options)

    return start


def told(platform: str) -> dict[str, str]:
    """The variables that the page about deploying has for a platform."""
    return dict(re.findall(r"`([A-Z_]+)=([^`]*)`", platform_row(platform)))


def runpods_recipe() -> dict[str, str]:
    """Its ports are the tests' own."""
    text = (PLATFORMS / "runpod.env").read_text(encoding="utf-8")
    own = dict(re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE))
    return {name: value for name, value in own.items() if "PORT" not in name}


def cloud_runs_recipe() -> dict[str, str]:
    """What it sets in clear; places are the tests' own."""
    service = yaml.safe_load((PLATFORMS / "cloud-run.yaml").read_text(encoding="utf-8"))
    [container] = service["spec"]["template"]["spec"]["containers"]
    own = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    return {name: value for name, value in own.items() if name not in ("DATA_DIR", "BASE_MODELS_PATH")}


def flys_recipe() -> dict[str, Any]:
    return tomllib.loads((PLATFORMS / "fly.toml").read_text(encoding="utf-8"))


def codes_until_200(url: str, path: str = "/ping", *, answer_within_s: float = 30.0) -> list[int]:
    """Every different answer that a probe gets, in order, from the first until all is well."""
    seen: list[int] = []

    def healthy() -> bool:
        if not listens(url):
            return False
        status = ask(url + path, timeout_s=answer_within_s).status
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
# platform's own key is in Authorization, so ours comes in X-API-Key. A request may be 30 MB long.


def test_runpod_on_two_ports(start_image: Start) -> None:
    corral = start_image(config=SLOW, environment=runpods_recipe(), until_up=False)
    assert codes_until_200(corral.health_url) == [204, 200]


def test_runpod_on_one_port(start_image: Start) -> None:
    port = str(free_port())
    one = {"GATEWAY_PORT": "", "PORT": port, "PORT_HEALTH": port}
    corral = start_image(config=SLOW, environment=runpods_recipe() | one, until_up=False)
    assert codes_until_200(corral.url) == [204, 200]


def test_runpod_with_one_model_is_told_that_all_is_well_when_it_is_loaded(start_image: Start) -> None:
    """As its recipe and that for Cloud Run promise of MODEL_NAME."""
    slow = f"--stand-in '{{\"load_s\": {SLOW_LOAD_S}}}'"
    one = {"MODEL_NAME": "demo.gguf", "EXTRA_ARGS": slow, "PORT_BACKEND": str(free_port())}
    corral = start_image(environment=runpods_recipe() | one, until_up=False)
    assert codes_until_200(corral.health_url) == [204, 200]
    assert is_in_state(corral, "ready")


def test_runpods_own_key_is_none_of_ours(start_image: Start) -> None:
    corral = start_image(environment=runpods_recipe())
    theirs = {"Authorization": "Bearer rpa_theplatformsownkey0123456789"}
    assert ask(corral.url + CHAT, chat(), headers=theirs).status == 401
    assert content(ask(corral.url + CHAT, chat(), headers=theirs | {"X-API-Key": KEY}))


def test_runpods_largest_request_is_taken(start_image: Start) -> None:
    corral = start_image(environment=runpods_recipe())
    whole = chat(user="x" * (30_000_000 - len(json.dumps(chat(user="")))))
    assert content(corral.ask(CHAT, whole))


# Cloud Run: says the port in PORT, takes 200 to 399 for a start, and allows 10 s from SIGTERM to the end.
# What runs meanwhile should be through by then, or be cut by us and not by it.


def test_cloud_run_begins(start_image: Start) -> None:
    port = str(free_port())
    own = cloud_runs_recipe() | {"GATEWAY_PORT": "", "PORT": port}
    corral = start_image(environment=own, config=SLOW, until_up=False)
    assert corral.url.endswith(port)
    assert codes_until_200(corral.url, "/ready") == [503, 200]
    assert ask(f"{corral.url}/live").status == 200


def test_cloud_run_ends(start_image: Start) -> None:
    corral = start_image(environment=cloud_runs_recipe(), config=STUBBORN)
    assert seconds_to_stop(corral, signal.SIGTERM) < 10


def seconds_to_stop(corral: Corral, number: signal.Signals) -> float:
    """From a platform's signal to the end, at its slowest: an answer without an end, a stubborn engine."""
    with open_chat(corral, stream=True) as stream:
        assert stream.readline().startswith(b"data: ")
        began = time.monotonic()
        assert corral.stop(number) == 0
        return time.monotonic() - began


# SageMaker: runs the image with the word `serve`; a GET /ping on 8080 is to be answered within 2 s, and 200
# is healthy; POST /invocations is the only other path. Unknown headers do not arrive, and all requests come
# from one address. 30 s after SIGTERM it kills.


def sagemakers(models: Path) -> dict[str, str]:
    """As the table has it, with a port and a place of one's own."""
    asked = told("SageMaker")
    assert (asked["GATEWAY_PORT"], asked["BASE_MODELS_PATH"]) == ("8080", "/opt/ml/model")
    return asked | {"GATEWAY_PORT": str(free_port()), "BASE_MODELS_PATH": str(models)}


def test_sagemaker(start_image: Start, demo_files: Path) -> None:
    corral = start_image(arguments=["serve"], environment=sagemakers(demo_files), until_up=False)
    assert codes_until_200(corral.url, answer_within_s=2.0)[-1] == 200
    assert content(ask(f"{corral.url}/invocations", chat()))
    stream = ask(f"{corral.url}/invocations", chat(stream=True))
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert events(stream.body)[-1] == DONE
    with open_chat(corral, stream=True, stand_in=STEADY) as busy:
        assert busy.readline().startswith(b"data: ")
        began = time.monotonic()
        assert ping(corral.url) == 200
        assert time.monotonic() - began < 2


def test_sagemakers_one_address_is_not_limited(start_image: Start, demo_files: Path) -> None:
    corral = start_image(arguments=["serve"], environment=sagemakers(demo_files))
    more_than_a_strangers_minute = 101
    for _ in range(more_than_a_strangers_minute):
        assert ask(f"{corral.url}/invocations", chat()).status == 200


def test_sagemakers_port_is_where_the_engine_of_a_single_model_would_listen(
    start_image: Start, demo_files: Path
) -> None:
    own = sagemakers(demo_files) | {"MODEL_PATH": str(demo_files / "demo.gguf")}
    own["PORT_BACKEND"] = own["GATEWAY_PORT"]  # 8080 both, if nobody says otherwise
    corral = start_image(arguments=["serve"], environment=own)
    assert content(ask(f"{corral.url}/invocations", chat()))


# Knative and KServe: a readiness probe through their proxy; 503 until it is ready and 200 from then on, and
# 503 again when it stops, while what runs is let finish.


def test_knative(start_image: Start) -> None:
    corral = start_image(config=SLOW, until_up=False)
    assert codes_until_200(corral.url, "/readyz") == [503, 200]
    with open_chat(corral, stream=True, stand_in=STEADY) as stream:
        assert stream.readline().startswith(b"data: ")
        corral.tell(signal.SIGTERM)
        wait_until(lambda: ask(f"{corral.url}/readyz").status == 503, "no new ones are sent to it")
        assert stream.read().endswith(b"data: [DONE]\n\n")


# Azure Container Apps: start-up, readiness and liveness take 200 to 399. A 204 from /ping is one of these, so
# readiness asks /ready. Each probe has a port of its own. About 30 s after SIGTERM it kills.


def test_azure_begins(start_image: Start) -> None:
    corral = start_image(config=SLOW, environment=told("Azure Container Apps"), until_up=False)
    wait_until(lambda: listens(corral.url) and listens(corral.health_url), "both ports listen")
    assert 200 <= ask(f"{corral.url}/live").status <= 399
    assert ask(f"{corral.health_url}/ready").status == 503
    assert codes_until_200(corral.health_url, "/ready")[-1] == 200


def test_azure_ends(start_image: Start) -> None:
    """It is taken out of service and is alive until what runs is through, and then it is gone."""
    corral = start_image(environment=told("Azure Container Apps"))
    with open_chat(corral, stream=True, stand_in=STEADY) as stream:
        assert stream.readline().startswith(b"data: ")
        corral.tell(signal.SIGTERM)
        wait_until(lambda: ask(f"{corral.health_url}/ready").status == 503, "no new ones are sent to it")
        assert ask(f"{corral.url}/live").status == 200
        assert corral.ask(CHAT, chat()).status == 503
        assert stream.read().endswith(b"data: [DONE]\n\n")
    assert corral.wait_until_ended() == 0


# Hugging Face endpoints: a route of one's own choice every second, on the serving port; 200 only when ready.
# The model lies in /repository: tests/test_deploy.py finds it there.


@pytest.mark.parametrize(("path", "codes"), [("/ready", [503, 200]), (OWN_PATH, [204, 200])])
def test_hugging_face(start_image: Start, path: str, codes: list[int]) -> None:
    own = {"HEALTH_CHECK_PATH": OWN_PATH}
    corral = start_image(config=SLOW, environment=own, until_up=False)
    assert codes_until_200(corral.url, path) == codes


# Fly: stops with SIGINT, and kills after 5 s unless told otherwise, as our recipe does. Its check asks the
# health port.


def test_fly_begins(start_image: Start) -> None:
    [check] = flys_recipe()["checks"].values()
    assert check["port"] == 8001
    corral = start_image(config=SLOW, until_up=False)
    assert codes_until_200(corral.health_url, check["path"])[-1] == 200


def test_fly_ends(start_image: Start) -> None:
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


# How long each place waits -----------------------------------------------------------------------


def patience() -> dict[str, tuple[float, float]]:
    """By place: how long what runs may go on, and when it is killed, as its files and the page say."""
    fly = flys_recipe()
    deploying = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    unit = (ROOT / "deploy" / "systemd" / "corral.service").read_text(encoding="utf-8")
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    stateful = yaml.safe_load(
        (ROOT / "deploy" / "kubernetes" / "statefulset.yaml").read_text(encoding="utf-8")
    )
    pod = stateful["spec"]["template"]["spec"]
    before_s = float(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    docker_s, unit_s = (
        re.findall(r"--stop-timeout (\d+)", deploying),
        re.findall(r"TimeoutStopSec=(\d+)", unit),
    )
    return {
        "Azure": (float(told("Azure Container Apps")["DRAIN_TIMEOUT_S"]), 30.0),
        "Cloud Run": (float(cloud_runs_recipe()["DRAIN_TIMEOUT_S"]), 10.0),
        "Compose": (DEFAULT_DRAIN_S, float(compose["services"]["gateway"]["stop_grace_period"].rstrip("s"))),
        "Docker": (DEFAULT_DRAIN_S, float(docker_s[0])),
        "Fly": (float(fly["env"]["DRAIN_TIMEOUT_S"]), float(fly["kill_timeout"].rstrip("s"))),
        "Kubernetes": (DEFAULT_DRAIN_S, pod["terminationGracePeriodSeconds"] - before_s),
        "SageMaker": (float(told("SageMaker")["DRAIN_TIMEOUT_S"]), 30.0),
        "systemd": (DEFAULT_DRAIN_S, float(unit_s[0])),
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_comes_in_time_wherever_it_runs(start_image: Start, number: signal.Signals) -> None:
    """A drain takes as long as it may; what comes after it is measured behind a short one."""
    drain_s = 1.0
    corral = start_image(environment={"DRAIN_TIMEOUT_S": f"{drain_s:g}"}, config=STUBBORN)
    after_s = seconds_to_stop(corral, number) - drain_s
    assert after_s > 0, "what runs was cut before its time"
    late = {place: each for place, each in patience().items() if each[0] + after_s >= each[1]}
    assert not late, f"killed before its end, {after_s:.1f} s after the drain: {late}"
