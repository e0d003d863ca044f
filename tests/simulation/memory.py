"""The memory of a machine that does not exist, with the real guard before it.

Models take exactly what they say, all at once when their process begins, and give it back a while after
it ends. What the guard makes of liars, hidden processes and slow drivers is the business of the guard's
own worlds (tests/policy/memory_world.py); here it is one part among others.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from corral import errors
from corral.policy.commitments import Commitments, Device
from corral.policy.footprint import UnknownFootprint
from corral.policy.guard import Guard
from corral.policy.guard import refusal as refusal_of
from corral.policy.placement import HOST
from corral.settings import Allocation
from tests.simulation.oracles import Broken
from tests.simulation.world import Herd, Spec

GIB = 1 << 30
HOST_BYTES = 256 * GIB


class GuardedHerd(Herd):
    def __init__(self, specs: Mapping[str, Spec], gpus: Sequence[int], chance: random.Random) -> None:
        """`gpus`: the bytes of each."""
        self._footprints = {
            name: UnknownFootprint(spec.size_bytes, gpus=bool(gpus)) for name, spec in specs.items()
        }
        self._totals = {**{f"GPU-{number}": size for number, size in enumerate(gpus)}, HOST: HOST_BYTES}
        self._chance = chance
        self._books = Commitments()
        self._guard = Guard(self._books, Allocation.SINGLE_GPU_PREFERRED, cpu_fallback=False)
        self._needs: dict[str, dict[str, int]] = {}
        self._pids: dict[str, int] = {}
        self._holding: dict[int, dict[str, int]] = {}  # in truth, by process
        self._now = 0.0
        self.look(0.0)

    # For the scheduler -------------------------------------------------------------------------

    def decide(self, model: str, idle: Sequence[str], busy: Sequence[str]) -> Any:
        self.look(self._now)
        busy = [name for name in busy if name not in self._books.leaving]
        return self._guard.decide(model, self._footprints[model], idle=idle, busy=busy)

    def reserve(self, model: str, placement: Any) -> None:
        self._guard.reserve(model, placement)
        self._needs[model] = dict(placement.needs)

    def stopping(self, model: str) -> None:
        self._books.stopping(model)

    def relieve(self, idle: Sequence[str]) -> Sequence[str]:
        return self._guard.relieve(idle)

    def refusal(self, impossible: Any) -> errors.CorralError:
        return refusal_of(impossible)

    # From the world ----------------------------------------------------------------------------

    def spawned(self, model: str) -> None:
        pid = self._pids[model] = 1000 + len(self._holding)
        self._holding[pid] = self._needs[model]
        self._books.spawned(model, pid)

    def loaded(self, model: str) -> None:
        self._guard.loaded(model)

    def gone(self, model: str, now: float) -> float:
        self._now = now
        self._holding[self._pids.pop(model)] = {}
        self._books.stopping(model)
        self._books.reaped(model, now)
        return 0.1

    def look(self, now: float) -> None:
        """Read every device."""
        self._now = now
        devices = []
        for number, (id, total) in enumerate(self._totals.items()):
            parts = {pid: needs[id] for pid, needs in self._holding.items() if needs.get(id)}
            devices.append(Device(id, number, total, sum(parts.values()), parts))
        self._books.observe(devices, now)

    # Oracles -----------------------------------------------------------------------------------

    def check(self) -> None:
        """What is promised fits, and so does what is taken."""
        self.look(self._now)
        for account in self._books.accounts():
            if account.room_bytes < 0:
                raise Broken(f"{account.name} is promised {-account.room_bytes} bytes too often")

    def check_empty(self) -> None:
        self.look(self._now + 10.0)
        left = [name for name in self._footprints if name in self._books]
        if left:
            raise Broken(f"memory is still promised to {left}")
