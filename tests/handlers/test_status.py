"""How the gate is: the codes of the probes, the page for Prometheus, and what people see."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from corral.formats import prometheus_text
from corral.formats.status import Phase
from tests.handlers.gatehouse import CHAT, Gatehouse, silence
from tests.in_a_loop import in_a_loop, turns
from tests.waiting import eventually


@in_a_loop
async def test_the_root_says_what_this_is(house: Gatehouse) -> None:
    async with house.open():
        reply = await house.ask("/", key=None)
    assert (reply.status, reply.json()) == (200, {"name": "corral", "version": "1.2.3"})


@pytest.mark.parametrize(
    ("phase", "ping", "ready"),
    [(Phase.STARTING, 204, 503), (Phase.SERVING, 200, 200), (Phase.DRAINING, 503, 503)],
)
@in_a_loop
async def test_probes_need_no_key_and_get_the_codes_of_the_health_port(
    house: Gatehouse, phase: Phase, ping: int, ready: int
) -> None:
    house.environment = {"HEALTH_CHECK_PATH": "/probe"}
    house.phase = phase
    async with house.open():
        codes = {
            path: (await house.ask(path, key=None)).status
            for path in ("/ping", "/probe", "/ready", "/readyz", "/live", "/healthz")
        }
        assert not house.engines.started
    assert codes == {
        "/ping": ping,
        "/probe": ping,
        "/ready": ready,
        "/readyz": ready,
        "/live": 200,
        "/healthz": 200,
    }
    assert house.counted("router_last_activity_timestamp_seconds") == 0


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/live", "GET", 200),
        ("/healthz", "HEAD", 200),
        ("/live", "POST", 503),
        ("/ping", "GET", 200),
        ("/probe", "HEAD", 200),
        ("/ready", "GET", 503),
        ("/v1/models", "GET", 503),
    ],
)
@in_a_loop
async def test_where_there_are_too_many_only_life_is_still_told_of(
    house: Gatehouse, path: str, method: str, status: int
) -> None:
    house.environment = {"HEALTH_CHECK_PATH": "/probe"}
    house.limits = dataclasses.replace(house.limits, connections_max=1)
    async with house.open():
        await house.connect()
        await turns()
        reply = await house.ask(path, method=method, key=None)
        lines = await house.logged()
    assert (reply.status, reply.header("connection")) == (status, "close")
    assert lines[0][-1] == ("-" if status == 200 else "too_many_connections")


@pytest.mark.parametrize("path", ["/ping", "/ready", "/healthz", "/health", "/metrics", "/"])
@in_a_loop
async def test_head_asks_the_same_and_gets_no_body(house: Gatehouse, path: str) -> None:
    async with house.open():
        asked = await house.ask(path, key=None)
        head = await house.ask(path, method="HEAD", key=None)
    assert (head.status, head.body) == (asked.status, b"")
    # The two figures of time in them may differ by a digit.
    assert abs(int(head.header("content-length") or 0) - len(asked.body)) < 50


@in_a_loop
async def test_the_path_for_probes_may_be_one_that_has_a_meaning_of_its_own(house: Gatehouse) -> None:
    house.environment = {"HEALTH_CHECK_PATH": "/health"}
    house.phase = Phase.DRAINING
    async with house.open():
        assert (await house.ask("/health", key=None)).status == 503


@pytest.mark.parametrize("key", [None, "sk-wrong-wrong-wrong"])
@in_a_loop
async def test_health_is_brief_to_strangers(house: Gatehouse, key: str | None) -> None:
    async with house.open():
        reply = await house.ask("/health", key=key)
    document = reply.json()
    assert reply.status == 200
    assert document.keys() == {"status", "version", "uptime_seconds"}
    assert (document["status"], document["version"]) == ("ok", "1.2.3")
    assert document["uptime_seconds"] >= 0


@in_a_loop
async def test_health_with_a_key_says_what_runs(house: Gatehouse) -> None:
    house.backend.script = silence
    async with house.open():
        asked = asyncio.ensure_future(house.ask("/v1/chat/completions", CHAT))
        await eventually(lambda: house.backend.seen, "a request runs")
        document = (await house.ask("/health")).json()
        house.client.close(house.engines.address)
        await asked
    assert (document["active_models"], document["active_requests"]) == (1, 1)
    assert document["server"] == {"status": "ready"}
    assert document["models"]["demo"]["status"] == "ready"
    assert document["summary"] == {"ready": 1}


@in_a_loop
async def test_health_that_is_not_ready_says_so(house: Gatehouse) -> None:
    house.phase = Phase.DRAINING
    async with house.open():
        assert (await house.ask("/health", key=None)).json()["status"] == "not ready"


@in_a_loop
async def test_a_scrape_reads_back_and_counts_what_there_is_just_now(house: Gatehouse) -> None:
    house.slots = 1
    house.backend.script = silence
    async with house.open():
        before = (await house.ask("/metrics", key=None)).body
        tasks = [asyncio.ensure_future(house.ask("/v1/chat/completions", CHAT)) for _ in range(3)]
        await eventually(lambda: house.fleet.queue.depth("demo") == 2, "two wait")
        reply = await house.ask("/metrics", key=None)
        house.fleet.refuse_waiting()
        house.client.close(house.engines.address)
        await asyncio.gather(*tasks)
        after = (await house.ask("/metrics", key=None)).body.decode().splitlines()
    assert b'router_queue_depth{model="demo"} 0\n' in before
    assert reply.header("content-type") == prometheus_text.CONTENT_TYPE
    lines = reply.body.decode().splitlines()
    assert 'router_queue_depth{model="demo"} 2' in lines
    assert 'router_active_requests{model="demo"} 1' in lines
    # Two who wait and the newcomer, a second each until more is known.
    assert 'router_queue_estimated_wait_seconds{model="demo"} 3' in lines
    [oldest] = [line for line in lines if line.startswith('router_queue_oldest_wait_seconds{model="demo"}')]
    assert float(oldest.split()[1]) > 0
    assert "router_open_connections 4" in lines
    assert 'router_model_state{model="demo",state="ready"} 1' in lines
    assert list(prometheus_text.parse(reply.body))
    assert 'router_requests_total{model="demo",status="rejected"} 2' in after
    assert 'router_requests_total{model="demo",status="error"} 1' in after


@in_a_loop
async def test_the_same_figures_come_as_json_for_who_prefers_it(house: Gatehouse) -> None:
    async with house.open():
        reply = await house.ask("/metrics", key=None, headers={"accept": "application/json"})
    assert reply.header("content-type") == "application/json"
    family = reply.json()["router_queue_depth"]
    assert family["samples"] == [{"labels": {"model": "demo"}, "value": 0}]
