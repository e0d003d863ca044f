"""Where on the machine a model goes, given how much room each device has.

One GPU is best: nothing crosses the bus while it works. Then several, each with layers in proportion to
its room; then as many layers as fit, the rest computed on the host; then the host alone. Whoever asks to
have models distributed gets several GPUs before one.

Rooms are bytes by device id: the GPUs in their order, and HOST, which every process needs something of.
A device whose room is below zero, or that is not among them, takes nothing, not even nothing at all.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from corral.settings import Allocation

HOST = "host"
_MIB = 1 << 20


class Kind(enum.Enum):
    SINGLE = "one GPU"
    SPREAD = "several GPUs"
    PARTIAL = "as many layers on GPUs as fit"
    CPU = "the CPU"


class Footprint(Protocol):
    """How many bytes a model takes, as a function of where its layers go. It is asked often."""

    @property
    def layer_count(self) -> int:
        """How many layers are meant for GPUs, the output layer among them; 0 is a model for the CPU."""

    @property
    def layers_fixed(self) -> bool:
        """Whether it must be that many on GPUs: its own flags say so, and they have the last word."""

    def spread(self, shares: Sequence[float], layers: int) -> tuple[int, ...]:
        """Bytes on each GPU with so many layers divided among them by these shares."""

    def host_bytes(self, layers: int) -> int:
        """Bytes in the host's memory with so many layers on GPUs. The more layers there, the fewer here."""


@dataclass(frozen=True, slots=True)
class Placement:
    kind: Kind
    layers: int  # on GPUs
    gpus: tuple[str, ...]  # in the machine's order, which is the order of `tensor_split` too
    gpu_bytes: tuple[int, ...]
    host_bytes: int
    tensor_split: tuple[int, ...] = ()  # empty with less than two GPUs

    @property
    def devices(self) -> tuple[str, ...]:
        """Whose memory it is about: the GPUs, or the host's where there are none."""
        return self.gpus or (HOST,)

    @property
    def needs(self) -> dict[str, int]:
        """Bytes by device id, the host's included."""
        return {**dict(zip(self.gpus, self.gpu_bytes, strict=True)), HOST: self.host_bytes}


def choose(
    footprint: Footprint, rooms: Mapping[str, int], strategy: Allocation, *, cpu_allowed: bool
) -> Placement | None:
    """The best placement for which there is room."""
    host_room = rooms.get(HOST, -1)
    if host_room < 0:
        return None
    for found in _by_merit(footprint, rooms, strategy, cpu_allowed):
        # Fewer layers on GPUs mean more on the host, so nothing further down needs less of it. All the
        # same each is looked at: a sum that is slightly off must not become a promise.
        if found.host_bytes <= host_room:
            return found
    return None


def _by_merit(
    footprint: Footprint, rooms: Mapping[str, int], strategy: Allocation, cpu_allowed: bool
) -> Iterator[Placement]:
    """What the GPUs have room for, the best first; the host's room is not looked at."""
    gpus = {id: room for id, room in rooms.items() if id != HOST and room >= 0}
    if footprint.layer_count and gpus:
        whole = _whole(footprint, gpus, strategy)
        if whole is not None:
            yield whole
        elif not footprint.layers_fixed and (partial := _partial(footprint, gpus)):
            yield partial
    if cpu_allowed or not footprint.layer_count:
        yield Placement(Kind.CPU, 0, (), (), footprint.host_bytes(0))


def _whole(footprint: Footprint, gpus: Mapping[str, int], strategy: Allocation) -> Placement | None:
    """All layers on GPUs."""
    if strategy is Allocation.DISTRIBUTE:
        counts = range(len(gpus), 1, -1)
        return _spread_over_one_of(counts, footprint, gpus) or _on_one(footprint, gpus)
    # As few as will do: each takes a context of its own, and its part in passing results on.
    counts = range(2, len(gpus) + 1)
    return _on_one(footprint, gpus) or _spread_over_one_of(counts, footprint, gpus)


def _on_one(footprint: Footprint, gpus: Mapping[str, int]) -> Placement | None:
    """Best fit: where the least room remains, so that the large gaps stay for large models."""
    layers = footprint.layer_count
    (need,) = footprint.spread((1,), layers)
    fitting = [id for id, room in gpus.items() if need <= room]
    if not fitting:
        return None
    tightest = min(fitting, key=gpus.__getitem__)
    return Placement(Kind.SINGLE, layers, (tightest,), (need,), footprint.host_bytes(layers))


def _spread_over_one_of(counts: range, footprint: Footprint, gpus: Mapping[str, int]) -> Placement | None:
    tries = (
        _divided(Kind.SPREAD, footprint, _roomiest(gpus, count), footprint.layer_count) for count in counts
    )
    return next((found for found in tries if found is not None), None)


def _partial(footprint: Footprint, gpus: Mapping[str, int]) -> Placement | None:
    """The most layers that fit on any number of GPUs; on as few GPUs as can have that many."""
    best = None
    for count in range(1, len(gpus) + 1):
        chosen = _roomiest(gpus, count)
        had, wanted = best.layers if best else 0, footprint.layer_count - 1
        while had < wanted:
            middle = (had + wanted + 1) // 2
            found = _divided(Kind.PARTIAL, footprint, chosen, middle)
            if found is None:
                wanted = middle - 1
            else:
                best, had = found, middle
    return best


def _divided(kind: Kind, footprint: Footprint, gpus: Mapping[str, int], layers: int) -> Placement | None:
    """So many layers on these GPUs, divided in proportion to their rooms, if that fits."""
    rooms = tuple(gpus.values())
    # Whole numbers, the same for the sum and for the command line: no rounding comes between them.
    shares = [max(1, room // _MIB) for room in rooms]
    for _ in range(2 * len(shares) - 1):
        needs = footprint.spread(shares, layers)
        spare = [room - need for room, need in zip(rooms, needs, strict=True)]
        if min(spare) >= 0:
            split = tuple(shares) if len(shares) > 1 else ()
            return Placement(kind, layers, tuple(gpus), needs, footprint.host_bytes(layers), split)
        # Layers are whole and the GPUs' parts are not: move one layer from the fullest to the emptiest.
        fullest, emptiest = spare.index(min(spare)), spare.index(max(spare))
        layer = min(shares[fullest] - 1, sum(shares) // layers)
        shares[fullest] -= layer
        shares[emptiest] += layer
    return None


def _roomiest(gpus: Mapping[str, int], count: int) -> dict[str, int]:
    """So many GPUs with the most room, still in the machine's order."""
    roomiest = sorted(gpus, key=gpus.__getitem__, reverse=True)[:count]
    return {id: room for id, room in gpus.items() if id in roomiest}
