"""An engine that misbehaves in every way there is: each client is told the truth, and the gate stays open."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartCorral
from tests.end_to_end.talk import (
    CHAT,
    DONE,
    RawAnswer,
    authorization,
    chat,
    content,
    events,
    is_in_state,
    last_event,
    metric,
    model_status,
    next_event,
    open_chat,
    request,
    wire,
)
from tests.stand_in_launcher import read_events
from tests.support import Answer, Corral, ask, open_request, running_corral
from tests.waiting import is_running, wait_until

TEXT = "token0 token1 token2 token3 token4 "
# One model per test that kills or blocks it, so that they don't get into one another's way.
MODELS = ("steady", "mortal", "poisoned", "bereft", "mute", "stuck", "thinking")
SILENCE_S = 0.5


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal") / "events"


@pytest.fixture(scope="module")
def corral(
    tmp_path_factory: pytest.TempPathFactory, stand_in: Path, demo_files: Path, journal: Path
) -> Iterator[Corral]:
    entries: dict[str, Any] = {name: {"model_path": "demo.gguf"} for name in MODELS}
    entries["slow"] = {"model_path": "demo.gguf", "flags": ["--stand-in", '{"load_s": 1.0}']}
    with running_corral(
        tmp_path_factory.mktemp("faults"),
        stand_in,
        demo_files,
        environment={"STAND_IN_LOG": str(journal), "REQUEST_TIMEOUT": str(SILENCE_S)},
        config={
            "system": {"max_concurrent_models": 20},
            "server_pool": {"size": 20},
            "models": entries,
        },
    ) as instance:
        yield instance


@pytest.fixture(scope="module")
def silences(corral: Corral) -> Iterator[Mapping[str, Future[Answer]]]:
    """Three requests that hear nothing for longer than REQUEST_TIMEOUT, side by side."""
    bodies = {
        "mute": chat("mute", stand_in={"hang_after": 0}),
        "stuck": chat("stuck", stream=True, stand_in={"hang_after": 2}),
        "thinking": chat("thinking", stand_in={"tokens": 40, "token_delay_s": 0.1}),
    }
    with ThreadPoolExecutor(len(bodies)) as clients:
        yield {name: clients.submit(corral.ask, CHAT, body) for name, body in bodies.items()}


def spoilt(corral: Corral, model: str = "steady", *, stream: bool = False, **faults: Any) -> RawAnswer:
    """The answer to a request for which faults were ordered."""
    with wire(corral) as connection:
        connection.say(request(corral, chat(model, stream=stream, stand_in=faults)))
        answer = connection.hear("POST")
        if answer.headers["connection"] == "close":
            assert connection.at_end()
        return answer


def assert_broken_off_honestly(answer: RawAnswer, tokens: int, code: str = "upstream_error") -> None:
    """The stream has its first tokens, then an error, then its end: no second head, no `[DONE]`."""
    assert answer.status == 200
    *said, last = events(answer.body)
    assert sum("token" in json.dumps(event) for event in said) == tokens
    assert DONE not in said
    assert (last["error"]["type"], last["error"]["code"]) == ("server_error", code)


# Whole answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({"garbage": True}, id="garbage instead of HTTP"),
        pytest.param({"garbage": True, "stream": True}, id="garbage instead of a stream"),
        pytest.param({"head_bytes": 200_000}, id="a huge head"),
        pytest.param({"close_after": 0}, id="closes without an answer"),
    ],
)
def test_what_is_no_answer_is_a_bad_gateway(corral: Corral, faults: dict[str, Any]) -> None:
    answer = spoilt(corral, **faults)
    assert (answer.status, answer.error()["type"]) == (502, "server_error")
    assert answer.error()["code"] == "upstream_error"
    assert content(corral.ask(CHAT, chat("steady"))) == TEXT


def test_an_answer_that_is_cut_is_not_passed_off_as_whole(corral: Corral) -> None:
    body = chat("steady", stand_in={"body_bytes": 30})
    with open_request(corral.url + CHAT, body, headers=authorization(corral)) as answer:
        assert answer.status == 200
        with pytest.raises(http.client.IncompleteRead) as caught:
            answer.read()
    assert len(caught.value.partial) <= 30
    assert content(corral.ask(CHAT, chat("steady"))) == TEXT


@pytest.mark.parametrize(("status", "kind"), [(400, "invalid_request_error"), (500, "server_error")])
def test_the_engines_own_refusals_keep_their_status_and_words(corral: Corral, status: int, kind: str) -> None:
    answer = spoilt(corral, status=status)
    assert (answer.status, answer.error()["type"]) == (status, kind)
    assert answer.error()["message"] == "ordered by the test"


# Streams -----------------------------------------------------------------------------------------


def test_a_stream_whose_engine_closes_ends_with_an_error_and_a_clean_close(corral: Corral) -> None:
    assert_broken_off_honestly(spoilt(corral, stream=True, close_after=2), tokens=2)
    assert content(corral.ask(CHAT, chat("steady"))) == TEXT


def test_a_stream_whose_engine_dies_ends_with_an_error_and_the_engine_comes_back(corral: Corral) -> None:
    assert_broken_off_honestly(spoilt(corral, "mortal", stream=True, die_after=3), tokens=3)
    wait_until(lambda: metric(corral, "router_model_restarts_total", model="mortal") == 1, "it has died")
    wait_until(lambda: is_in_state(corral, "ready", "mortal"), "it has been started again, unasked")
    assert content(corral.ask(CHAT, chat("mortal"))) == TEXT


def test_one_stream_that_kills_its_engine_is_no_news_to_another_model(corral: Corral) -> None:
    with open_chat(
        corral, model="steady", stream=True, stand_in={"tokens": 20, "token_delay_s": 0.02}
    ) as calm:
        next_event(calm)
        assert_broken_off_honestly(spoilt(corral, "mortal", stream=True, die_after=1), tokens=1)
        assert events(calm.read())[-1] == DONE


# Deaths before the first byte --------------------------------------------------------------------


def test_a_request_that_loses_its_engine_is_sent_once_more(corral: Corral, journal: Path) -> None:
    body = chat("bereft", stand_in={"headers_delay_s": 0.3})
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(corral.ask, CHAT, body)
        wait_until(lambda: requests_for(journal, "bereft") == 1, "the engine has it")
        os.kill(model_status(corral, "bereft")["pid"], signal.SIGKILL)
        assert content(answer.result()) == TEXT
    assert requests_for(journal, "bereft") == 2


def test_a_request_that_kills_its_engine_gets_two_of_them_and_no_more(corral: Corral, journal: Path) -> None:
    answer = spoilt(corral, "poisoned", die_after=0)
    assert (answer.status, answer.error()["code"]) == (502, "upstream_error")
    assert answer.headers["x-should-retry"] == "false"
    assert requests_for(journal, "poisoned") == 2


def requests_for(journal: Path, model: str) -> int:
    asked = read_events(journal, "request")
    return sum(event["alias"] == model and event["path"] == CHAT for event in asked)


# Silence -----------------------------------------------------------------------------------------


def test_an_engine_that_hangs_is_a_gateway_timeout(silences: Mapping[str, Future[Answer]]) -> None:
    answer = silences["mute"].result()
    error = answer.json()["error"]
    assert (answer.status, error["type"], error["code"]) == (504, "server_error", "upstream_timeout")


def test_a_stream_that_hangs_ends_with_an_error(silences: Mapping[str, Future[Answer]]) -> None:
    body = silences["stuck"].result().body
    assert body.count(b"token") == 2
    assert last_event(body)["error"]["code"] == "upstream_timeout"
    assert DONE.encode() not in body


def test_an_engine_that_is_silent_and_works_is_waited_for(silences: Mapping[str, Future[Answer]]) -> None:
    assert content(silences["thinking"].result()).endswith("token39 ")


def test_a_hung_request_ends_alone(corral: Corral, silences: Mapping[str, Future[Answer]]) -> None:
    silences["mute"].result()
    assert metric(corral, "router_model_restarts_total", model="mute") == 0
    assert content(corral.ask(CHAT, chat("mute"))) == TEXT


# Loading and leaving -----------------------------------------------------------------------------


def test_all_who_come_during_a_slow_load_wait_for_the_same_load(corral: Corral, journal: Path) -> None:
    with ThreadPoolExecutor(5) as clients:
        answers = list(clients.map(lambda _: corral.ask(CHAT, chat("slow")), range(5)))
    assert [content(answer) for answer in answers] == [TEXT] * 5
    assert all(int(answer.headers["x-queue-wait-ms"]) >= 900 for answer in answers)
    assert sum(event["alias"] == "slow" for event in read_events(journal, "start")) == 1


def test_the_gate_is_open_after_all_this(corral: Corral) -> None:
    assert ask(f"{corral.url}/ping").status == ask(f"{corral.health_url}/ping").status == 200
    assert content(corral.ask(CHAT, chat("steady"))) == TEXT
    assert metric(corral, "router_active_requests") == metric(corral, "router_queue_depth") == 0


def test_an_engine_that_ignores_sigterm_is_killed(start_corral: StartCorral, stand_in: Path) -> None:
    corral = start_corral(engine=stand_in, environment={"STAND_IN_IGNORE_SIGTERM": "true"})
    assert content(corral.ask(CHAT, chat())) == TEXT
    pid = model_status(corral)["pid"]
    began = time.monotonic()
    assert corral.stop() == 0
    assert time.monotonic() - began < 8
    assert not is_running(pid)
