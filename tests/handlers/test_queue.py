"""How the queues stand, as it is told to operators and to those who wait."""

from __future__ import annotations

import asyncio

import pytest

from tests.handlers.gatehouse import CHAT, KEY, Gatehouse, request, silence
from tests.in_a_loop import in_a_loop
from tests.models import a_model
from tests.waiting import eventually

PATH = "/v1/queue/stats"
ADMIN, OTHER, NARROW = "sk-admin-0123456789", "sk-other-0123456789", "sk-narrow-012345678"
KEYS = (
    f"alice:{KEY}:rpm=0\nops:{ADMIN}:role=admin,rpm=0\nother:{OTHER}:rpm=0,priority=low\n"
    f"narrow:{NARROW}:rpm=0,models=far*\n"
)


@pytest.fixture
def busy(house: Gatehouse) -> Gatehouse:
    house.models = [a_model("demo"), a_model("far")]
    house.keys = KEYS
    house.slots = 1
    house.backend.script = silence
    return house


async def fill(house: Gatehouse) -> None:
    """One request of alice's runs; one of somebody else's and one more of hers wait."""
    for number, key in enumerate((KEY, OTHER, KEY)):
        client = await house.connect()
        client.send(request("/v1/completions", CHAT, key=key, headers={"x-request-id": f"r{number}"}))
        await has_arrived(house, number + 1)


async def has_arrived(house: Gatehouse, count: int) -> None:
    await eventually(lambda: house.fleet.queue.stats("demo").arrived == count, f"{count} have come")


async def empty(house: Gatehouse) -> None:
    house.fleet.refuse_waiting()
    house.client.close(house.engines.address)
    await eventually(lambda: house.fleet.queue.active == 0, "nobody is left")


@in_a_loop
async def test_an_empty_queue_is_told_by_model(busy: Gatehouse) -> None:
    async with busy.open():
        reply = await busy.ask(PATH)
    nothing = {
        "queue_length": 0,
        "total_requests": 0,
        "total_processed": 0,
        "total_rejected": 0,
        "current_processing": 0,
        "processing": False,
        "slots": 1,
        "oldest_wait_s": 0.0,
        "estimated_wait_s": 2.0,
    }
    assert reply.json() == {
        "summary": {"total_queued": 0, "total_processing": 0, "total_processed": 0, "total_rejected": 0},
        "per_model": {"demo": nothing, "far": nothing},
        "waiting": [],
    }


@in_a_loop
async def test_what_waits_and_runs_is_counted_and_an_admin_sees_everybody(busy: Gatehouse) -> None:
    async with busy.open():
        await fill(busy)
        document = (await busy.ask(PATH, key=ADMIN)).json()
        await empty(busy)
        after = (await busy.ask(PATH, key=ADMIN)).json()
    assert document["summary"] == {
        "total_queued": 2,
        "total_processing": 1,
        "total_processed": 0,
        "total_rejected": 0,
    }
    demo = document["per_model"]["demo"]
    assert (demo["queue_length"], demo["total_requests"], demo["current_processing"]) == (2, 3, 1)
    assert demo["processing"] is True
    assert demo["estimated_wait_s"] == 3.0
    hers, others = document["waiting"]
    assert 0 < others.pop("waited_s") < 20
    assert others == {
        "request_id": "r1",
        "model": "demo",
        "key_id": "other",
        "priority": "low",
        "position": 2,
        "estimated_wait_s": 2.0,
    }
    assert (hers["request_id"], hers["key_id"], hers["position"]) == ("r2", "alice", 1)
    assert after["summary"] == {
        "total_queued": 0,
        "total_processing": 0,
        "total_processed": 1,
        "total_rejected": 0,
    }


@in_a_loop
async def test_a_key_sees_its_own_requests_only(busy: Gatehouse) -> None:
    async with busy.open():
        await fill(busy)
        seen = {key: (await busy.ask(PATH, key=key)).json() for key in (KEY, OTHER, NARROW)}
        await empty(busy)
    waiting = {key: [each["request_id"] for each in document["waiting"]] for key, document in seen.items()}
    assert waiting == {KEY: ["r2"], OTHER: ["r1"], NARROW: []}
    assert list(seen[NARROW]["per_model"]) == ["far"]
    assert seen[NARROW]["summary"]["total_queued"] == 0


@in_a_loop
async def test_without_a_key_nothing_is_told_and_looking_is_no_traffic(busy: Gatehouse) -> None:
    busy.keys = f"alice:{KEY}:rpm=1\n"
    async with busy.open():
        refused = await busy.ask(PATH, key=None)
        assert [(await busy.ask(PATH)).status for _ in range(3)] == [200, 200, 200]
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert busy.counted("router_last_activity_timestamp_seconds") == 0


@in_a_loop
async def test_without_keys_an_address_sees_what_comes_from_it(busy: Gatehouse) -> None:
    busy.environment = {"AUTH_ENABLED": "false"}
    async with busy.open():
        asked = [asyncio.ensure_future(busy.ask("/v1/completions", CHAT, key=None)) for _ in range(2)]
        await eventually(lambda: busy.fleet.queue.depth("demo") == 1, "one waits")
        [waiting] = (await busy.ask(PATH, key=None)).json()["waiting"]
        await empty(busy)
        await asyncio.gather(*asked)
    assert waiting["key_id"] == "127.0.0.1"
