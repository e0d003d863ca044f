"""GPUs: where a model goes, what goes for it, and what is said when there is no place for it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.end_to_end.conftest import StartMachine
from tests.end_to_end.gpus import (
    LAYERS,
    PREDICTED_MIB,
    RESERVED_MIB,
    ROOM_FOR_ONE_MIB,
    ROOM_FOR_TWO_MIB,
    takes,
)
from tests.end_to_end.talk import metric, next_event, open_chat

TAKEN_MIB = 790
LATE_S = 0.7


def test_a_model_goes_onto_the_gpu_that_it_fits_best_and_is_measured(start_machine: StartMachine) -> None:
    machine = start_machine(
        {"GPU-large": 8000, "GPU-small": ROOM_FOR_ONE_MIB}, {"a": takes(TAKEN_MIB, load_s=0.4)}
    )
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(machine.chat, "a")
        machine.wait_for("it takes memory", lambda: machine.gpu_mib("used", "GPU-small"))
        assert machine.gpu_mib("reserved", "GPU-small") == RESERVED_MIB
        answer.result()
    assert machine.gpus_of("a") == "GPU-small"
    assert machine.flag("a", "-ngl") == str(LAYERS)
    assert machine.flag("a", "--tensor-split") is None
    machine.wait_until_measured(a=TAKEN_MIB)
    figures = ("total", "used", "reserved")
    assert [machine.gpu_mib(what, "GPU-small") for what in figures] == [
        ROOM_FOR_ONE_MIB,
        TAKEN_MIB,
        TAKEN_MIB,
    ]
    assert [machine.gpu_mib(what, "GPU-large") for what in figures] == [8000, 0, 0]
    assert metric(machine.corral, "router_model_vram_bytes", model="a") == TAKEN_MIB << 20
    error = metric(machine.corral, "router_vram_estimate_error_ratio", model="a")
    assert error == pytest.approx(PREDICTED_MIB / TAKEN_MIB - 1, abs=0.002)


def test_the_idle_model_that_was_not_used_for_longest_makes_room(start_machine: StartMachine) -> None:
    machine = start_machine({"GPU": ROOM_FOR_TWO_MIB}, dict.fromkeys("abc", takes(TAKEN_MIB)))
    for model in "abac":
        machine.chat(model)
    assert machine.states("a", "b", "c") == ["ready", "off", "ready"]
    assert metric(machine.corral, "router_model_evictions_total", model="b", reason="room") == 1
    assert [machine.starts(model) for model in "abc"] == [1, 1, 1]


def test_nothing_is_started_before_the_memory_is_seen_to_be_back(start_machine: StartMachine) -> None:
    machine = start_machine(
        {"GPU": ROOM_FOR_ONE_MIB},
        {"a": takes(TAKEN_MIB), "b": takes(TAKEN_MIB)},
        driver=(f"late={LATE_S * 1000:.0f}",),
    )
    machine.chat("a")
    machine.chat("b")
    (told,) = machine.events("sigterm", "a")
    (began,) = machine.events("start", "b")
    assert LATE_S <= began["time"] - told["time"] < LATE_S + 1


def test_a_model_in_use_finishes_before_it_makes_room(start_machine: StartMachine) -> None:
    machine = start_machine({"GPU": ROOM_FOR_ONE_MIB}, {"a": takes(TAKEN_MIB), "b": takes(TAKEN_MIB)})
    endless = {"tokens": 10_000, "token_delay_s": 0.02}
    with ThreadPoolExecutor(1) as clients:
        with open_chat(machine.corral, model="a", stream=True, stand_in=endless) as stream:
            next_event(stream)
            other = clients.submit(machine.chat, "b")
            machine.wait_for("it is to go", lambda: machine.states("a") == ["draining"])
            for _ in range(40):  # four fifths of a second, in which the gateway looks three times
                next_event(stream)
            assert machine.starts("b") == 0
        other.result()
    assert machine.states("a", "b") == ["off", "ready"]
    assert machine.gpus_of("b") == "GPU", "waiting for the GPU is better than a life without"


@pytest.mark.parametrize(("strategy", "times"), [("single-gpu-preferred", 1), ("distribute", 10)])
def test_a_model_is_spread_where_it_has_to_be_or_is_meant_to_be(
    start_machine: StartMachine, strategy: str, times: int
) -> None:
    machine = start_machine(
        {"GPU-a": 800 * times, "GPU-b": 700 * times},
        {"a": takes(1125)},
        gpu={"allocation_strategy": strategy},
    )
    machine.chat("a")
    assert machine.gpus_of("a") == "GPU-a,GPU-b"
    assert machine.flag("a", "-ngl") == str(LAYERS)
    first, second = map(int, (machine.flag("a", "--tensor-split") or "").split(","))
    assert first / second == pytest.approx(8 / 7, rel=0.01)
    machine.wait_until_measured(a=1125)
    held = [machine.gpu_mib("reserved", uuid) for uuid in ("GPU-a", "GPU-b")]
    assert held == [pytest.approx(600, rel=0.01), pytest.approx(525, rel=0.01)]


def test_where_a_model_does_not_fit_as_many_of_its_layers_as_do_go_onto_the_gpu(
    start_machine: StartMachine,
) -> None:
    machine = start_machine({"GPU": 700}, {"a": takes(600)})
    machine.chat("a")
    # 679 of 700 MiB may be used: 5 layers are said to take 601, with a tenth more 661, and 6 layers 720.
    assert machine.flag("a", "-ngl") == "5"
    assert machine.gpus_of("a") == "GPU"


def test_a_model_that_fits_on_no_gpu_is_run_by_the_processor(start_machine: StartMachine) -> None:
    machine = start_machine({"GPU": 300}, {"a": takes(TAKEN_MIB)})
    machine.chat("a")
    assert (machine.flag("a", "-ngl"), machine.gpus_of("a")) == ("0", "")
    assert machine.gpu_mib("reserved", "GPU") == 0
    on_the_host = machine.gpu_mib("reserved", "host")
    assert on_the_host == pytest.approx(509 * 1.1, rel=0.02)
    assert machine.vram_mib("a") == pytest.approx(on_the_host, abs=1)


def test_what_fits_nowhere_is_refused_at_once_and_in_numbers(start_machine: StartMachine) -> None:
    fixed = takes(TAKEN_MIB, "-ngl", "99")
    machine = start_machine(
        {"GPU-a": 300, "GPU-b": 750}, {"a": takes(500), "b": fixed}, gpu={"cpu_fallback": False}
    )
    machine.world.gpu("GPU-b", total_mib=750, foreign_mib=100)
    machine.chat("a")
    machine.wait_until_measured(a=500)
    began = time.monotonic()
    status, code, message = machine.refusal("b")
    assert time.monotonic() - began < 1
    assert (status, code) == (503, "insufficient_vram")
    for part in (
        "'b' does not fit: it needs 884.1 MiB on a GPU with 40.7 MiB of main memory beside it",
        "Free with a unloaded: GPU 0 290.6 MiB of 300.0 MiB; ",
        "GPU 1 626.6 MiB of 750.0 MiB, 100.0 MiB used by other programs; main memory ",
        "Tried: one GPU, several GPUs, fewer layers on GPUs no, its flags fix their number, the CPU no, ",
        "It would fit with 4 layers on the GPU (--gpu-layers 4).",
    ):
        assert part in message
    assert machine.starts("b") == 0
    assert machine.states("a", "b") == ["ready", "off"], "nothing is unloaded in vain"


@pytest.mark.parametrize(
    ("system", "environment", "usable"),
    [
        pytest.param({"gpu_devices": [1]}, {}, ["GPU-b"], id="gpu_devices"),
        pytest.param({}, {"CUDA_VISIBLE_DEVICES": "2,1"}, ["GPU-b", "GPU-c"], id="CUDA's variable"),
        pytest.param({}, {"NVIDIA_VISIBLE_DEVICES": "GPU-c"}, ["GPU-c"], id="the container's"),
        pytest.param({"gpu_devices": [1]}, {"CUDA_VISIBLE_DEVICES": "GPU-c,GPU-b"}, ["GPU-b"], id="both"),
        pytest.param({}, {"CUDA_VISIBLE_DEVICES": "-1"}, [], id="none at all"),
    ],
)
def test_only_gpus_that_may_be_used_are_used(
    start_machine: StartMachine, system: dict[str, Any], environment: dict[str, str], usable: list[str]
) -> None:
    gpus = {"GPU-a": 1000, "GPU-b": 1200, "GPU-c": 1400}
    machine = start_machine(gpus, {"a": takes(TAKEN_MIB)}, system=system, environment=environment)
    machine.chat("a")
    assert machine.gpus_of("a") == "".join(usable[:1])
    assert [uuid for uuid in gpus if machine.gpu_mib("total", uuid)] == usable


def test_the_parts_of_a_card_are_as_many_devices(start_machine: StartMachine) -> None:
    parts = {"MIG-1": ROOM_FOR_TWO_MIB, "MIG-2": ROOM_FOR_ONE_MIB}
    machine = start_machine({"GPU-a": 8000} | parts, dict.fromkeys("abc", takes(TAKEN_MIB)))
    for model in "abc":
        machine.chat(model)
    assert [machine.gpus_of(model) for model in "abc"] == ["MIG-2", "MIG-1", "MIG-1"]
    machine.wait_until_measured(a=TAKEN_MIB, b=TAKEN_MIB, c=TAKEN_MIB)
    assert [machine.gpu_mib("used", uuid) for uuid in parts] == [2 * TAKEN_MIB, TAKEN_MIB]
    assert machine.gpu_mib("total", "GPU-a") == 0
