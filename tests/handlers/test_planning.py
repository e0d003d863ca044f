"""Questions about memory over a real socket, with the real guard over a card that is a value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corral.catalogue import Catalogue
from corral.drivers import host_memory
from corral.drivers.gpu_probe import GpuReading
from corral.fleet import Fleet, FleetMemory
from corral.formats.learned import Learned, LearnedKey
from corral.policy import launch
from corral.policy.scheduler import ModelLimits, Terms, Wish
from tests.handlers.gatehouse import Gatehouse
from tests.in_a_loop import in_a_loop
from tests.models import a_model
from tests.policy.memory.files import MIB, transformer
from tests.settings.desk import Desk
from tests.waiting import eventually

GIB = 1 << 30
PLAN = "/v1/models/plan"
# With 4096 tokens 804 MiB on one card; a tenth is added while nothing is learnt.
FILE = transformer(layers=8, width=2048, heads=16, kv_heads=4, head=128, feed_forward=5632)
RESERVED_MIB = 884
KEYS = "alice:sk-alice-0123456789:rpm=2\nnarrow:sk-narrow-0123456789:rpm=0,models=b\n"
NARROW = "sk-narrow-0123456789"


class Card:
    """One GPU, or none, of which nobody uses anything that the test does not say."""

    def __init__(self, mib: int) -> None:
        self.mib = mib
        self.used_mib = 0

    def read(self) -> tuple[GpuReading, ...]:
        return (
            (GpuReading("GPU-a", 0, "a card", self.mib * MIB, self.used_mib * MIB, {}),) if self.mib else ()
        )


class Store:
    def __init__(self) -> None:
        self.known: dict[LearnedKey, Learned] = {}

    def recall(self, key: LearnedKey) -> Learned | None:
        return self.known.get(key)

    def remember(self, key: LearnedKey, learned: Learned) -> None:
        self.known[key] = learned


class Guarded(Gatehouse):
    """A gatehouse whose fleet has the real guard, over models whose files are large and empty."""

    def __init__(self, root: Path, card_mib: int) -> None:
        super().__init__(root)
        self.card = Card(card_mib)
        self.cpu_fallback = False
        self.models_max = 9
        self.add("a")
        self.add("b")
        self.models = self.models[1:]  # without the one that every house has

    def add(self, name: str, *flags: str) -> None:
        path = self.root / f"{name}.gguf"
        FILE.write(path)
        flags = ("--parallel", "1", *flags)
        self.models.append(a_model(name, path=path, size_bytes=path.stat().st_size, flags=flags))

    def _fleet(self, queue_timeout_s: float) -> Fleet:
        (self.root / "guard").mkdir()
        settings = Desk(self.root / "guard").load({"gpu": {"cpu_fallback": self.cpu_fallback}}, {})
        models = {model.name: model for model in self.models}

        def command(name: str) -> tuple[str, ...]:
            return launch.command(models[name], llama_server="x", host="", port=0, default_parallel=1)

        catalogue = Catalogue(models, {}, ())
        memory = FleetMemory(settings, catalogue, command, {}, self.card, Store(), self.metrics)  # type: ignore[arg-type]
        return Fleet(
            {name: ModelLimits(self.slots, False, 10) for name in models},
            self.engines,
            memory,
            self.metrics,
            models_max=self.models_max,
            idle_timeout_s=None,
            terms=Terms(30.0, 20.0, queue_timeout_s),
            request_timeout_s=120.0,
            look_every_s=60.0,
        )

    async def plan(self, model: str) -> Any:
        reply = await self.ask(PLAN, {"model": model})
        assert reply.status == 200, reply.body
        return reply.json()

    async def load(self, model: str) -> None:
        reply = await self.ask("/v1/models/load", {"model": model})
        assert reply.status == 200, reply.body


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "read", lambda: host_memory.HostMemory(64 * GIB, 60 * GIB))


# A dry run of a load ------------------------------------------------------------------------------


@in_a_loop
async def test_a_plan_says_where_a_model_would_go_and_loads_nothing(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 1000)
    async with house.open():
        plan = await house.plan("a")
        assert not house.engines.started
        assert house.fleet.statuses()["a"].state.value == "off"
    gpu, host = plan["devices"]
    assert (plan["model"], plan["verdict"], plan["status"], plan["problem"]) == ("a", "load", "off", None)
    assert (gpu["device"], gpu["name"], gpu["source"]) == ("GPU-a", "GPU 0", "predicted")
    assert gpu["bytes"] // MIB == RESERVED_MIB
    assert gpu["parts"]["kv_cache"] == 64 * MIB
    assert sum(gpu["parts"].values()) == gpu["predicted_bytes"] == pytest.approx(gpu["bytes"] / 1.1, rel=1e-6)
    assert host["name"] == "main memory"
    assert (plan["layers"], plan["gpu_layers"], plan["context_tokens"], plan["slots"]) == (9, 9, 4096, 1)
    assert set(plan["predicted"]) == {"weights", "kv_cache", "compute", "context"}


@in_a_loop
async def test_a_load_does_what_the_plan_has_said(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 1000)
    async with house.open():
        before = await house.plan("a")
        await house.load("a")
        after = await house.plan("a")
        assert (before["verdict"], after["verdict"], after["status"]) == ("load", "loaded", "ready")
        assert after["devices"] == before["devices"]
        assert after["message"].startswith("'a' has its place on GPU 0 (")


@in_a_loop
async def test_a_plan_says_who_would_be_evicted_and_nobody_is(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 1000)
    async with house.open():
        await house.load("a")
        plan = await house.plan("b")
        assert (plan["verdict"], plan["evict"], plan["wait_for"]) == ("evict", ["a"], [])
        assert [device["name"] for device in plan["devices"]] == ["GPU 0", "main memory"]
        assert house.fleet.statuses()["a"].state.value == "ready"


@in_a_loop
async def test_a_plan_says_who_would_be_waited_for(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 1000)
    async with house.open():
        await house.load("a")
        lease = house.fleet.lease(Wish("a", "somebody"))
        house.fleet.arrive(lease)
        plan = await house.plan("b")
        assert (plan["verdict"], plan["evict"], plan["wait_for"]) == ("wait", [], ["a"])
        assert "models that are in use hold the memory (a)" in plan["message"]
        house.fleet.depart(lease)


@in_a_loop
async def test_as_many_models_as_may_be_cost_one_its_place_with_memory_enough(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 9000)
    house.models_max = 1
    async with house.open():
        await house.load("a")
        plan = await house.plan("b")
        assert (plan["verdict"], plan["evict"]) == ("evict", ["a"])


@in_a_loop
async def test_what_does_not_fit_is_told_why_and_what_would(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 1000)
    house.add("large", "-ngl", "9", "--ctx-size", "65536")
    async with house.open():
        plan = await house.plan("large")
        refused = await house.ask("/v1/models/load", {"model": "large"})
    assert (plan["verdict"], plan["devices"]) == ("impossible", [])
    assert plan["message"].startswith("'large' does not fit: it needs ")
    assert plan["would_fit_with"]["context_tokens"] in range(4096, 65536, 256)
    assert plan["needs"]["on_one_gpu"]["gpu_bytes"] > 1000 * MIB
    assert (refused.status, refused.error["code"]) == (503, "insufficient_vram")
    assert refused.error["message"] == plan["message"]


@pytest.mark.parametrize("body", [b"{}", b""], ids=["an empty object", "nothing"])
@in_a_loop
async def test_without_a_model_all_are_planned_that_the_key_may_use(tmp_path: Path, body: bytes) -> None:
    house = Guarded(tmp_path, 1000)
    house.keys = KEYS
    async with house.open():
        everything = await house.ask(PLAN, body, method="POST")
        narrow = await house.ask(PLAN, body, method="POST", key=NARROW)
    assert [plan["model"] for plan in everything.json()["plans"]] == ["a", "b"]
    assert [plan["model"] for plan in narrow.json()["plans"]] == ["b"]


@in_a_loop
async def test_a_plan_is_for_those_who_may_use_the_model(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 1000)
    house.keys = KEYS
    async with house.open():
        replies = [
            await house.ask(PLAN, {"model": "a"}, key=None),
            await house.ask(PLAN, {"model": "a"}, key=NARROW),
            await house.ask(PLAN, {"model": "nobody"}, key=NARROW),
            await house.ask(PLAN, {"model": 7}, key=NARROW),
            await house.ask(PLAN, b"no json", key=NARROW),
        ]
        codes = [(reply.status, reply.error["code"]) for reply in replies]
    assert codes == [
        (401, "invalid_api_key"),
        (403, "model_not_allowed"),
        (404, "model_not_found"),
        (400, "invalid_request"),
        (400, "invalid_request"),
    ]


@in_a_loop
async def test_planning_counts_against_the_rate_and_looking_at_memory_does_not(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 1000)
    house.keys = KEYS
    async with house.open():
        looks = [(await house.ask("/vram")).status for _ in range(5)]
        plans = [(await house.ask(PLAN, {})).status for _ in range(3)]
    assert (looks, plans) == ([200] * 5, [200, 200, 429])


@in_a_loop
async def test_a_file_that_is_no_model_says_so_in_its_plan(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 1000)
    house.models.append(
        a_model("torn", path=tmp_path / "torn.gguf", size_bytes=5 * MIB, problem="it is torn")
    )
    async with house.open():
        plan = await house.plan("torn")
    assert (plan["problem"], plan["context_tokens"]) == ("it is torn", None)
    assert plan["devices"][0]["source"] == "file size"


# How it stands ------------------------------------------------------------------------------------


@in_a_loop
async def test_memory_is_told_by_device_and_by_model(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 1000)
    async with house.open():
        empty = (await house.ask("/vram")).json()
        await house.load("a")
        house.card.used_mib = 850
        full = (await house.ask("/vram")).json()
    assert (empty["status"], empty["models"], empty["can_load_more"]) == ("healthy", [], True)
    assert empty["estimated_free_for_new_model_mb"] == 1000 - 1000 // 32 - 1
    gpu, memory = full["devices"]
    assert (gpu["total_bytes"], gpu["used_bytes"]) == (1000 * MIB, 850 * MIB)
    assert gpu["total_bytes"] >= gpu["reserved_bytes"] + gpu["foreign_bytes"] + gpu["margin_bytes"]
    assert memory["name"] == "main memory"
    [model] = full["models"]
    assert (model["model"], model["status"]) == ("a", "ready")
    assert model["devices"][0]["measured_bytes"] == model["devices"][0]["reserved_bytes"] == 850 * MIB
    assert model["vram_mb"] == 850
    assert model["estimate"][0]["parts"]["kv_cache"] == 64 * MIB
    assert full["status"] == "warning"  # no room for the other one


@in_a_loop
async def test_room_counts_for_models_that_are_not_there_yet(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 1000)
    house.models[0] = replace(house.models[0], size_bytes=10 * MIB)
    async with house.open():
        await house.load("a")
        house.card.used_mib = 850
        said = (await house.ask("/vram")).json()
    assert (said["estimated_free_for_new_model_mb"] > 10, said["status"]) == (True, "warning")


@in_a_loop
async def test_memory_that_others_take_is_seen_at_once(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 1000)
    async with house.open():
        await house.load("a")
        house.card.used_mib = 850
        await house.ask("/vram")
        house.card.used_mib = 990
        said = (await house.ask("/vram")).json()
    assert (said["status"], said["can_load_more"]) == ("critical", False)
    assert said["devices"][0]["foreign_bytes"] == 140 * MIB
    assert said["gpu_info"]["baseline_used_mb"] == 140


@in_a_loop
async def test_without_a_gpu_there_is_the_memory_alone(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 0)
    async with house.open():
        await house.load("a")
        said = (await house.ask("/vram")).json()
    assert (said["gpu_info"], [each["name"] for each in said["devices"]]) == (None, ["main memory"])
    assert (said["models"][0]["vram_mb"], said["models"][0]["bytes"] > 0) == (0, True)


@in_a_loop
async def test_memory_is_shown_with_a_key_only_and_models_to_those_who_may_use_them(tmp_path: Path) -> None:
    house = Guarded(tmp_path, 9000)
    house.keys = KEYS
    async with house.open():
        await house.load("a")
        refused = await house.ask("/vram", key=None)
        narrow = await house.ask("/vram", key=NARROW)
        await eventually(lambda: house.fleet.queue.active == 0, "the load is over")
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert (narrow.json()["models"], len(narrow.json()["devices"])) == ([], 2)
