"""What is said of memory, by value: the state of the devices and of the models on them, and plans."""

from __future__ import annotations

from typing import Any

import pytest

from corral.policy.commitments import Account, Commitments, Device
from corral.policy.fit import Suggestions
from corral.policy.footprint import Share
from corral.policy.guard import Impossible
from corral.policy.learning import Source
from corral.policy.memory import Parts
from corral.policy.memory_report import (
    Health,
    Holding,
    Report,
    parts_document,
    plan_document,
    vram_document,
)
from corral.policy.placement import HOST, Kind, Placement
from corral.policy.plan import Plan, Verdict

GIB = 1 << 30
MIB = 1 << 20
PARTS = Parts(weights=4 * GIB, cache=GIB, state=MIB, compute=300 * MIB, context=320 * MIB)
PARTS_DOCUMENT = {
    "weights": 4 * GIB,
    "kv_cache": GIB + MIB,
    "compute": 300 * MIB,
    "context": 320 * MIB,
}


def account(
    id: str, total: int, *, used: int = 0, committed: int = 0, foreign: int = 0, index: int = 0
) -> Account:
    return Account(id, index, total * GIB, used * GIB, committed * GIB, foreign * GIB, 0, closed=False)


def card(**amounts: int) -> Account:
    return account("GPU-a", 32, **amounts)


MEMORY = account(HOST, 64, used=10, foreign=10)


def report(*accounts: Account, holdings: tuple[Holding, ...] = (), smallest: int | None = 4 * GIB) -> Report:
    return Report(accounts, holdings, smallest)


# How it stands ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("committed", "foreign", "smallest_gib", "health"),
    [
        pytest.param(0, 0, 4, Health.HEALTHY, id="an empty card"),
        pytest.param(27, 0, 4, Health.HEALTHY, id="just room for one more"),
        pytest.param(28, 0, 4, Health.WARNING, id="no room for one more"),
        pytest.param(28, 0, None, Health.HEALTHY, id="nobody else who wants any"),
        pytest.param(20, 11, 4, Health.WARNING, id="full to the margin"),
        pytest.param(20, 12, 4, Health.CRITICAL, id="others have taken what was promised"),
        pytest.param(20, 12, None, Health.CRITICAL, id="the same with all models loaded"),
    ],
)
def test_one_word_says_how_the_memory_stands(
    committed: int, foreign: int, smallest_gib: int | None, health: Health
) -> None:
    smallest = None if smallest_gib is None else smallest_gib * GIB
    stands = report(card(committed=committed, foreign=foreign), MEMORY, smallest=smallest)
    assert stands.health is health


def test_a_sum_that_is_only_counted_twice_is_not_critical() -> None:
    loading = Account("GPU-a", 0, 32 * GIB, 20 * GIB, 20 * GIB, 20 * GIB, 20 * GIB, closed=False)
    assert loading.room_bytes < 0
    assert report(loading, smallest=None).health is not Health.CRITICAL


def test_free_is_the_roomiest_gpu_and_without_one_the_memory() -> None:
    assert report(card(), account("GPU-b", 16, index=1), MEMORY).free_bytes == 31 * GIB
    assert report(MEMORY).free_bytes == (64 - 10 - 1) * GIB
    assert report().free_bytes == 0


def test_every_device_has_its_sums() -> None:
    said = vram_document(report(card(used=12, committed=10, foreign=3), MEMORY), {})
    assert said["devices"][0] == {
        "device": "GPU-a",
        "name": "GPU 0",
        "total_bytes": 32 * GIB,
        "used_bytes": 12 * GIB,
        "foreign_bytes": 3 * GIB,
        "reserved_bytes": 10 * GIB,
        "margin_bytes": GIB,
        "free_bytes": 18 * GIB,
    }
    assert [device["name"] for device in said["devices"]] == ["GPU 0", "main memory"]


def test_less_than_nothing_is_not_free() -> None:
    said = vram_document(report(card(committed=20, foreign=15), MEMORY), {})
    assert (said["devices"][0]["free_bytes"], said["estimated_free_for_new_model_mb"]) == (0, 0)
    assert (said["status"], said["can_load_more"]) == ("critical", False)


def test_all_gpus_are_summed_up_and_the_host_is_none_of_them() -> None:
    cards = (card(used=8, foreign=2), account("GPU-b", 32, used=8, foreign=1, index=1))
    assert vram_document(report(*cards, MEMORY), {})["gpu_info"] == {
        "total_mb": 64 * 1024,
        "used_mb": 16 * 1024,
        "free_mb": 48 * 1024,
        "total_gb": 64.0,
        "used_gb": 16.0,
        "free_gb": 48.0,
        "usage_percentage": 25.0,
        "baseline_used_mb": 3 * 1024,
    }
    assert vram_document(report(MEMORY), {})["gpu_info"] is None


def holding(model: str, gpu_gib: int, measured: dict[str, int] | None = None) -> Holding:
    share = Share("GPU-a", gpu_gib * GIB, PARTS, Source.PREDICTED)
    return Holding(model, {"GPU-a": gpu_gib * GIB, HOST: GIB}, measured or {}, (share,))


