"""The machine's memory as the books want it: the GPUs that may be used, in their order, and the host."""

from __future__ import annotations

from collections.abc import Iterable

from corral.drivers import host_memory, process_memory
from corral.drivers.gpu_probe import GpuProbe, GpuReading
from corral.policy.commitments import Device
from corral.policy.placement import HOST
from corral.policy.visibility import usable
from corral.settings import Settings

# Where the kernel does not say how much memory there is, nothing can be guarded.
UNGUARDED_BYTES = 1 << 50
HOST_INDEX = 1 << 16


def read_gpus(probe: GpuProbe, settings: Settings) -> list[GpuReading]:
    """Those that the surroundings and the settings allow. Their places in the list are their numbers."""
    readings = {reading.uuid: reading for reading in probe.read()}
    allowed = usable(tuple(readings), settings.visible_devices, settings.herd.gpu_devices)
    return [readings[uuid] for uuid in allowed]


def read_host(pids: Iterable[int] = ()) -> Device:
    """The host's memory, and how much of it these processes have for themselves."""
    # Before the whole, so that no part is newer than it.
    read = {pid: process_memory.read(pid) for pid in pids}
    processes = {pid: memory.anonymous_bytes for pid, memory in read.items() if memory is not None}
    memory = host_memory.read() or host_memory.HostMemory(UNGUARDED_BYTES, UNGUARDED_BYTES)
    used = memory.total_bytes - memory.available_bytes
    return Device(HOST, HOST_INDEX, memory.total_bytes, used, processes)
