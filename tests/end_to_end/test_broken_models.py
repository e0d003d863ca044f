"""Models that can't be loaded, and llama-servers that die: the client learns why, and the rest goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

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
from tests.support import Corral, ask, running_corral
from tests.waiting import wait_until

BROKEN = ("absent", "truncated", "garbage", "empty")
LAST_WORDS = "failed to load model"


@pytest.fixture(scope="module")
def corral(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, demo_files: Path, broken_files: Path
) -> Iterator[Corral]:
    """It serves four broken files and a good one, and one of the broken ones is to be loaded at the start."""
    entries = {name: {"model_path": str(broken_files / f"{name}.gguf")} for name in BROKEN}
    entries["preloaded"] = entries["garbage"]
    with running_corral(
        tmp_path_factory.mktemp("herd"),
        llama_server,
        demo_files,
        config={
            "system": {"preload_models": ["preloaded"], "max_concurrent_models": 10},
            "server_pool": {"size": 10},
            "models": entries | {"demo": {"model_path": "demo.gguf"}},
        },
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
    assert model_status(corral, "preloaded")["status"] != "ready"


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
