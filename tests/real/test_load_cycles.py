"""Two hundred loads of real models, and as many ends: what one of them leaked, all of them would show."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.talk import metric, model_status
from tests.support import Corral, processes_naming, running_corral
from tests.waiting import wait_until

MODELS = ("demo", "demo-embed")
CYCLES = 100


@pytest.fixture
def corral(tmp_path: Path, llama_server: Path, demo_files: Path) -> Iterator[Corral]:
    with running_corral(
        tmp_path, llama_server, demo_files, config={"system": {"max_concurrent_models": 1}}
    ) as instance:
        yield instance


def post(corral: Corral, action: str, model: str) -> None:
    answer = corral.ask(f"/v1/models/{action}", {"model": model})
    assert answer.status == 200, answer.body


def one_after_the_other(corral: Corral, cycles: int) -> Iterator[int]:
    """Each load evicts the model before it. The ports on which they listened."""
    for cycle in range(cycles):
        model = MODELS[cycle % 2]
        post(corral, "load", model)
        yield model_status(corral, model)["port"]
    post(corral, "eject", model)


def to_and_fro(corral: Corral, cycles: int) -> Iterator[int]:
    """Each is ejected before the next is loaded."""
    for cycle in range(cycles):
        model = MODELS[cycle % 2]
        post(corral, "load", model)
        yield model_status(corral, model)["port"]
        post(corral, "eject", model)


def descriptors(corral: Corral) -> int:
    return len(os.listdir(f"/proc/{corral.pid}/fd"))


def test_nothing_is_left_of_two_hundred_loads(corral: Corral) -> None:
    list(one_after_the_other(corral, 2))
    processes, open_before = processes_naming(corral.directory), descriptors(corral)
    ports = {*one_after_the_other(corral, CYCLES), *to_and_fro(corral, CYCLES)}
    assert [model_status(corral, model)["status"] for model in MODELS] == ["off", "off"]
    assert metric(corral, "router_model_evictions_total", reason="room") == CYCLES
    assert processes_naming(corral.directory) == processes
    assert len(ports) <= 3, "ports that were given back are used again"
    assert metric(corral, "router_gpu_memory_reserved_bytes") == 0
    assert metric(corral, "router_model_vram_bytes") == 0
    wait_until(lambda: descriptors(corral) <= open_before, "all descriptors are closed")
    assert os.listdir(corral.directory / "run" / "engines") == []
