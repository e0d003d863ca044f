"""The guard over the host's memory, with models of a size that matters and the real llama-server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.talk import metric, model_status
from tests.policy.memory.files import MIB, File, transformer
from tests.support import Corral

CONTEXT = 512
# A gigabyte, of which a prompt needs little: most of it are the words of a large vocabulary.
LARGE = transformer(
    layers=2, width=2048, heads=16, kv_heads=16, head=128, feed_forward=8192, words=210_000, context=4096
)
SMALL = transformer(layers=2, width=2048, heads=16, kv_heads=16, head=128, feed_forward=8192, context=4096)
# It takes 235 MiB, and of so much memory a 32nd part is left alone: room for one and not for two.
SMALL_MIB = 480
# Memory that is mapped is the kernel's to take back, so what a process holds would say little.
FLAGS = ["-c", str(CONTEXT), "-lm", "none"]
ALTERED_GATEWAY = Path(__file__).with_name("altered_gateway.py")


def entry(file: File, folder: Path, **more: Any) -> dict[str, Any]:
    path = folder / f"{len(list(folder.iterdir()))}.gguf"
    file.write(path)
    return {"model_path": str(path), "flags": FLAGS, **more}


def full_prompt(corral: Corral, model: str) -> None:
    """One that fills the context: only then all that was reserved has been touched."""
    prompt = list(range(2, CONTEXT - 6))
    body = {"model": model, "prompt": prompt, "max_tokens": 4, "ignore_eos": True}
    answer = corral.ask("/v1/completions", body)
    assert answer.status == 200, answer.body
    assert answer.json()["usage"]["total_tokens"] == CONTEXT - 4


def reserved_bytes(corral: Corral) -> float:
    return metric(corral, "router_gpu_memory_reserved_bytes", gpu="host")


def peak_bytes(corral: Corral, model: str) -> int:
    """The most that a model's process has ever held."""
    status = Path(f"/proc/{model_status(corral, model)['pid']}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def test_a_model_takes_what_was_predicted_and_then_what_was_learnt(
    tmp_path: Path, llama_server: Path
) -> None:
    (tmp_path / "data").mkdir()
    corral = Corral(tmp_path, llama_server, config={"models": {"large": entry(LARGE, tmp_path / "data")}})
    corral.wait_until_up()
    try:
        full_prompt(corral, "large")
        predicted, took = reserved_bytes(corral) / 1.1, peak_bytes(corral, "large")
        assert took > 1000 * MIB
        assert predicted == pytest.approx(took, rel=0.10)
        assert corral.ask("/v1/models/eject", {"model": "large"}).status == 200
        assert reserved_bytes(corral) == 0
        assert metric(corral, "router_vram_estimate_error_ratio", model="large") == pytest.approx(
            predicted / took - 1, abs=0.005
        )
        full_prompt(corral, "large")
        assert reserved_bytes(corral) / 1.02 == pytest.approx(peak_bytes(corral, "large"), rel=0.02)
    finally:
        corral.finish()


@pytest.fixture
def small_machine(tmp_path: Path, llama_server: Path) -> Iterator[Corral]:
    """A machine with room for one model, and three models."""
    (tmp_path / "data").mkdir()
    models = {name: entry(SMALL, tmp_path / "data") for name in ("one", "two")}
    models["pinned"] = entry(SMALL, tmp_path / "data", pinned=True)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {SMALL_MIB * 1024} kB\nMemAvailable: {SMALL_MIB * 1024} kB\n")
    corral = Corral(
        tmp_path,
        llama_server,
        environment={"MEMINFO": str(meminfo)},
        config={"models": models},
        program=ALTERED_GATEWAY,
    )
    corral.wait_until_up()
    yield corral
    corral.finish()


def states(corral: Corral) -> list[str]:
    return [model_status(corral, name)["status"] for name in ("one", "two", "pinned")]


def load(corral: Corral, model: str) -> Any:
    return corral.ask("/v1/models/load", {"model": model}).json()


def test_an_idle_model_goes_for_another_and_a_pinned_one_for_nobody(small_machine: Corral) -> None:
    assert load(small_machine, "one")["status"] == "success"
    assert states(small_machine) == ["ready", "off", "off"]
    assert load(small_machine, "two")["status"] == "success"
    assert states(small_machine) == ["off", "ready", "off"]
    assert load(small_machine, "pinned")["status"] == "success"
    assert states(small_machine) == ["off", "off", "ready"]
    error = load(small_machine, "one")["error"]
    assert error["code"] == "insufficient_vram"
    assert "Free: main memory 207.0 MiB of 480.0 MiB." in error["message"]
    assert "Tried: the CPU" in error["message"]
    assert states(small_machine) == ["off", "off", "ready"]
    assert metric(small_machine, "router_model_evictions_total", reason="room") == 2


def test_what_a_model_without_work_has_not_touched_stays_reserved(small_machine: Corral) -> None:
    """Otherwise its first full prompt would take what has been promised to another meanwhile."""
    assert load(small_machine, "one")["status"] == "success"
    assert small_machine.ask("/v1/models/eject", {"model": "one"}).status == 200
    assert load(small_machine, "one")["status"] == "success"
    full_prompt(small_machine, "one")
    assert reserved_bytes(small_machine) >= peak_bytes(small_machine, "one")
