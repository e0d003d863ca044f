"""The queue from outside: classes, limits of keys, streams that wait, slots that nobody waits for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from corral.formats.demo_models import SCRIPT
from tests.conftest import StartCorral
from tests.end_to_end.talk import (
    CHAT,
    DONE,
    ENDLESS,
    LARGE_CONTEXT,
    busy_slots,
    chat,
    events,
    metric,
    request,
    streamed_text,
    wait_for_queue,
    wire,
)
from tests.support import KEYS_FILE, Answer, Corral, ask, running_corral
from tests.waiting import wait_until

LIMITED, CAPPED = "sk-limited-0123456789", "sk-capped-0123456789"
KEYS = (
    f"{KEYS_FILE}limited:{LIMITED}:rpm=0,max_parallel=1,max_waiting=1\ncapped:{CAPPED}:rpm=0,priority=low\n"
)
# On the stand-in: holds its slot until the test closes the connection.
HOLDS: dict[str, Any] = {"stream": True, "stand_in": {"tokens": 100_000, "token_delay_s": 0.05}}


@pytest.fixture
def corral(start_corral: StartCorral, stand_in: Path) -> Corral:
    return start_corral(engine=stand_in, keys=KEYS, environment={"SSE_PING_S": "0.3"})


@contextlib.contextmanager
def held_slots(corral: Corral, count: int = 1) -> Iterator[None]:
    """So many streams that go on until the end of the block."""
    with contextlib.ExitStack() as streams:
        for _ in range(count):
            streams.enter_context(wire(corral)).say(request(corral, chat(**HOLDS)))
        wait_until(lambda: metric(corral, "router_active_requests") == count, "they have their slots")
        yield


def ask_later(
    pool: ThreadPoolExecutor, corral: Corral, key: str | None = None, **options: Any
) -> Future[Answer]:
    headers = {"Authorization": f"Bearer {key or corral.key}"} | options.pop("headers", {})
    return pool.submit(ask, corral.url + CHAT, chat(**options), headers=headers)


def waiting(corral: Corral) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = corral.ask("/v1/queue/stats").json()["waiting"]
    return found


def test_a_higher_class_is_served_first_whoever_came_first(corral: Corral) -> None:
    order: list[str] = []
    with ThreadPoolExecutor() as pool, held_slots(corral):
        for number, name in enumerate(("low", "normal", "high", "HIGH", "nonsense"), 1):
            slow: dict[str, Any] = {"stand_in": {"headers_delay_s": 0.1}}
            done = ask_later(pool, corral, headers={"X-Request-Priority": name}, **slow)
            done.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
            wait_for_queue(corral, number)
        assert [each["priority"] for each in waiting(corral)] == [
            "high",
            "high",
            "normal",
            "normal",
            "low",
        ]
        assert [each["position"] for each in waiting(corral)] == [1, 2, 3, 4, 5]
    assert order == ["high", "HIGH", "normal", "nonsense", "low"]
    assert metric(corral, "router_queue_wait_seconds_count", model="demo", priority="high") == 2


def test_a_key_gets_no_better_class_than_it_was_given(corral: Corral) -> None:
    with ThreadPoolExecutor() as pool, held_slots(corral):
        ask_later(pool, corral, CAPPED, headers={"X-Request-Priority": "high"})
        wait_for_queue(corral, 1)
        assert [each["priority"] for each in waiting(corral)] == ["low"]


def test_a_key_runs_as_many_as_it_may_and_waits_with_as_many_as_it_may(
    start_corral: StartCorral, stand_in: Path
) -> None:
    corral = start_corral(engine=stand_in, keys=KEYS, config={"system": {"default_parallel": 4}})
    with ThreadPoolExecutor() as pool:
        slow = {"stand_in": {"tokens": 1, "headers_delay_s": 1.0}}
        first = ask_later(pool, corral, LIMITED, **slow)
        wait_until(lambda: metric(corral, "router_active_requests", model="demo") == 1, "the first runs")
        second = ask_later(pool, corral, LIMITED, **slow)
        wait_for_queue(corral, 1)  # though three slots are free
        third = ask_later(pool, corral, LIMITED)
        answer = third.result()
        assert (answer.status, answer.json()["error"]["code"]) == (429, "concurrency_limit_exceeded")
        assert answer.headers["retry-after"] is not None
        assert ask_later(pool, corral).result().status == 200, "others are not concerned"
        assert [first.result().status, second.result().status] == [200, 200]
        assert int(second.result().headers["x-queue-wait-ms"]) > 0


def test_a_request_waits_no_longer_than_it_wants_to(corral: Corral) -> None:
    with held_slots(corral):
        answer = corral.ask(CHAT, chat(), X_Request_Timeout="0.4")
    assert (answer.status, answer.json()["error"]["code"]) == (504, "queue_timeout")
    assert corral.ask(CHAT, chat(), X_Request_Timeout="soon").status == 400


def test_a_full_queue_says_when_to_come_back(start_corral: StartCorral, stand_in: Path) -> None:
    corral = start_corral(engine=stand_in, config={"system": {"max_queue_size_per_model": 3}})
    assert corral.ask(CHAT, chat(stand_in={"headers_delay_s": 1.5})).status == 200  # so long they take here
    with ThreadPoolExecutor() as pool, held_slots(corral):
        for _ in range(3):
            ask_later(pool, corral)
        wait_for_queue(corral, 3)
        refused = [corral.ask(CHAT, chat()) for _ in range(3)]
    assert {(each.status, each.json()["error"]["code"]) for each in refused} == {(503, "queue_full")}
    told_ms = [int(each.headers["retry-after-ms"]) for each in refused]
    assert told_ms[0] >= 1000
    assert told_ms == sorted(set(told_ms)), "each is told a time of its own"
    assert int(refused[0].headers["retry-after"]) * 1000 >= told_ms[0]


# Streams that wait ---------------------------------------------------------------------------------


def test_a_stream_that_waits_is_told_where_it_stands(corral: Corral) -> None:
    with wire(corral) as waits:
        with held_slots(corral):
            waits.say(request(corral, chat(stream=True)))
            wait_until(lambda: b": queued position=1\n\n" in waits.peek(), "it is told its position")
        body = waits.hear().body
    parts = events(body)
    assert parts[-1] == DONE
    assert streamed_text(parts).startswith("token0")


def test_the_openai_client_reads_a_stream_that_had_to_wait(
    tmp_path: Path, llama_server: Path, demo_files: Path
) -> None:
    """On the real engine; a stream that waits gets comments, and its reader skips them."""
    config = {"models": {"demo": {"model_path": "demo.gguf", "flags": LARGE_CONTEXT}}}
    options: dict[str, Any] = {"environment": {"SSE_PING_S": "0.2"}, "config": config}
    with (
        running_corral(tmp_path, llama_server, demo_files, **options) as corral,
        openai.OpenAI(base_url=f"{corral.url}/v1", api_key=corral.key, max_retries=0) as client,
        ThreadPoolExecutor() as pool,
    ):
        with wire(corral) as holder:
            holder.say(request(corral, chat(**ENDLESS)))
            wait_until(lambda: busy_slots(corral) == 1, "the engine works")
            reader = pool.submit(read_stream, client)
            wait_for_queue(corral, 1)
            wait_until(lambda: waiting(corral)[0]["waited_s"] > 0.5, "it was told twice")
        assert reader.result(20.0) == SCRIPT


def read_stream(client: openai.OpenAI) -> str:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Who?"}]
    with client.chat.completions.create(model="demo", messages=messages, stream=True) as stream:
        return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)


# Slots that nobody waits for -----------------------------------------------------------------------


def test_an_abandoned_answer_keeps_its_slot_for_as_long_as_the_engine_works_on_it(
    tmp_path: Path, llama_server: Path, demo_files: Path
) -> None:
    """Beside a stream the real engine goes on with an answer that nobody waits for any more."""
    flags = ["--ctx-size", "131072", "--parallel", "2"]
    config = {"models": {"demo": {"model_path": "demo.gguf", "flags": flags}}}
    with running_corral(tmp_path, llama_server, demo_files, config=config) as corral:
        with wire(corral) as stream:
            stream.say(request(corral, chat(**ENDLESS)))
            wait_until(lambda: busy_slots(corral) == 1, "the stream runs")
            with wire(corral) as whole:
                whole.say(request(corral, chat(max_tokens=8_000, ignore_eos=True)))
                wait_until(lambda: busy_slots(corral) == 2, "the other one runs beside it")
            # It has left. While the engine says that both slots work, both are in use.
            cancelled = metric(corral, "router_requests_total", status="cancelled")
            wait_until(lambda: metric(corral, "router_requests_total", status="cancelled") >= 1, "it is gone")
            assert cancelled <= 1
            if busy_slots(corral) == 2:
                assert metric(corral, "router_active_requests", model="demo") == 2
            wait_until(
                lambda: metric(corral, "router_active_requests", model="demo") == 1, "the slot is free", 60.0
            )
            assert busy_slots(corral) == 1
        wait_until(lambda: metric(corral, "router_active_requests", model="demo") == 0, "all is free", 5.0)
