"""The real llama-server dies in all of its ways: each client is told how, and whoever can be helped is."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from corral.formats import demo_models
from corral.formats.demo_models import SCRIPT
from tests.end_to_end.talk import (
    CHAT,
    LARGE_CONTEXT,
    busy_slots,
    chat,
    content,
    is_in_state,
    metric,
    model_status,
)
from tests.policy.memory.files import transformer
from tests.support import Corral, running_corral
from tests.waiting import wait_until

ALTERED_GATEWAY = Path(__file__).with_name("altered_gateway.py")
# An answer that takes a good second, and one that takes minutes.
LONG: dict[str, Any] = {"ignore_eos": True, "max_tokens": 4000}
ENDLESS: dict[str, Any] = {"ignore_eos": True, "max_tokens": -1}
# Flags with which it dies at its start, how it ends, and what of its words must be passed on.
FLAGS = {
    "unknown-flag": (["--no-such-flag"], "exit code 1", "error: invalid argument: --no-such-flag"),
    "bad-value": (["-ctk", "q9_9"], "exit code 1", "Unsupported cache type: q9_9"),
    "bad-number": (["-ngl", "many"], "exit code 1", 'error while handling argument "-ngl"'),
    "negative-context": (["-c", "-5"], "exit code 1", "failed to create_context"),
    "no-batch": (["-b", "0"], "killed by SIGABRT", "GGML_ASSERT"),
    "no-threads-left": (["-np", "100000"], "killed by SIGABRT", "Resource temporarily unavailable"),
}
FILES = {
    "another-version": "failed to load model",
    "another-architecture": "unknown model architecture: 'lxama'",
    "a-tensor-short": "tensor 'blk.1.ffn_up.weight' not found",
}
LIVELY = ("mortal", "poisoned")


def write_files(folder: Path) -> None:
    demo = demo_models.demo()
    (folder / "another-version.gguf").write_bytes(demo[:4] + b"\x09" + demo[5:])
    (folder / "another-architecture.gguf").write_bytes(transformer("lxama").bytes())
    (folder / "a-tensor-short.gguf").write_bytes(transformer().without("blk.1.ffn_up.weight").bytes())


@pytest.fixture(scope="module")
def corral(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, demo_files: Path
) -> Iterator[Corral]:
    folder = tmp_path_factory.mktemp("faulty")
    write_files(folder)
    # With 8 GiB of addresses it can have a thousand threads. It would take all that the machine can give,
    # and nobody else could start a process meanwhile.
    modest = folder / "llama-server"
    modest.write_text(f'#!/bin/sh\nulimit -v {8 << 20}\nexec {shlex.quote(str(llama_server))} "$@"\n')
    modest.chmod(0o755)
    models: dict[str, Any] = {name: {"model_path": str(folder / f"{name}.gguf")} for name in FILES}
    models |= {name: {"model_path": "demo.gguf", "flags": words} for name, (words, *_) in FLAGS.items()}
    models |= {name: {"model_path": "demo.gguf", "flags": LARGE_CONTEXT} for name in LIVELY}
    models["boundless"] = {"model_path": "demo.gguf", "flags": ["-c", "2000000000"]}
    with running_corral(
        tmp_path_factory.mktemp("herd"),
        modest,
        demo_files,
        config={
            "system": {"max_concurrent_models": 30},
            "server_pool": {"size": 30},
            "models": models,
        },
    ) as instance:
        yield instance


def failure(corral: Corral, model: str, status: int = 503) -> tuple[str, str]:
    """Code and message of the error that a request gets."""
    answer = corral.ask(CHAT, chat(model))
    assert answer.status == status
    error = answer.json()["error"]
    return error["code"], error["message"]


# At the start ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLAGS)
def test_flags_that_it_does_not_take_are_reported_in_its_own_words(corral: Corral, name: str) -> None:
    _, how, words = FLAGS[name]
    code, message = failure(corral, name)
    assert code == "model_failed"
    assert f"{how} | " in message
    assert words in message


@pytest.mark.parametrize("name", FILES)
def test_files_that_it_does_not_read_are_reported_in_its_own_words(corral: Corral, name: str) -> None:
    code, message = failure(corral, name)
    assert code == "model_failed"
    assert "exit code 1 | " in message
    assert FILES[name] in message


def test_a_context_that_would_never_come_up_is_refused_beforehand(corral: Corral) -> None:
    code, message = failure(corral, "boundless")
    assert code == "insufficient_vram"
    assert "GiB of main memory" in message
    assert "It would fit with a context of " in message
    assert not (corral.data / "logs" / "llama-boundless").exists(), "no process was started"


def test_one_that_loses_its_port_to_somebody_else_gets_another(
    tmp_path: Path, llama_server: Path, demo_files: Path
) -> None:
    """The port is taken between the moment that it's chosen and the moment that it's bound."""
    chosen, go_on = tmp_path / "port", tmp_path / "go-on"
    os.mkfifo(go_on)
    slow = tmp_path / "llama-server"
    slow.write_text(
        f"""#!{sys.executable}
