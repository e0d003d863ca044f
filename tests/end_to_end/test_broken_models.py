"""Models that can't be loaded, and llama-servers that die: the client learns why, and the rest goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.formats import demo_models
from corral.formats.demo_models import SCRIPT
from tests.end_to_end.talk import (
    CHAT,
    ENDLESS,
    busy_slots,
    chat,
    content,
    engine_log,
    is_in_state,
    last_event,
    metric,
    model_status,
    open_chat,
)
from tests.support import Corral, ask, free_port, running_corral, wait_until

BROKEN = ("absent", "truncated", "garbage", "empty")
LAST_WORDS = "failed to load model"
DEATHS_MAX = 5


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model files that are none."""
    folder = tmp_path_factory.mktemp("broken")
    demo = demo_models.demo()
    (folder / "truncated.gguf").write_bytes(demo[: len(demo) // 2])
    (folder / "garbage.gguf").write_bytes(bytes(range(256)) * 4096)
    (folder / "empty.gguf").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def corral(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, demo_files: Path, broken: Path
) -> Iterator[Corral]:
    """It serves four broken files and a good one. A fifth broken one is to be loaded from the start."""
    entries = {name: {"model_path": str(broken / f"{name}.gguf")} for name in BROKEN}
    entries["doomed"] = entries["garbage"]
    with running_corral(
        tmp_path_factory.mktemp("herd"),
        llama_server,
        demo_files,
        config={
            "system": {"preload_models": ["doomed"], "max_concurrent_models": 10},
            "server_pool": {"size": 10},
            "models": entries | {"demo": {"model_path": "demo.gguf"}},
        },
    ) as instance:
        yield instance


@pytest.fixture(scope="module", autouse=True)
def single(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, demo_files: Path, broken: Path
) -> Iterator[Corral]:
    """In single-model mode, and that model is broken. It takes its time to give up, so it begins at once."""
    with running_corral(
        tmp_path_factory.mktemp("single"),
        llama_server,
        demo_files,
        environment={"MODEL_PATH": str(broken / "garbage.gguf"), "PORT_BACKEND": str(free_port())},
    ) as instance:
        yield instance


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_cannot_be_loaded_fails_in_the_engines_own_words(corral: Corral, name: str) -> None:
    answer = corral.ask(CHAT, chat(name))
    error = answer.json()["error"]
    assert (answer.status, error["type"], error["code"]) == (503, "server_error", "model_failed")
    assert f"'{name}' could not be loaded" in error["message"]
    assert "exit code 1" in error["message"]
    assert LAST_WORDS in error["message"]
    last_line = error["message"].rpartition(" | ")[2]
    wait_until(lambda: engine_log(corral, name).rstrip().endswith(last_line), "its log ends with the same")


def test_the_others_are_served_meanwhile(corral: Corral) -> None:
    for name in ("truncated", "demo"):
        answer = corral.ask(CHAT, chat(name, stream=True))
        assert answer.status == (200 if name == "demo" else 503)
    assert content(corral.ask(CHAT, chat())) == SCRIPT


def test_a_failed_preload_does_not_keep_the_gate_closed(corral: Corral) -> None:
    assert ask(f"{corral.url}/ping").status == ask(f"{corral.health_url}/ping").status == 200
    assert model_status(corral, "doomed")["status"] != "ready"


def test_a_killed_engine_ends_its_stream_honestly_and_is_back_without_being_asked(corral: Corral) -> None:
    assert content(corral.ask(CHAT, chat())) == SCRIPT
    restarts = metric(corral, "router_model_restarts_total", model="demo")
    pid = model_status(corral)["pid"]
    with open_chat(corral, **ENDLESS) as stream:
        wait_until(lambda: busy_slots(corral) == 1, "the engine works")
        os.kill(pid, signal.SIGKILL)
        body = stream.read()
    assert last_event(body)["error"]["code"] == "upstream_error"
    assert b"[DONE]" not in body
    wait_until(lambda: model_status(corral).get("pid") not in (None, pid), "another process runs")
    wait_until(lambda: is_in_state(corral, "ready"), "it is ready")
    assert metric(corral, "router_model_restarts_total", model="demo") == restarts + 1
    assert content(corral.ask(CHAT, chat())) == SCRIPT


def test_a_request_that_comes_while_a_killed_engine_comes_back_waits_for_it(corral: Corral) -> None:
    assert content(corral.ask(CHAT, chat())) == SCRIPT
    os.kill(model_status(corral)["pid"], signal.SIGKILL)
    wait_until(lambda: not is_in_state(corral, "ready"), "its death is noticed")
    assert content(corral.ask(CHAT, chat())) == SCRIPT


def test_five_deaths_in_a_row_are_enough(corral: Corral) -> None:
    # It has been dying since the module began: after 1, 2, 4 and 8 seconds it was tried again.
    wait_until(lambda: is_in_state(corral, "failed", "doomed"), "it is given up", 30)
    answer = corral.ask(CHAT, chat("doomed"))
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (503, "model_failed")
    assert f"died {DEATHS_MAX} times in a row and was given up" in error["message"]
    assert LAST_WORDS in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["retry-after"] is None
    logs = list((corral.data / "logs" / "llama-doomed").glob("*_server_*.log"))
    assert len(logs) == DEATHS_MAX
    assert ask(f"{corral.url}/ping").status == 200


def test_in_single_model_mode_the_models_failure_is_the_machines(single: Corral) -> None:
    wait_until(lambda: is_in_state(single, "failed", "garbage"), "its model is given up", 30)
    for url in (single.url, single.health_url):
        assert [ask(url + path).status for path in ("/ping", "/ready", "/live")] == [503, 503, 200]
