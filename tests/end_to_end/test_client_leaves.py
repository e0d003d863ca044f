"""A client that goes away takes its request along: the engine stops, the slot is free, the queue moves up."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from corral.formats.demo_models import SCRIPT
from tests.conftest import StartCorral
from tests.end_to_end.talk import (
    CHAT,
    ENDLESS,
    LARGE_CONTEXT,
    Wire,
    busy_slots,
    chat,
    content,
    engine_log,
    metric,
    request,
    wait_for_queue,
    wire,
)
from tests.support import Corral, running_corral
from tests.waiting import wait_until

# Promised: "a stream stops generating within a second".
AT_ONCE_S = 1.0


@pytest.fixture(scope="module")
def corral(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, demo_files: Path
) -> Iterator[Corral]:
    """One slot, and a context that a stream takes minutes to fill."""
    with running_corral(
        tmp_path_factory.mktemp("leaves"),
        llama_server,
        demo_files,
        config={"models": {"demo": {"model_path": "demo.gguf", "flags": LARGE_CONTEXT}}},
    ) as instance:
        yield instance


def close(connection: Wire) -> None:
    connection.close()


def half_close(connection: Wire) -> None:
    connection.socket.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def generating(corral: Corral, **options: Any) -> Iterator[Wire]:
    """A connection whose request the engine is working on."""
    with wire(corral) as connection:
        connection.say(request(corral, chat(**{**ENDLESS, **options})))
        wait_until(lambda: metric(corral, "router_active_requests", model="demo") == 1, "it has the slot")
        wait_until(lambda: busy_slots(corral) == 1, "the engine works on it")
        yield connection


def assert_all_is_free_within(corral: Corral, seconds: float) -> None:
    wait_until(lambda: busy_slots(corral) == 0, "the engine is idle", seconds)
    wait_until(lambda: metric(corral, "router_active_requests", model="demo") == 0, "the slot is free", 0.2)


@pytest.mark.parametrize("leave", [close, half_close])
def test_a_stream_whose_client_leaves_stops_at_once(corral: Corral, leave: Callable[[Wire], None]) -> None:
    cancelled = metric(corral, "router_requests_total", status="cancelled")
    with generating(corral) as connection:
        leave(connection)
        assert_all_is_free_within(corral, AT_ONCE_S)
    assert metric(corral, "router_requests_total", status="cancelled") == cancelled + 1


@pytest.mark.parametrize("leave", [close, half_close])
def test_who_leaves_the_queue_makes_room_in_it_at_once(corral: Corral, leave: Callable[[Wire], None]) -> None:
    with generating(corral) as first, wire(corral) as second, wire(corral) as third:
        for connection in (second, third):
            connection.say(request(corral, chat()))
        wait_for_queue(corral, 2)
        leave(second)
        wait_until(
            lambda: metric(corral, "router_queue_depth", model="demo") == 1, "only the third waits", AT_ONCE_S
        )
        assert busy_slots(corral) == 1
        first.close()
        assert SCRIPT.encode()[:20] in third.hear().body


def test_an_abandoned_request_for_a_whole_answer_stops_too(corral: Corral) -> None:
    with generating(corral, stream=False) as connection:
        wait_until(lambda: unfinished_tasks(corral), "the engine's log tells of it")
        connection.close()
        wait_until(lambda: not unfinished_tasks(corral), "the engine stops", 3.0)
    assert content(corral.ask(CHAT, chat())) == SCRIPT


def unfinished_tasks(corral: Corral) -> set[str]:
    """What the engine works on, read off its log: one that is asked for its slots again and again does not
    come to look whether the client of a whole answer is still there (measured)."""
    log = engine_log(corral)
    begun = re.findall(r"task (\d+) \| processing task", log)
    return set(begun) - set(re.findall(r"task (\d+) \| stop processing", log))


def test_whoever_comes_after_an_abandoned_request_is_served(corral: Corral) -> None:
    with generating(corral, stream=False) as connection, wire(corral) as next_one:
        next_one.say(request(corral, chat()))
        wait_for_queue(corral, 1)
        connection.close()
        assert next_one.hear().status == 200


def test_a_client_that_leaves_while_it_uploads_is_forgotten(corral: Corral) -> None:
    body = request(corral, chat())
    with wire(corral) as connection:
        open_connections = metric(corral, "router_open_connections")
        connection.say(body[:-10])
    wait_until(lambda: metric(corral, "router_open_connections") < open_connections, "the connection is gone")
    assert metric(corral, "router_active_requests") == metric(corral, "router_queue_depth") == 0


def test_closing_a_stream_of_the_openai_client_stops_the_engine(corral: Corral) -> None:
    with openai.OpenAI(base_url=f"{corral.url}/v1", api_key=corral.key, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Go on for ever."}],
            stream=True,
            extra_body={"ignore_eos": True},
        )
        with stream:
            next(iter(stream))
            assert busy_slots(corral) == 1
        assert_all_is_free_within(corral, AT_ONCE_S)


def test_a_client_that_stops_reading_is_closed_and_slows_down_nobody_else(
    start_corral: StartCorral, stand_in: Path
) -> None:
    corral = start_corral(engine=stand_in, environment={"CLIENT_WRITE_TIMEOUT": "1"})
    flood: dict[str, Any] = {"stream": True, "stand_in": {"tokens": 1_000_000}}
    with wire(corral) as reads_nothing:
        reads_nothing.say(request(corral, chat(**flood)))
        wait_until(lambda: metric(corral, "router_active_requests", model="demo") == 1, "it has the slot")
        assert corral.ask("/v1/embeddings", {"model": "demo-embed", "input": "text"}).status == 200
        wait_until(
            lambda: metric(corral, "router_active_requests", model="demo") == 0,
            "CLIENT_WRITE_TIMEOUT has ended the stream",
        )
        # Bounded buffers: what the client did not take has not been heaped up here.
        assert metric(corral, "process_resident_memory_bytes") < 60 * 2**20
    assert corral.ask(CHAT, chat()).status == 200
