"""What is kept of a request: each column of the access log by value, and the exact lines of the metrics."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re

import pytest

from corral import errors
from corral.drivers import clock
from corral.handlers.record import Entry, json_line, text_line
from tests.handlers.gatehouse import CHAT, KEY, Gatehouse, answering, read_reply, request, silence
from tests.in_a_loop import in_a_loop
from tests.waiting import eventually

ENTRY = Entry(
    key_id="alice",
    method="POST",
    path="/v1/completions",
    status=200,
    model="org/phi",
    duration_s=1.23456,
    queue_wait_s=0.5,
    bytes_sent=42,
    client="192.0.2.7",
    request_id="r-1",
)


def test_a_line_of_text_has_ten_columns() -> None:
    assert text_line("2026-01-02T03:04:05.678Z", ENTRY) == (
        b"2026-01-02T03:04:05.678Z | alice | POST /v1/completions | 200 | org/phi | 1234.6 ms | 42 B"
        b" | 192.0.2.7 | r-1 | -\n"
    )
    refused = Entry("-", "-", "-", 400, error="invalid_request")
    assert text_line("now", refused) == b"now | - | - - | 400 | - | 0.0 ms | 0 B | - | - | invalid_request\n"


def test_a_line_of_json_has_the_same_by_name() -> None:
    line = json_line("now", ENTRY)
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "time": "now",
        "key_id": "alice",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "model": "org/phi",
        "duration_ms": 1234.6,
        "queue_ms": 500.0,
        "bytes": 42,
        "client": "192.0.2.7",
        "request_id": "r-1",
        "error": None,
    }
    assert json.loads(json_line("now", Entry("-", "-", "-", 400)))["model"] is None


@in_a_loop
async def test_each_request_leaves_one_line_without_its_key_its_query_and_its_words(house: Gatehouse) -> None:
    house.backend.script = answering(b"answer of the engine")
    async with house.open():
        reply = await house.ask(
            f"/v1/chat/completions?api_key={KEY}&a=b", CHAT, headers={"x-request-id": "r-1"}
        )
        [line] = await house.logged()
    when, *columns = line
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", when)
    duration = columns.pop(4)
    assert re.fullmatch(r"\d+\.\d ms", duration)
    assert columns == [
        "alice",
        "POST /v1/chat/completions",
        "200",
        "demo",
        f"{len(reply.body)} B",
        "127.0.0.1",
        "r-1",
        "-",
    ]
    everything = "".join(house.access_log.lines)
    assert not [secret for secret in (KEY, "Hello", "answer of", "a=b") if secret in everything]


@in_a_loop
async def test_the_time_of_a_line_is_the_clocks_to_the_millisecond(
    house: Gatehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house.open():
        for now in (1_700_000_000.0, 1_700_000_000.9999, 1_700_000_001.25):
            monkeypatch.setattr(clock, "wall", lambda now=now: now)
            await house.ask("/ping")
        times = [line[0] for line in await house.logged(3)]
    assert times == ["2023-11-14T22:13:20.000Z", "2023-11-14T22:13:20.999Z", "2023-11-14T22:13:21.250Z"]


@in_a_loop
async def test_json_lines_are_written_where_they_are_wanted(house: Gatehouse) -> None:
    house.environment = {"LOG_FORMAT": "json"}
    async with house.open():
        await house.ask("/v1/chat/completions", CHAT)
        await eventually(lambda: house.access_log.lines, "a line")
    document = json.loads(house.access_log.lines[0])
    assert (document["status"], document["model"], document["error"]) == (200, "demo", None)


@in_a_loop
async def test_bytes_that_are_no_request_leave_a_line_too(house: Gatehouse) -> None:
    async with house.open():
        client = await house.connect()
        client.send(b"\x16\x03\x01 this is TLS\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
        [line] = await house.logged()
    assert line[1:5] == ["-", "- -", "400", "-"]
    assert (line[7], line[9]) == ("127.0.0.1", "invalid_request")
    assert house.counted("router_rejections_total", reason="invalid_request", key_id="-") == 1


@in_a_loop
async def test_a_connection_too_many_leaves_a_line_too(house: Gatehouse) -> None:
    house.limits = dataclasses.replace(house.limits, connections_max=1)
    async with house.open():
        first = await house.connect()
        first.send(request("/ping"))
        await read_reply(first)
        assert (await house.ask("/ready")).status == 503
        assert [(line[3], line[9]) for line in await house.logged(2)] == [
            ("200", "-"),
            ("503", "too_many_connections"),
        ]


# Metrics -----------------------------------------------------------------------------------------


@in_a_loop
async def test_the_lines_of_a_success_are_these(house: Gatehouse) -> None:
    async with house.open():
        await house.ask("/v1/chat/completions", CHAT)
        await house.logged()
        counted = house.scraped("router_requests_total", "router_rejections_total")
        assert counted == ['router_requests_total{model="demo",status="success"} 1']
        for name in ("request_duration_seconds", "time_to_first_token_seconds"):
            assert house.scraped(f"router_{name}_count") == [f'router_{name}_count{{model="demo"}} 1']
        assert house.scraped("router_queue_wait_seconds_count") == [
            'router_queue_wait_seconds_count{model="demo",priority="normal"} 1'
        ]
        assert house.scraped("router_overhead_seconds_count") == ["router_overhead_seconds_count 1"]
        assert clock.wall() - house.counted("router_last_activity_timestamp_seconds") < 60


@in_a_loop
async def test_a_request_is_activity_from_when_it_comes(house: Gatehouse) -> None:
    house.backend.script = silence
    async with house.open():
        client = await house.connect()
        client.send(request("/v1/chat/completions", CHAT))
        await eventually(lambda: len(house.backend.seen) == 1, "the engine has the request")
        house.gate.recorder.flush()  # as a scrape does it
        assert clock.wall() - house.counted("router_last_activity_timestamp_seconds") < 60
        client.close()
        await house.logged()


@in_a_loop
async def test_each_outcome_has_its_word(house: Gatehouse) -> None:
    path = "/v1/chat/completions"
    async with house.open():
        await house.ask(path, CHAT)
        house.backend.script = answering(b"no", 400)
        await house.ask(path, CHAT)
        house.backend.script = silence
        client = await house.connect()
        client.send(request(path, CHAT))
        await eventually(lambda: len(house.backend.seen) == 3, "the engine has the request")
        client.close()
        await house.ask(path, {"model": "gone"})
        await house.ask(path, {"model": "gone"}, key="sk-wrong-wrong")
        await house.logged(5)
    assert set(house.scraped("router_requests_total")) == {
        'router_requests_total{model="demo",status="success"} 1',
        'router_requests_total{model="demo",status="error"} 1',
        'router_requests_total{model="demo",status="cancelled"} 1',
        'router_requests_total{model="unknown",status="rejected"} 2',
    }
    assert set(house.scraped("router_rejections_total")) == {
        'router_rejections_total{reason="model_not_found",key_id="alice"} 1',
        'router_rejections_total{reason="invalid_api_key",key_id="-"} 1',
    }


@in_a_loop
async def test_what_a_client_sends_never_becomes_a_label(house: Gatehouse) -> None:
    async with house.open():
        for name in ("x" * 100, 'a"b', "demo2"):
            await house.ask("/v1/chat/completions", {"model": name})
        await house.logged(3)
    assert house.scraped("router_requests_total") == [
        'router_requests_total{model="unknown",status="rejected"} 3'
    ]


@in_a_loop
async def test_strangers_and_requests_for_nothing_do_not_keep_a_machine_awake(house: Gatehouse) -> None:
    async with house.open():
        await house.ask("/v1/chat/completions", CHAT, key="sk-wrong-wrong")
        await house.ask("/v1/chat/completions", {"model": "gone"})
        await house.logged(2)
    assert house.counted("router_last_activity_timestamp_seconds") == 0


@pytest.mark.parametrize("path", ["/ping", "/metrics", "/health", "/v1/models", "/nowhere"])
@in_a_loop
async def test_probes_scrapes_and_looks_are_no_traffic(house: Gatehouse, path: str) -> None:
    async with house.open():
        await house.ask(path)
        await house.logged()
    assert house.scraped("router_requests_total", "router_rejections_total") == []
    assert house.counted("router_last_activity_timestamp_seconds") == 0


@in_a_loop
async def test_a_wait_that_ends_in_a_refusal_is_a_rejection(house: Gatehouse) -> None:
    house.slots = 1
    house.backend.script = silence
    async with house.open():
        running, waiting = await house.connect(), asyncio.ensure_future(house.ask("/v1/completions", CHAT))
        running.send(request("/v1/completions", CHAT))
        await eventually(lambda: house.fleet.queue.depth("demo") == 1, "one runs and one waits")
        house.fleet.refuse_waiting()
        house.client.close(house.engines.address)
        replies = {(await waiting).status, (await read_reply(running)).status}
        assert replies == {502, 503}
        await house.logged(2)
    assert set(house.scraped("router_requests_total")) == {
        'router_requests_total{model="demo",status="success"} 0',
        'router_requests_total{model="demo",status="rejected"} 1',
        'router_requests_total{model="demo",status="error"} 1',
    }
    assert house.counted("router_rejections_total", reason=errors.ShuttingDown.code, key_id="alice") == 1
