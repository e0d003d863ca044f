from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from corral.drivers.gpu_probe import GpuProbe
from tests.stand_in_nvml import NvmlWorld

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
MIB = 1 << 20
# The library is found by the dynamic loader, once for each process: so each look is a process of its own.
LOOK = """
import dataclasses, json
from corral.drivers.gpu_probe import GpuProbe
probe = GpuProbe.open()
print(json.dumps(None if probe is None else [dataclasses.asdict(reading) for reading in probe.read()]))
"""


@pytest.fixture
def world(tmp_path: Path) -> NvmlWorld:
    return NvmlWorld(tmp_path)


def look(world: NvmlWorld, *options: str, **more: str) -> Any:
    environment = os.environ | world.environment() | {"PYTHONPATH": str(SCRIPTS)} | more
    command = [sys.executable, *options, "-c", LOOK]
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)


def test_each_card_is_read_with_its_memory(world: NvmlWorld) -> None:
    world.gpu("GPU-a", total_mib=24_000, foreign_mib=500)
    world.gpu("GPU-b", total_mib=16_000)
    first, second = look(world)
    assert first == {
        "uuid": "GPU-a",
        "index": 0,
        "name": "Stand-in GPU",
        "total_bytes": 24_000 * MIB,
        "used_bytes": 500 * MIB,
        "process_bytes": {},
    }
    assert (second["uuid"], second["index"], second["used_bytes"]) == ("GPU-b", 1, 0)


def test_processes_and_what_they_hold_are_read_where_they_are_shown(world: NvmlWorld) -> None:
    world.gpu("GPU-a", total_mib=24_000, foreign_mib=500)
    world.use(os.getpid(), {"GPU-a": 1000})
    (reading,) = look(world)
    assert reading["used_bytes"] == 1500 * MIB
    assert reading["process_bytes"] == {str(os.getpid()): 1000 * MIB}


def test_hidden_processes_are_an_empty_list_and_their_memory_is_still_used(world: NvmlWorld) -> None:
    world.gpu("GPU-a", total_mib=24_000)
    world.use(os.getpid(), {"GPU-a": 1000})
    world.options("hidden")
    (reading,) = look(world)
    assert (reading["used_bytes"], reading["process_bytes"]) == (1000 * MIB, {})


def test_processes_without_sizes_are_not_known(world: NvmlWorld) -> None:
    world.gpu("GPU-a", total_mib=24_000)
    world.use(os.getpid(), {"GPU-a": 1000})
    world.options("no-sizes")
    assert look(world)[0]["process_bytes"] is None


class Growing:
    """A driver's library on whose one card a process takes 100 bytes more with every question."""

    class NVMLError(Exception):
        pass

    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self) -> None:
        self._taken_bytes = 0

    def _grow(self) -> int:
        self._taken_bytes += 100
        return self._taken_bytes

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetMigMode": lambda card: (0, 0),
            "nvmlDeviceGetUUID": lambda card: "GPU-a",
            "nvmlDeviceGetName": lambda card: "Growing",
            "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(total=1000, free=1000 - self._grow()),
            "nvmlDeviceGetComputeRunningProcesses": lambda card: [
                SimpleNamespace(pid=7, usedGpuMemory=self._grow())
            ],
        }
        return answers[name]


def test_a_process_is_never_read_later_than_the_card_that_it_is_a_part_of() -> None:
    (reading,) = GpuProbe(Growing()).read()
    assert (reading.process_bytes, reading.used_bytes) == ({7: 100}, 200)


def test_a_card_cut_into_instances_is_as_many_devices(world: NvmlWorld) -> None:
    world.gpu("GPU-a", total_mib=80_000)
    world.gpu("MIG-1", total_mib=20_000, mig_of=0)
    world.gpu("MIG-2", total_mib=40_000, foreign_mib=7, mig_of=0)
    world.gpu("GPU-b", total_mib=16_000)
    assert [(each["uuid"], each["index"], each["total_bytes"] // MIB) for each in look(world)] == [
        ("MIG-1", 0, 20_000),
        ("MIG-2", 1, 40_000),
        ("GPU-b", 2, 16_000),
    ]


def test_a_driver_that_fails_from_the_start_is_no_driver(world: NvmlWorld) -> None:
    world.gpu("GPU-a", total_mib=1)
    world.options("broken")
    assert look(world) is None


def test_a_machine_without_a_driver_or_without_the_package_has_no_probe(world: NvmlWorld) -> None:
    assert look(world, STAND_IN_NVML="", LD_LIBRARY_PATH="") is None
    world.gpu("GPU-a", total_mib=1)
    assert look(world, "-S") is None


def test_a_driver_that_fails_later_shows_no_device_and_complains_once(world: NvmlWorld) -> None:
    world.gpu("GPU-a", total_mib=10)
    script = """
import os, pathlib
from corral.drivers.gpu_probe import GpuProbe
probe = GpuProbe.open()
options = pathlib.Path(os.environ["STAND_IN_NVML"], "options")
counts = [len(probe.read())]
for word in ("broken", "broken", ""):
    options.write_text(word)
    counts.append(len(probe.read()))
probe.close()
print(counts)
"""
    environment = os.environ | world.environment() | {"PYTHONPATH": str(SCRIPTS)}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
    )
    assert ended.stdout.strip() == "[1, 0, 0, 1]"
    assert ended.stderr.count("does not answer") == 1