import os, sys
if not os.path.exists("{chosen}"):
    with open("{chosen}.new", "w") as file:
        file.write(sys.argv[sys.argv.index("--port") + 1])
    os.rename("{chosen}.new", "{chosen}")
    open("{go_on}").read()
os.execv("{llama_server}", ["{llama_server}", *sys.argv[1:]])
"""
    )
    slow.chmod(0o755)
    with (
        running_corral(tmp_path / "corral", slow, demo_files) as corral,
        ThreadPoolExecutor(1) as clients,
    ):
        answer = clients.submit(corral.ask, CHAT, chat())
        wait_until(chosen.exists, "a port is chosen")
        port = int(chosen.read_text())
        with socket.create_server(("127.0.0.1", port)):
            go_on.write_text("now")
            assert content(answer.result()) == SCRIPT
            assert model_status(corral)["port"] != port
        assert "couldn't bind HTTP server socket" in corral.log_text


# At work -----------------------------------------------------------------------------------------


def kill_at_work(corral: Corral, model: str) -> int:
    """Wait until its process works on a request, and kill it. Its pid."""
    wait_until(lambda: busy_slots(corral, model) == 1, "it works on the request")
    pid: int = model_status(corral, model)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: model_status(corral, model).get("pid") != pid, "its death is noticed")
    return pid


def test_a_request_whose_engine_dies_before_the_first_byte_is_answered_by_the_next(corral: Corral) -> None:
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(corral.ask, CHAT, chat("mortal", **LONG))
        kill_at_work(corral, "mortal")
        assert content(answer.result()).startswith(SCRIPT)
    assert answer.result().json()["usage"]["completion_tokens"] == LONG["max_tokens"]
    assert metric(corral, "router_model_restarts_total", model="mortal") == 1


def test_a_request_that_was_there_at_two_deaths_is_not_given_to_a_third(corral: Corral) -> None:
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(corral.ask, CHAT, chat("poisoned", **ENDLESS))
        first = kill_at_work(corral, "poisoned")
        second = kill_at_work(corral, "poisoned")
        error = answer.result().json()["error"]
    assert (answer.result().status, error["code"]) == (502, "upstream_error")
    assert answer.result().headers["x-should-retry"] == "false"
    wait_until(lambda: is_in_state(corral, "ready", "poisoned"), "it is back")
    assert model_status(corral, "poisoned")["pid"] not in (first, second)
    assert busy_slots(corral, "poisoned") == 0
    assert content(corral.ask(CHAT, chat("poisoned"))) == SCRIPT


def test_one_that_hangs_fails_its_request_and_is_killed_and_started_again(
    tmp_path: Path, llama_server: Path, demo_files: Path
) -> None:
    """It is stopped in the middle of its work: alive, and dead to the world."""
    with running_corral(
        tmp_path / "corral",
        llama_server,
        demo_files,
        environment={"IMPATIENT": "1", "REQUEST_TIMEOUT": "0.5"},
        config={"models": {"demo": {"model_path": "demo.gguf", "flags": LARGE_CONTEXT}}},
        program=ALTERED_GATEWAY,
    ) as corral:
        with ThreadPoolExecutor(1) as clients:
            answer = clients.submit(corral.ask, CHAT, chat(**ENDLESS))
            wait_until(lambda: busy_slots(corral) == 1, "it works")
            pid = model_status(corral)["pid"]
            os.kill(pid, signal.SIGSTOP)
            assert (answer.result().status, answer.result().json()["error"]["code"]) == (
                504,
                "upstream_timeout",
            )
        wait_until(lambda: model_status(corral).get("pid") not in (None, pid), "another runs")
        assert "demo died (1): it hung: no answer and no progress for 1 s" in corral.log_text
        assert content(corral.ask(CHAT, chat())) == SCRIPT
