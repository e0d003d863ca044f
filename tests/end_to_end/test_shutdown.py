"""The end, as operators and platforms bring it about: what runs may finish, nothing is left behind."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartCorral
from tests.end_to_end.talk import (
    CHAT,
    DONE,
    ENDLESS,
    LARGE_CONTEXT,
    busy_slots,
    chat,
    events,
    is_in_state,
    last_event,
    metric,
    next_event,
    open_chat,
    request,
    streamed_text,
    wait_for_queue,
    wire,
)
from tests.stand_in_nvml import NvmlWorld
from tests.support import STOP_TIMEOUT_S, Corral, ask, listens, processes_naming
from tests.waiting import wait_until

ENDLESS_MODEL = {"models": {"demo": {"model_path": "demo.gguf", "flags": LARGE_CONTEXT}}}
# A stream of two seconds, from an engine whose pace does not depend on the machine's.
STEADY: dict[str, Any] = {"stream": True, "stand_in": {"tokens": 40, "token_delay_s": 0.05}}
# Several signals in the last milliseconds, and yet time to come to them.
STORM_GAP_S = 0.0005
STEADY_TEXT = "".join(f"token{index} " for index in range(40))


def pings(corral: Corral) -> tuple[int, int]:
    return ask(f"{corral.url}/ping").status, ask(f"{corral.health_url}/ping").status


def wait_until_draining(corral: Corral) -> None:
    wait_until(lambda: pings(corral) == (503, 503), "/ping says 503 on both ports", 2.0)


def assert_nothing_is_left(corral: Corral) -> None:
    assert processes_naming(corral.directory) == {}
    with pytest.raises(ConnectionRefusedError):
        ask(f"{corral.health_url}/ping")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_what_runs_is_finished_and_what_is_new_is_refused(
    start_corral: StartCorral, stand_in: Path, number: signal.Signals
) -> None:
    corral = start_corral(engine=stand_in)
    with open_chat(corral, **STEADY) as stream, wire(corral) as waiting, wire(corral) as idle:
        first = next_event(stream)
        idle.say("GET /live HTTP/1.1\r\nHost: corral.test\r\n\r\n")
        assert idle.hear().status == 200
        waiting.say(request(corral, chat()))
        wait_for_queue(corral, 1)

        corral.tell(number)
        refused = waiting.hear()
        assert (refused.status, refused.error()["code"]) == (503, "shutting_down")
        assert refused.headers["connection"] == "close"
        assert waiting.at_end()
        assert idle.at_end()
        wait_until_draining(corral)

        late = corral.ask(CHAT, chat())
        assert (late.status, late.json()["error"]["code"]) == (503, "shutting_down")
        assert late.headers["connection"] == "close"
        assert int(late.headers["retry-after"]) >= 1
        assert ask(f"{corral.url}/live").status == ask(f"{corral.health_url}/live").status == 200

        rest = events(stream.read())
        assert rest[-1] == DONE
        assert streamed_text([first, *rest]) == STEADY_TEXT
    assert corral.wait_until_ended() == 0
    assert_nothing_is_left(corral)


def test_an_answer_that_is_no_stream_is_finished_too(start_corral: StartCorral, stand_in: Path) -> None:
    corral = start_corral(engine=stand_in)
    with wire(corral) as connection:
        connection.say(request(corral, chat(stand_in={"tokens": 20, "token_delay_s": 0.05})))
        wait_until(lambda: metric(corral, "router_active_requests", model="demo") == 1, "it runs")
        corral.tell(signal.SIGTERM)
        answer = connection.hear()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert b"token19 " in answer.body
    assert corral.wait_until_ended() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_hurries(start_corral: StartCorral, second: signal.Signals) -> None:
    corral = start_corral(config=ENDLESS_MODEL)
    with open_chat(corral, **ENDLESS) as stream:
        wait_until(lambda: busy_slots(corral) == 1, "the engine works")
        corral.tell(signal.SIGTERM)
        wait_until_draining(corral)
        assert busy_slots(corral) == 1
        began = time.monotonic()
        corral.tell(second)
        assert last_event(stream.read())["error"]["code"] == "upstream_error"
    assert corral.wait_until_ended() == 0
    assert time.monotonic() - began < 5
    assert_nothing_is_left(corral)


def test_the_wait_for_what_runs_has_an_end(start_corral: StartCorral) -> None:
    corral = start_corral(config=ENDLESS_MODEL, environment={"DRAIN_TIMEOUT_S": "0.5"})
    with open_chat(corral, **ENDLESS) as stream:
        wait_until(lambda: busy_slots(corral) == 1, "the engine works")
        began = time.monotonic()
        corral.tell(signal.SIGTERM)
        assert last_event(stream.read())["error"]["code"] == "upstream_error"
    assert corral.wait_until_ended() == 0
    assert 0.5 <= time.monotonic() - began < 5
    assert_nothing_is_left(corral)


def test_a_request_for_a_whole_answer_does_not_hold_up_the_end(start_corral: StartCorral) -> None:
    # llama-server ignores SIGTERM for as long as such a request's socket is open (measured).
    corral = start_corral(config=ENDLESS_MODEL, environment={"DRAIN_TIMEOUT_S": "0.1"})
    with wire(corral) as connection:
        connection.say(request(corral, chat(**ENDLESS | {"stream": False})))
        wait_until(lambda: busy_slots(corral) == 1, "the engine works")
        began = time.monotonic()
        assert corral.stop() == 0
        assert time.monotonic() - began < 5
        answer = connection.hear()
    assert (answer.status, answer.headers["connection"]) == (502, "close")


def test_a_model_that_is_still_loading_does_not_hold_up_the_end(
    start_corral: StartCorral, stand_in: Path
) -> None:
    corral = start_corral(engine=stand_in, environment={"STAND_IN_NEVER_READY": "true"})
    with wire(corral) as connection:
        connection.say(request(corral, chat()))
        wait_until(lambda: is_in_state(corral, "loading"), "it loads")
        corral.tell(signal.SIGTERM)
        assert connection.hear().error()["code"] == "shutting_down"
    began = time.monotonic()
    assert corral.wait_until_ended() == 0
    assert time.monotonic() - began < 5
    assert_nothing_is_left(corral)


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_driver_that_hangs_at_the_start_does_not_hold_up_the_end(
    start_corral: StartCorral, stand_in: Path, tmp_path: Path, number: signal.Signals, times: int
) -> None:
    world = NvmlWorld(tmp_path / "world")
    world.options("asleep=1000000")
    corral = start_corral(
        engine=stand_in,
        environment=world.environment(),
        config={"system": {"preload_models": ["demo"]}},
        until_up=False,
    )
    wait_until(lambda: listens(corral.url) and listens(corral.health_url), "both ports listen")
    with wire(corral) as waiting:
        waiting.say(request(corral, chat()))
        assert pings(corral) == (204, 204)
        began = time.monotonic()
        for _ in range(times):
            corral.tell(number)
        refused = waiting.hear()
        assert (refused.status, refused.error()["code"]) == (503, "shutting_down")
        assert waiting.at_end()
    assert corral.wait_until_ended() == 0
    assert time.monotonic() - began < 2
    assert "Traceback" not in corral.log_text
    assert_nothing_is_left(corral)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name
)
def test_signals_to_the_very_last_moment_change_nothing_about_the_exit_code(
    start_corral: StartCorral, stand_in: Path, number: signal.Signals
) -> None:
    corral = start_corral(engine=stand_in)
    corral.tell(signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while corral.exit_code is None and time.monotonic() < deadline:
        corral.tell(number)
        time.sleep(STORM_GAP_S)
    assert corral.exit_code == 0, corral.log_text
    assert "Traceback" not in corral.log_text
    assert_nothing_is_left(corral)


def test_a_gateway_that_is_killed_takes_everything_along(start_corral: StartCorral) -> None:
    corral = start_corral(config=ENDLESS_MODEL)
    with open_chat(corral, **ENDLESS) as stream:
        next_event(stream)
        commands = " ".join(processes_naming(corral.directory).values())
        assert "llama-server --model" in commands or "llama-server -m" in commands
        assert "health_server.py" in commands
        corral.kill()
        wait_until(lambda: not processes_naming(corral.directory), "its processes are gone", 2.0)
    assert_nothing_is_left(corral)
