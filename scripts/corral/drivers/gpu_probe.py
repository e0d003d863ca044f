"""Reads the memory of NVIDIA GPUs through `pynvml`: the one package that Corral may import, and need not.

Without the package, without a driver or without a card there is no probe. A card cut into MIG instances
is as many devices, because that is what a process can be given. `used_bytes` is total minus free, what
the driver itself keeps included: that, too, nobody can have.

Which process holds how much is shown on a plain machine. In most containers it is not: the driver names
no processes there, or names them by pids of the host that mean something else, or nothing, to us. So
`process_bytes` is what the driver says, and whether it can be believed is for others to find out, by
looking for a process that they know to be there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

# More than any machine has; a driver that says otherwise is not believed.
DEVICES_MAX = 256


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One device at one moment."""

    uuid: str
    index: int
    name: str
    total_bytes: int
    used_bytes: int
    process_bytes: Mapping[int, int] | None  # None: the driver does not say


class GpuProbe:
    """An open connection to the driver."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._complained = False

    @classmethod
    def open(cls) -> GpuProbe | None:
        """None where there is nothing to read."""
        try:
            import pynvml as nvml
        except ImportError:
            return None
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            return None
        return cls(nvml)

    def read(self) -> tuple[GpuReading, ...]:
        """Every device that can be read just now. One that can't is missing: nothing is to be put there.

        All behind it are missing too: their places in the list are their numbers, by which people name them.
        """
        readings: list[GpuReading] = []
        try:
            for index in range(min(self._nvml.nvmlDeviceGetCount(), DEVICES_MAX)):
                for handle in self._devices(index):
                    readings.append(self._read(handle, len(readings)))
            self._complained = False
        except self._nvml.NVMLError as error:
            # Once, and not with every reading: a driver that fails does so for hours.
            if not self._complained:
                self._complained = True
                log.warning("the GPU driver does not answer: %s", error)
        return tuple(readings)

    def _devices(self, index: int) -> list[Any]:
        """The card itself, or the MIG instances that it is cut into."""
        nvml = self._nvml
        card = nvml.nvmlDeviceGetHandleByIndex(index)
        try:
            if nvml.nvmlDeviceGetMigMode(card)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
                return [card]
        except nvml.NVMLError:
            return [card]  # a card that knows nothing of MIG
        instances = []
        for position in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
            try:
                instances.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, position))
            except nvml.NVMLError:
                continue  # a place for an instance where there is none
        return instances

    def _read(self, handle: Any, index: int) -> GpuReading:
        nvml = self._nvml
        # Before the whole, so that no part is newer than it: a model takes gigabytes with one call.
        processes = self._processes(handle)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return GpuReading(
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            index=index,
            name=_text(nvml.nvmlDeviceGetName(handle)),
            total_bytes=int(memory.total),
            used_bytes=int(memory.total) - int(memory.free),
            process_bytes=processes,
        )

    def _processes(self, handle: Any) -> Mapping[int, int] | None:
        nvml = self._nvml
        try:
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except nvml.NVMLError:
            return None
        if any(process.usedGpuMemory is None for process in processes):
            return None
        return {int(process.pid): int(process.usedGpuMemory) for process in processes}

    def close(self) -> None:
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            log.debug("the GPU driver did not like the goodbye: %s", error)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
