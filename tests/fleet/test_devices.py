"""Devices as the books want them: only those that may be used, numbered as CUDA would, and the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corral.drivers import host_memory
from corral.drivers.gpu_probe import GpuReading
from corral.fleet.devices import UNGUARDED_BYTES, read_gpus, read_host
from corral.policy.placement import HOST
from tests.settings.desk import Desk

GIB = 1 << 30


class Probe:
    def read(self) -> tuple[GpuReading, ...]:
        return tuple(GpuReading(f"GPU-{name}", n, name, GIB, 0, None) for n, name in enumerate("abc"))


@pytest.mark.parametrize(
    ("chosen", "visible", "read"),
    [
        pytest.param(None, {}, ["GPU-a", "GPU-b", "GPU-c"], id="all"),
        pytest.param([2], {}, ["GPU-c"], id="gpu_devices"),
        pytest.param(None, {"CUDA_VISIBLE_DEVICES": "2,0"}, ["GPU-c", "GPU-a"], id="in CUDA's order"),
        pytest.param([1], {"CUDA_VISIBLE_DEVICES": "2,0"}, ["GPU-a"], id="both"),
        pytest.param(None, {"CUDA_VISIBLE_DEVICES": ""}, [], id="none"),
    ],
)
def test_only_gpus_that_may_be_used_are_read(
    tmp_path: Path, chosen: list[int] | None, visible: dict[str, str], read: list[str]
) -> None:
    settings = Desk(tmp_path).load({"system": {"gpu_devices": chosen}} if chosen else {}, visible)
    assert [each.uuid for each in read_gpus(Probe(), settings)] == read  # type: ignore[arg-type]


def test_the_host_shows_what_processes_have_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "read", lambda: host_memory.HostMemory(8 * GIB, 6 * GIB))
    nobody = 2**22 + 1
    host = read_host([os.getpid(), nobody])
    assert (host.id, host.total_bytes, host.used_bytes) == (HOST, 8 * GIB, 2 * GIB)
    assert host.processes is not None
    assert host.processes.keys() == {os.getpid()}
    assert host.processes[os.getpid()] > 1 << 20


def test_where_the_kernel_does_not_say_there_is_no_end_to_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "read", lambda: None)
    host = read_host()
    assert (host.total_bytes, host.used_bytes, host.processes) == (UNGUARDED_BYTES, 0, {})
