"""The policy passes on many random worlds, and the simulator sees it fail: it finds every planted fault.

Set SIMULATED_HERDS for more worlds, or run `make simulate SEED=n`.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.chance import KINDS
from tests.simulation.planting import Fault, plant

WORLDS = int(os.environ.get("SIMULATED_HERDS", "60"))
# Every fault below is found in fewer worlds of its kind than this.
WORLDS_PER_FAULT = 60

FAULTS = (
    # kind of world in which it shows, and the fault
    ("anything", Fault("low-goes-before-high", "queue",
     "        for heap in self._heaps:", "        for heap in reversed(self._heaps):")),
    ("feast", Fault("nobody-is-charged", "queue",
     "self._counter(ticket.key_id, level) + tokens)", "self._counter(ticket.key_id, level))")),
    ("feast", Fault("the-greediest-is-next", "queue",
     "rank = self._counter(", "rank = -self._counter(")),
    ("feast", Fault("credit-can-be-hoarded", "queue",
     "self._write(key_id, level, max(", "self._write(key_id, level, min(")),
    ("feast", Fault("estimates-are-never-settled", "queue",
     "        if correction:", "        if False:")),
    ("siege", Fault("nobody-ages", "queue",
     "            if line.turn == stamp:\n", "            if False:\n")),
    ("siege", Fault("the-aged-are-last", "queue",
     "AGED = 0\n", "AGED = 3\n")),
    ("anything", Fault("who-leaves-is-counted-still", "queue",
     "self.size -= 1", "self.size -= 0")),
    ("anything", Fault("who-leaves-takes-the-line-along", "queue",
     "        if was_first and line.tickets:\n", "        if False:\n")),
    ("anything", Fault("a-key-runs-as-many-as-it-likes", "scheduler",
     "view.queue.hold(line)", "pass")),
    ("anything", Fault("a-held-key-stays-held", "scheduler",
     "view.queue.release(line, now)", "pass")),
    ("anything", Fault("a-key-s-slot-leaks", "scheduler",
     "        key.running -= 1", "        key.running -= 0")),
    ("anything", Fault("one-slot-too-many", "model",
     "len(self.running) < self.slots", "len(self.running) <= self.slots")),
    ("anything", Fault("a-draining-model-serves", "model",
     "return self.state is READY and len",
     "return self.state in (READY, ModelState.DRAINING) and len")),
    ("anything", Fault("an-abandoned-slot-is-free-at-once", "scheduler",
     "        view.abandoned += 1", "        view.abandoned += 1\n        view.running.discard(ticket)")),
    ("anything", Fault("a-model-stops-while-it-works", "model",
     "return len(self.running) > self.abandoned", "return len(self.running) > self.abandoned + 1")),
    ("anything", Fault("nobody-is-ever-overdue", "scheduler",
     "        self._note_deadline(ticket)\n", "")),
    ("anything", Fault("a-switch-costs-nothing", "switching",
     "WORTH = 4.0", "WORTH = 0.5")),
    ("siege", Fault("a-model-in-use-never-makes-way", "switching",
     "    if has_been_patient(resident, claimant, terms):", "    if False:")),
    ("siege", Fault("only-a-higher-class-makes-a-switch", "switching",
     "claimant.level <= resident.base", "claimant.base < resident.base")),
    ("anything", Fault("no-tenure", "switching",
     "return resident.ready_for_s >= min(", "return True or resident.ready_for_s >= min(")),
    ("anything", Fault("the-pinned-go-too", "places",
     "if not view.pinned and chosen(view)]", "if chosen(view)]")),
    ("anything", Fault("one-model-too-many", "places",
     "return len(self._resident) >= self._models_max", "return len(self._resident) > self._models_max")),
    ("anything", Fault("a-load-is-not-reserved", "places",
     "        self._admission.reserve(view.name, placement)", "        pass")),
    ("anything", Fault("nobody-asks-for-a-load", "places",
     "view.state is ModelState.OFF for view in self.wanted", "False for view in self.wanted")),
    ("crush", Fault("room-that-is-made-for-one-is-given-to-another", "places",
     "case Place(placement) if not promised.isdisjoint(placement.devices):", "case Place() if False:")),
    ("anything", Fault("the-last-is-not-told", "scheduler",
     "for ticket in refused:", "for ticket in refused[:-1]:")),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_goes_wrong_in_random_worlds(kind: str) -> None:
    for seed in range(WORLDS):
        try:
            KINDS[kind](seed).run()
        except Exception as fault:
            pytest.fail(f"make simulate SEED={seed} COUNT=1, in {kind}: {fault!r}", pytrace=False)


@pytest.mark.parametrize(("kind", "fault"), FAULTS, ids=[fault.what for _, fault in FAULTS])
def test_a_planted_fault_is_found(kind: str, fault: Fault) -> None:
    policy = plant(fault)
    for seed in range(WORLDS_PER_FAULT):
        try:
            KINDS[kind](seed, policy).run()
        except Exception:
            return
    pytest.fail(f"{fault.what} was not found in {WORLDS_PER_FAULT} worlds")
