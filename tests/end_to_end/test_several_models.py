"""A herd: models side by side, taking turns where they don't fit together, and leaving when idle."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from corral.formats.demo_models import SCRIPT
from tests.conftest import StartCorral
from tests.end_to_end.talk import (
    CHAT,
    DONE,
    ENDLESS,
    LARGE_CONTEXT,
    chat,
    content,
    events,
    is_in_state,
    metric,
    model_status,
    next_event,
    open_chat,
    streamed_text,
    wait_for_queue,
)
from tests.support import Answer, Corral, ask, processes_naming, running_corral
from tests.waiting import wait_until

ALIASES = ["gpt-4o-mini", "org/fast"]
MODELS = {
    "demo": {"model_path": "demo.gguf", "aliases": ALIASES, "flags": ["--parallel", "2"]},
    "demo-embed": {"model_path": "demo-embed.gguf", "params": {"embedding": True}},
}
TWINS = {name: {"model_path": "demo.gguf", "flags": LARGE_CONTEXT} for name in ("one", "two")}
ONE_AT_A_TIME = {"max_concurrent_models": 1, "min_residency_sec": 0.1}
EMBED = "/v1/embeddings"
EMBEDDING = {"model": "demo-embed", "input": "a herd"}


@pytest.fixture(scope="module")
def corral(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, demo_files: Path
) -> Iterator[Corral]:
    with running_corral(
        tmp_path_factory.mktemp("herd"),
        llama_server,
        demo_files,
        config={"system": {"preload_models": ["*"]}, "default_model": "demo", "models": MODELS},
    ) as instance:
        yield instance


def engines(corral: Corral) -> list[str]:
    """The command lines of the llama-servers that run."""
    commands = processes_naming(corral.directory).values()
    return [command for command in commands if "llama-server" in command and "gateway.py" not in command]


def test_all_are_preloaded_each_on_a_port_of_its_own(corral: Corral) -> None:
    both = [model_status(corral, name) for name in MODELS]
    assert [status["status"] for status in both] == ["ready", "ready"]
    assert len({status["port"] for status in both}) == 2
    for name, status in zip(MODELS, both, strict=True):
        assert ask(f"http://127.0.0.1:{status['port']}/v1/models").json()["data"][0]["id"] == name


def test_they_answer_side_by_side(corral: Corral) -> None:
    with open_chat(corral, **ENDLESS) as stream:
        next_event(stream)
        assert len(corral.ask(EMBED, EMBEDDING).json()["data"][0]["embedding"]) == 64
        assert content(corral.ask(CHAT, chat())) == SCRIPT


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_answered_with_the_name(corral: Corral, alias: str) -> None:
    answer = corral.ask(CHAT, chat(alias))
    assert content(answer) == SCRIPT
    assert answer.json()["model"] == "demo"
    with open_chat(corral, model=alias, stream=True) as stream:
        parts = events(stream.read())
    assert {part["model"] for part in parts if part != DONE} == {"demo"}
    assert corral.ask(f"/v1/models/{alias}").json()["id"] == "demo"


def test_who_names_no_model_gets_the_default(corral: Corral) -> None:
    body = chat()
    del body["model"]
    answer = corral.ask(CHAT, body)
    assert (content(answer), answer.json()["model"]) == (SCRIPT, "demo")


@pytest.mark.parametrize("name", ["", None, 7, ["demo"]], ids=repr)
def test_a_name_that_is_none_is_refused_and_not_taken_for_the_default(corral: Corral, name: object) -> None:
    answer = corral.ask(CHAT, chat() | {"model": name})
    assert answer.status == 400
    assert answer.json()["error"]["param"] == "model"


def test_many_clients_at_once_all_get_their_own_answer(corral: Corral) -> None:
    def one(number: int) -> str:
        if number % 3 == 0:
            return str(len(corral.ask(EMBED, EMBEDDING).json()["data"][0]["embedding"]))
        if number % 3 == 1:
            return content(corral.ask(CHAT, chat()))
        with open_chat(corral, stream=True) as stream:
            *parts, last = events(stream.read())
        assert last == DONE
        return streamed_text(parts)

    with ThreadPoolExecutor(30) as clients:
        answers = list(clients.map(one, range(60)))
    assert answers == ["64", SCRIPT, SCRIPT] * 20
    assert metric(corral, "router_active_requests") == metric(corral, "router_queue_depth") == 0


def test_with_room_for_one_the_models_take_turns(start_corral: StartCorral) -> None:
    corral = start_corral(config={"system": ONE_AT_A_TIME, "models": MODELS})
    for turn in range(2):
        assert content(corral.ask(CHAT, chat())) == SCRIPT
        assert [model_status(corral, name)["status"] for name in MODELS] == ["ready", "off"]
        assert corral.ask(EMBED, EMBEDDING).status == 200
        assert [model_status(corral, name)["status"] for name in MODELS] == ["off", "ready"]
        assert len(engines(corral)) == 1
        assert metric(corral, "router_model_evictions_total", model="demo", reason="room") == turn + 1


def test_a_busy_model_finishes_what_runs_before_it_makes_room(start_corral: StartCorral) -> None:
    corral = start_corral(config={"system": ONE_AT_A_TIME, "models": TWINS})
    with ThreadPoolExecutor(2) as clients:
        with open_chat(corral, model="one", **ENDLESS) as stream:
            next_event(stream)
            other = clients.submit(corral.ask, CHAT, chat("two"))
            wait_until(lambda: is_in_state(corral, "draining", "one"), "the first is to go")
            for _ in range(100):
                next_event(stream)
            assert not other.done()
            late = clients.submit(corral.ask, CHAT, chat("one"))
            wait_for_queue(corral, 1, "one")
        assert content(other.result()) == SCRIPT
        assert content(late.result()) == SCRIPT


def test_clients_of_two_models_in_one_place_are_all_served(start_corral: StartCorral) -> None:
    corral = start_corral(config={"system": ONE_AT_A_TIME, "models": TWINS})

    def one(number: int) -> Answer:
        return corral.ask(CHAT, chat("one" if number % 2 else "two"))

    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(one, range(24)))
    assert [content(answer) for answer in answers] == [SCRIPT] * 24
    assert len(engines(corral)) == 1


def test_an_idle_model_leaves_and_comes_back_when_it_is_asked_for(start_corral: StartCorral) -> None:
    pinned = TWINS["two"] | {"pinned": True}
    system = {"idle_timeout_sec": 0.5, "preload_models": ["two"]}
    corral = start_corral(config={"system": system, "models": TWINS | {"two": pinned}})
    assert [model_status(corral, name)["status"] for name in TWINS] == ["off", "ready"]
    for turn in range(2):
        assert content(corral.ask(CHAT, chat("one"))) == SCRIPT
        assert is_in_state(corral, "ready", "one")
        wait_until(lambda: is_in_state(corral, "off", "one"), "it is unloaded")
        assert metric(corral, "router_model_evictions_total", model="one", reason="idle") == turn + 1
        assert len(engines(corral)) == 1
    assert is_in_state(corral, "ready", "two"), "a pinned model stays"


def test_a_model_that_works_is_not_idle(start_corral: StartCorral) -> None:
    corral = start_corral(config={"system": {"idle_timeout_sec": 0.2}, "models": TWINS})
    with open_chat(corral, model="one", **ENDLESS) as stream:
        next_event(stream)
        assert content(corral.ask(CHAT, chat("two"))) == SCRIPT
        wait_until(lambda: is_in_state(corral, "off", "two"), "the other has been unloaded")
        assert is_in_state(corral, "ready", "one")
        next_event(stream)
