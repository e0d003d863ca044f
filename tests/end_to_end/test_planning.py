"""What is said of memory comes true: a plan by the load that follows, the state by what processes take."""

from __future__ import annotations

from typing import Any

import pytest

from tests.end_to_end.conftest import StartMachine
from tests.end_to_end.gpus import PREDICTED_MIB, RESERVED_MIB, ROOM_FOR_ONE_MIB, Machine, takes
from tests.policy.memory.files import MIB

TAKES_MIB = 700


def plan(machine: Machine, model: str) -> Any:
    answer = machine.corral.ask("/v1/models/plan", {"model": model})
    assert answer.status == 200, answer.body
    return answer.json()


def test_a_plan_comes_true_and_is_better_the_next_time(start_machine: StartMachine) -> None:
    machine = start_machine({"GPU-a": ROOM_FOR_ONE_MIB}, {"a": takes(TAKES_MIB), "b": takes(TAKES_MIB)})
    first = plan(machine, "a")
    gpu = first["devices"][0]
    assert (first["verdict"], gpu["device"], gpu["source"]) == ("load", "GPU-a", "predicted")
    assert (gpu["predicted_bytes"] // MIB, gpu["bytes"] // MIB) == (PREDICTED_MIB - 1, RESERVED_MIB)
    assert machine.states("a", "b") == ["off", "off"]
    machine.chat("a")
    machine.wait_until_measured(a=TAKES_MIB)
    second = plan(machine, "b")
    assert (second["verdict"], second["evict"]) == ("evict", ["a"])
    machine.chat("b")
    assert machine.states("a", "b") == ["off", "ready"]
    learned = plan(machine, "a")["devices"][0]
    assert learned["source"] == "learned"
    assert learned["bytes"] == pytest.approx(TAKES_MIB * MIB * 1.02, rel=0.01)


def test_the_state_of_memory_is_what_processes_and_others_take(start_machine: StartMachine) -> None:
    machine = start_machine({"GPU-a": ROOM_FOR_ONE_MIB}, {"a": takes(TAKES_MIB), "b": takes(TAKES_MIB)})
    machine.chat("a")
    machine.wait_until_measured(a=TAKES_MIB)
    machine.world.gpu("GPU-a", total_mib=ROOM_FOR_ONE_MIB, foreign_mib=200)
    said = machine.corral.ask("/vram").json()
    gpu = said["devices"][0]
    figures = ("total_bytes", "used_bytes", "foreign_bytes", "reserved_bytes", "free_bytes")
    assert [gpu[figure] // MIB for figure in figures] == [ROOM_FOR_ONE_MIB, 900, 200, TAKES_MIB, 68]
    [model] = said["models"]
    assert (model["model"], model["devices"][0]["measured_bytes"]) == ("a", TAKES_MIB * MIB)
    assert (said["status"], said["gpu_info"]["baseline_used_mb"]) == ("warning", 200)