def test_models_come_with_what_is_promised_what_is_measured_and_what_was_estimated() -> None:
    held = holding("a", 7, measured={"GPU-a": 6 * GIB})
    [model] = vram_document(report(card(), MEMORY, holdings=(held,)), {"a": "ready"})["models"]
    assert model == {
        "model": "a",
        "status": "ready",
        "vram_mb": 7 * 1024,
        "bytes": 8 * GIB,
        "devices": [
            {
                "device": "GPU-a",
                "name": "GPU 0",
                "reserved_bytes": 7 * GIB,
                "measured_bytes": 6 * GIB,
            },
            {"device": HOST, "name": "main memory", "reserved_bytes": GIB, "measured_bytes": None},
        ],
        "estimate": [
            {
                "device": "GPU-a",
                "name": "GPU 0",
                "bytes": 7 * GIB,
                "source": "predicted",
                "predicted_bytes": PARTS.total,
                "parts": PARTS_DOCUMENT,
            }
        ],
    }


def test_the_largest_model_comes_first_and_one_that_is_nobodys_business_not_at_all() -> None:
    holdings = (holding("a", 3), holding("secret", 9), holding("b", 5))
    said = vram_document(report(card(), MEMORY, holdings=holdings), {"a": "ready", "b": "loading"})
    assert [model["model"] for model in said["models"]] == ["b", "a"]


def test_parts_that_few_models_have_are_named_only_there() -> None:
    assert parts_document(PARTS) == PARTS_DOCUMENT
    rare = parts_document(Parts(projector=5, draft=7))
    assert rare == {"weights": 0, "kv_cache": 0, "compute": 0, "context": 0, "projector": 5, "draft": 7}


# What would be ------------------------------------------------------------------------------------


def plan(verdict: Verdict, **more: Any) -> Plan:
    facts: dict[str, Any] = {"context_tokens": 8192, "slots": 2, "layer_count": 33, "parts": PARTS}
    return Plan(model="m", verdict=verdict, message="So it is.", **facts | more)


def test_a_plan_says_where_how_much_of_what_and_what_comes_first() -> None:
    placement = Placement(Kind.SPREAD, 33, ("GPU-a", "GPU-b"), (5 * GIB, GIB), MIB, (5, 1))
    share = Share("GPU-b", GIB, PARTS, Source.LEARNED)
    said = plan_document(
        plan(
            Verdict.EVICT,
            placement=placement,
            shares=(share,),
            names={"GPU-b": "GPU 1"},
            evict=("a",),
            wait_for=("b",),
        )
    )
    assert said == {
        "model": "m",
        "verdict": "evict",
        "message": "So it is.",
        "evict": ["a"],
        "wait_for": ["b"],
        "context_tokens": 8192,
        "slots": 2,
        "predicted": PARTS_DOCUMENT,
        "layers": 33,
        "gpu_layers": 33,
        "tensor_split": [5, 1],
        "devices": [
            {
                "device": "GPU-b",
                "name": "GPU 1",
                "bytes": GIB,
                "source": "learned",
                "predicted_bytes": PARTS.total,
                "parts": PARTS_DOCUMENT,
            }
        ],
        "needs": None,
        "would_fit_with": None,
    }


def impossible(layers: int) -> Impossible:
    return Impossible("m", layers, 30 * GIB, GIB, 31 * GIB, False, False, (), (), {})


def test_what_is_impossible_says_what_it_needs_and_what_would_do() -> None:
    suggestions = Suggestions(30 * GIB, 20 * GIB, 4096, False, None, 20)
    said = plan_document(plan(Verdict.IMPOSSIBLE, impossible=impossible(33), would_fit=suggestions))
    assert (said["gpu_layers"], said["tensor_split"], said["devices"]) == (None, [], [])
    assert said["needs"] == {
        "on_one_gpu": {"gpu_bytes": 30 * GIB, "host_bytes": GIB},
        "on_cpu": {"host_bytes": 31 * GIB},
    }
    assert said["would_fit_with"] == {"context_tokens": 4096, "cache_type": None, "gpu_layers": 20}


def test_without_a_gpu_there_is_one_need_and_a_smaller_cache_may_do() -> None:
    suggestions = Suggestions(30 * GIB, 20 * GIB, None, True, None, None)
    said = plan_document(plan(Verdict.IMPOSSIBLE, impossible=impossible(0), would_fit=suggestions))
    assert said["needs"] == {"on_cpu": {"host_bytes": 31 * GIB}}
    assert said["would_fit_with"] == {"context_tokens": None, "cache_type": "q8_0", "gpu_layers": None}


def test_accounts_call_devices_by_names_that_people_know() -> None:
    books = Commitments()
    books.observe([Device("GPU-1f", 3, 1, 0, {}), Device(HOST, 99, 1, 0, {})], 0.0)
    assert [each.name for each in books.accounts()] == ["GPU 3", "main memory"]
