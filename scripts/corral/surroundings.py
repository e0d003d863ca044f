"""What the gateway finds when it comes up: cards, models, and what was learnt of them earlier.

All that is slow at a start is in here. A header with a large vocabulary takes 50 ms (measured), a driver
that sleeps seconds, and one that hangs never comes back. So it is looked for on a thread of its own, and
nothing in here knows of the gateway that waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from corral.catalogue import Catalogue
from corral.drivers import host_memory
from corral.drivers.gpu_probe import GpuProbe, GpuReading
from corral.drivers.learned_store import LearnedStore
from corral.drivers.model_store import catalogue
from corral.formats.size import amount
from corral.settings import Settings


class Surroundings(NamedTuple):
    gpu_probe: GpuProbe | None
    gpus: tuple[GpuReading, ...]
    learned: LearnedStore
    catalogue: Catalogue


def look_around(config: Settings) -> Surroundings:
    gpu_probe = GpuProbe.open() if config.herd.gpu_enabled else None
    return Surroundings(
        gpu_probe=gpu_probe,
        gpus=() if gpu_probe is None else gpu_probe.read(),
        learned=LearnedStore(config.paths.state / "corral.db"),
        catalogue=catalogue(config),
    )


def hardware(gpus: Sequence[GpuReading]) -> str:
    """What the models run on, in words."""
    if gpus:
        return ", ".join(f"{gpu.name} ({amount(gpu.total_bytes)})" for gpu in gpus)
    memory = host_memory.read()
    return "no GPU found, CPU mode" + (f", {amount(memory.total_bytes)} of memory" if memory else "")
