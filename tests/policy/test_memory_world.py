"""The guard passes on many random machines, and the simulator sees it fail: it finds every planted fault.

Set SIMULATED_WORLDS for more machines, or run tests/simulate.py with a seed.
"""

from __future__ import annotations

import inspect
import os
from types import ModuleType
from typing import NamedTuple

import pytest

from corral.policy import commitments, guard, placement
from tests.policy.memory_world import Broken, Parts, World

WORLDS = int(os.environ.get("SIMULATED_WORLDS", "2000"))
# Every fault below is found in fewer worlds than this.
WORLDS_PER_FAULT = 1000


class Fault(NamedTuple):
    """A piece of the source, replaced by another that is wrong."""

    what: str
    module: ModuleType
    right: str
    wrong: str


FAULTS = (
    Fault("a-loading-model-counts-as-measured", commitments,
          "return max(self.reserved, self.measured or 0)", "return self.measured or 0"),
    Fault("foreign-memory-is-forgotten", commitments,
          "foreign_bytes=max(0, device.used_bytes - measured)", "foreign_bytes=0"),
    Fault("no-margin", commitments,
          "- self.foreign_bytes - self.margin_bytes", "- self.foreign_bytes"),
    Fault("two-loads-at-a-time-where-processes-are-hidden", commitments,
          "closed=changing and self._processes(device) is None", "closed=False"),
    Fault("loads-during-a-release-where-processes-are-hidden", commitments,
          "changing |= not holding.settled or tenant.stage is _Stage.LEAVING",
          "changing |= not holding.settled"),
    Fault("a-device-that-cannot-be-read-is-taken-as-it-was", commitments,
          "self._devices = {device.id: device for device in ordered}",
          "self._devices |= {device.id: device for device in ordered}"),
    Fault("released-when-reaped", commitments, "return given_back or now", "return True or now"),
    Fault("released-while-it-stops", commitments,
          "if tenant.reaped_at is None or now <= tenant.reaped_at:",
          "tenant.reaped_at = 0.0\n        if tenant.stage is not _Stage.LEAVING:"),
    Fault("never-released", commitments, "if self._is_released(tenant, now))", "if False)"),
    Fault("one-release-is-taken-for-another", commitments,
          "if each.reaped_at is not None)", "if each.holdings.get(id) is holding)"),
    Fault("a-low-tide-is-taken-for-the-size", commitments,
          "holding.reserved = max(holding.reserved, holding.measured)",
          "holding.reserved = holding.measured"),
    Fault("mapped-weights-are-forgotten", commitments,
          "        if id != HOST:\n            holding.reserved =",
          "        if True:\n            holding.reserved ="),
    Fault("a-list-of-strange-pids-is-believed", commitments,
          "self._blind.add(id)", "self._blind.discard(id)"),
    Fault("what-is-counted-twice-is-believed", commitments,
          "return self.room_bytes + min(self.foreign_bytes, self.unseen_bytes)", "return self.room_bytes"),
    Fault("more-evicted-than-needed", guard, "if fewer is None:", "if True:"),
    Fault("the-last-used-are-evicted-first", guard,
          "_as_few_as_will_do(idle, lambda chosen: enough(",
          "_as_few_as_will_do(idle[::-1], lambda chosen: enough("),
    Fault("busy-models-are-evicted", guard,
          "        if enough((*leaving, *idle)):\n",
          "        idle = (*idle, *busy)\n        if enough((*leaving, *idle)):\n"),
    Fault("nothing-is-ever-evicted", guard, "if enough((*leaving, *idle)):", "if False:"),
    Fault("evicts-although-memory-comes-free", guard, "if enough(leaving):", "if False:"),
    Fault("a-busy-model-makes-it-impossible", guard,
          "gone = (*leaving, *idle, *busy)", "gone = (*leaving, *idle)"),
    Fault("takes-a-bad-place-at-once", guard,
          "if now is not None and now.layers >= best.layers:", "if now is not None:"),
    Fault("tried-again-among-idle-models", guard,
          "if self._retries.get(model) and (idle or leaving):", "if False:"),
    Fault("nothing-learnt-from-running-out-of-memory", guard, "* FAILURE_MULTIPLIER", "* 1"),
    Fault("relief-evicts-everything-idle", guard,
          "missing_bytes(chosen) <= least", "len(chosen) == len(idle)"),
    Fault("relief-never-comes", guard, "missing_bytes(chosen) <= least", "True"),
    Fault("the-host-is-not-guarded", placement, "if found.host_bytes <= host_room:", "if True:"),
    Fault("a-little-too-much-on-one-gpu", placement, "if need <= room]", "if need <= room * 1.02]"),
    Fault("a-little-too-much-when-divided", placement, "if min(spare) >= 0:", "if min(spare) >= -(1 << 26):"),
    Fault("never-spread", placement, "counts = range(2, len(gpus) + 1)", "counts = range(0)"),
    Fault("one-layer-too-few", placement, "footprint.layer_count - 1\n", "footprint.layer_count - 2\n"),
)  # fmt: skip


def plant(fault: Fault) -> Parts:
    """The guard, with this fault in it, beside the sound one."""
    source = inspect.getsource(fault.module)
    assert source.count(fault.right) == 1, f"{fault.what}: the source has changed; say anew what to replace"
    faulty = ModuleType(fault.module.__name__)
    exec(compile(source.replace(fault.right, fault.wrong), f"<{fault.what}>", "exec"), faulty.__dict__)
    if fault.module is commitments:
        return Parts(commitments=faulty)
    if fault.module is guard:
        return Parts(guard=faulty)
    guided = ModuleType(guard.__name__)
    exec(inspect.getsource(guard), guided.__dict__)
    guided.__dict__["choose"] = faulty.__dict__["choose"]
    return Parts(guard=guided)


def run_worlds(parts: Parts) -> None:
    for seed in range(WORLDS_PER_FAULT):
        World(seed, parts).run()


def test_nothing_goes_wrong_on_random_machines() -> None:
    for seed in range(WORLDS):
        try:
            World(seed).run()
        except Exception as fault:
            pytest.fail(f"make simulate SEED={seed} COUNT=1: {fault!r}", pytrace=False)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    parts = plant(fault)
    with pytest.raises((Broken, parts.commitments.Overcommitted)):
        run_worlds(parts)
