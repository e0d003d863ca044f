"""What the memory guard's simulator is made of: models, devices and processes, and the truth about them."""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass

from corral.policy.placement import HOST

MIB = 1 << 20
GIB = 1 << 30


class Listing(enum.Enum):
    """What a device says about processes."""

    SHOWN = "shown"
    HIDDEN = "hidden"
    LATE = "shown once one of ours has been seen"
    STRANGE = "pids of another namespace"


class Phase(enum.Enum):
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    DEAD = "dead, its memory perhaps not given back yet"
    STUCK = "unreapable"


ALIVE = (Phase.LOADING, Phase.READY)
LEAVING = (Phase.STOPPING, Phase.DEAD)


@dataclass(frozen=True)
class Model:
    """A model as plain as can be: equal layers, a context on each GPU, something on the host."""

    layers: int
    layer_bytes: int
    layer_count: int
    layers_fixed: bool = False
    context_bytes: int = 0
    host_base_bytes: int = 0
    pinned: bool = False
    truth: float = 1.0  # how much it takes of what it says; above 1 it lies
    raised: float = 1.0  # how much more is reserved since it ran out of memory

    def spread(self, shares: Sequence[float], layers: int) -> tuple[int, ...]:
        total, cumulated, before, needs = sum(shares), 0.0, 0, []
        for share in shares:
            cumulated += share
            upto = round(layers * cumulated / total)
            needs.append(int((self.context_bytes + (upto - before) * self.layer_bytes) * self.raised))
            before = upto
        return tuple(needs)

    def host_bytes(self, layers: int) -> int:
        return int((self.host_base_bytes + (self.layers - layers) * self.layer_bytes) * self.raised)


@dataclass
class Machine:
    """One device."""

    id: str
    index: int
    total: int
    foreign: int
    listing: Listing
    readable: bool = True
    disturbed_at: float = 0.0  # when another program came or went, or a reading failed

    @property
    def margin(self) -> int:
        return min(GIB, self.total // 32)


@dataclass(eq=False)
class Process:
    model: str
    pid: int
    began_at: float
    reserved: dict[str, int]
    needs: dict[str, int]  # what it will really hold
    mapped: float  # of what it holds on the host, the part that the kernel doesn't count
    grown: float
    phase: Phase = Phase.LOADING
    breath: float = 1.0
    measured: bool = False
    busy: bool = True
    used_at: float = 0.0
    gives_back_at: float = 0.0
    unseen: bool = False  # whether it died with more than it was last seen to have
    crossed: bool = False  # whether another one did so in its time
    released: bool = False

    def uses(self, id: str) -> int:
        """What the device counts as used on its account."""
        need = self.needs.get(id, 0)
        if id != HOST:
            return int(need * self.grown * self.breath)
        # The host has its memory back with the process's end.
        return 0 if self.phase is Phase.DEAD else int(need * self.grown * (1 - self.mapped))

    def promised(self, id: str) -> int:
        """What must be kept for it: its reservation until it is measured, then what it really holds."""
        if self.phase is Phase.DEAD:
            return self.uses(id)  # nobody can see how much of it is back
        kept = self.needs if self.measured and id != HOST else self.reserved
        return max(kept.get(id, 0), self.uses(id))

    def peak(self, id: str) -> int:
        """The most that it will ever use, as far as anybody could know before it does."""
        if self.phase not in ALIVE:
            return self.uses(id)
        if self.phase is Phase.READY and id != HOST:
            return self.needs.get(id, 0)
        return max(self.uses(id), min(self.needs.get(id, 0), self.reserved.get(id, 0)))


def random_machines(chance: random.Random) -> list[Machine]:
    """No GPU to four, of one kind of listing, and the host."""
    listing = chance.choice(list(Listing)) if chance.random() < 0.7 else Listing.SHOWN
    machines = []
    for index in range(chance.choice((0, 1, 1, 2, 2, 3, 4))):
        total = chance.randrange(4, 49) * GIB
        foreign = int(total * chance.choice((0.0, 0.02, 0.3)))
        machines.append(Machine(f"GPU-{index}", index, total, foreign, listing))
    total = chance.randrange(8, 129) * GIB
    return [*machines, Machine(HOST, 0, total, total // 8, Listing.SHOWN)]


def random_model(chance: random.Random, *, honest: bool) -> Model:
    if chance.random() < 0.03:
        return Model(layers=1, layer_bytes=0, layer_count=1)  # takes nothing, and is a model all the same
    layers = chance.randint(1, 60)
    size = int(chance.choice((1, 2, 4, 6, 8, 16, 30)) * GIB * chance.uniform(0.5, 1.5))
    return Model(
        layers=layers,
        layer_bytes=size // layers,
        layer_count=chance.choice((layers, layers, layers, layers // 2, 0)),
        layers_fixed=chance.random() < 0.2,
        context_bytes=chance.randrange(500) * MIB,
        host_base_bytes=chance.randrange(1000) * MIB,
        pinned=chance.random() < 0.15,
        truth=chance.uniform(0.8, 1.0 if honest else 1.5),
    )
