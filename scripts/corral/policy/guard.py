"""The VRAM guard: may this model be loaded now, where, and if not, what has to happen first?

It decides by the books (`commitments`) and by where a model can go (`placement`), and acts on nothing.
A model gets the best place that this machine has for it once every model that may go is gone. For such a
place it's worth to evict, or to wait: a bad one would last for as long as the model stays. Foreign
memory is taken as it is, since nobody knows when it will come free.

    guard.decide(...)  ->  Place       reserve it and spawn
                           EvictFirst  these idle models first; ask again when one is released
                           Wait        for something that will happen; ask again with the next readings
                           Impossible  not on this machine: refuse

Readings should be fresh when it is asked, and what it says is good for that moment only.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from corral.errors import InsufficientVram
from corral.formats.size import amount
from corral.policy.commitments import Account, Commitments
from corral.policy.fit import Suggestions
from corral.policy.learning import FAILURE_MULTIPLIER
from corral.policy.placement import HOST, Footprint, Kind, Placement, choose
from corral.settings import Allocation


class Reason(enum.Enum):
    """What is waited for."""

    LOADING = "another model is loading there"
    RELEASING = "memory is being given back"
    BUSY = "models that are in use hold the memory"
    FULL = "as many models are loaded as may be"  # said by the scheduler, which counts them
    FOREIGN = "other programs have taken more memory, and models that are in use hold the rest"
    UNREADABLE = "a device can't be read"


class Place(NamedTuple):
    placement: Placement


class EvictFirst(NamedTuple):
    models: tuple[str, ...]


class Wait(NamedTuple):
    reason: Reason
    on: tuple[str, ...]  # models; for UNREADABLE, devices


class Impossible(NamedTuple):
    """There is no place for it on this machine, even with every model gone that may go."""

    model: str
    layers: int  # meant for GPUs
    gpu_bytes: int  # on one GPU
    host_bytes: int  # beside it
    cpu_bytes: int  # in the host's memory, without a GPU
    cpu_allowed: bool
    layers_fixed: bool
    gone: tuple[str, ...]  # models whose memory is counted as free
    accounts: tuple[Account, ...]
    free: Mapping[str, int]  # by device, with these gone


Decision = Place | EvictFirst | Wait | Impossible


class TooSmall(NamedTuple):
    """What a death from want of memory teaches: at least so much is to be reserved the next time."""

    needs: Mapping[str, int]
    retry: bool  # whether to try once more at once; `decide` will first evict everything idle


class Guard:
    def __init__(self, commitments: Commitments, strategy: Allocation, *, cpu_fallback: bool) -> None:
        self._commitments = commitments
        self._strategy = strategy
        self._cpu_fallback = cpu_fallback
        # Models that ran out of memory at their last load, and whether they are still to be tried again.
        self._retries: dict[str, bool] = {}

    def decide(
        self, model: str, footprint: Footprint, *, idle: Sequence[str], busy: Sequence[str]
    ) -> Decision:
        """What to do about a model that is wanted.

        `idle` are the models that may be evicted, the least recently used first. `busy` are those that may
        be some day (in use, or still loading), in the order in which they'd be asked to go. Any other
        model, a pinned one for example, stays whatever happens.
        """
        if model in self._commitments:
            return Wait(Reason.RELEASING, (model,))
        leaving = self._commitments.leaving
        if self._retries.get(model) and (idle or leaving):
            return EvictFirst(tuple(idle)) if idle else Wait(Reason.RELEASING, leaving)
        accounts = self._commitments.accounts()
        now = self._choose(footprint, {each.id: each.room_bytes for each in accounts if not each.closed})
        if now is not None and now.layers == footprint.layer_count:
            return Place(now)
        gone = (*leaving, *idle, *busy)
        rooms = self._rooms_without(gone, accounts)
        best = self._choose(footprint, rooms)
        unreadable = self._commitments.unreadable if HOST in rooms else (HOST,)
        if unreadable and (best is None or best.layers < footprint.layer_count):
            return Wait(Reason.UNREADABLE, unreadable)
        if best is None:
            return self._impossible(model, footprint, gone, accounts)
        if now is not None and now.layers >= best.layers:
            return Place(now)
        return self._make_room(footprint, best.layers, accounts, idle, busy)

    def _make_room(
        self,
        footprint: Footprint,
        layers: int,
        accounts: Sequence[Account],
        idle: Sequence[str],
        busy: Sequence[str],
    ) -> EvictFirst | Wait:
        """What must happen for so many layers to find room. That it would be enough is known."""
        leaving = self._commitments.leaving

        def enough(gone: Iterable[str]) -> bool:
            found = self._choose(footprint, self._rooms_without(gone, accounts))
            return found is not None and found.layers >= layers

        if enough(()):
            unsettled = self._commitments.unsettled
            return Wait(Reason.LOADING, unsettled) if unsettled else Wait(Reason.RELEASING, leaving)
        if enough(leaving):
            return Wait(Reason.RELEASING, leaving)
        if enough((*leaving, *idle)):
            victims = _as_few_as_will_do(idle, lambda chosen: enough((*leaving, *chosen)))
            return self._wait_beside(victims, accounts) or EvictFirst(victims)
        blocking = _as_few_as_will_do(busy, lambda chosen: enough((*leaving, *idle, *chosen)))
        broken = any(account.hoped_bytes < 0 for account in accounts)
        return Wait(Reason.FOREIGN if broken else Reason.BUSY, blocking)

    def _wait_beside(self, victims: Sequence[str], accounts: Sequence[Account]) -> Wait | None:
        """What these can't be evicted beside: a load on a GPU whose gains and losses can't be told apart."""
        unsettled = self._commitments.unsettled
        closed = {account.id for account in accounts if account.closed}
        beside = any(not closed.isdisjoint(self._commitments.held(each)) for each in victims)
        return Wait(Reason.LOADING, unsettled) if beside and unsettled else None

    def rehearse(
        self, model: str, footprint: Footprint, *, idle: Sequence[str], busy: Sequence[str]
    ) -> tuple[Decision, Placement | None]:
        """What `decide` would say, and where the model would be in the end, if that can be told."""
        decision = self.decide(model, footprint, idle=idle, busy=busy)
        match decision:
            case Place(placement):
                return decision, placement
            case EvictFirst(models):
                gone = models
            case Wait():
                gone = (*idle, *busy)
            case Impossible():
                return decision, None
        rooms = self._rooms_without((*self._commitments.leaving, *gone), self._commitments.accounts())
        return decision, self._choose(footprint, rooms)

    def relieve(self, idle: Sequence[str]) -> tuple[str, ...]:
        """Which idle models have to go because the sum is broken: other programs have taken more memory.

        What is only counted twice, or on its way out, breaks nothing. `idle` as in `decide`.
        """
        leaving = self._commitments.leaving
        accounts = self._commitments.accounts()

        def missing_bytes(chosen: Iterable[str]) -> int:
            rooms = self._rooms_without((*leaving, *chosen), accounts)
            return sum(max(0, -room) for room in rooms.values())

        least = missing_bytes(idle)
        return _as_few_as_will_do(idle, lambda chosen: missing_bytes(chosen) <= least)

    def reserve(self, model: str, placement: Placement) -> None:
        """It's about to be spawned, as decided."""
        self._commitments.reserve(model, placement)
        if model in self._retries:
            self._retries[model] = False

    def loaded(self, model: str) -> None:
        """It is ready: whatever it died of before is over."""
        self._commitments.loaded(model)
        self._retries.pop(model, None)

    def out_of_memory(self, model: str) -> TooSmall:
        """It died at its load because memory ran out. To be told before it's told to be reaped."""
        self._retries[model] = model not in self._retries
        observed = self._commitments.observed(model)
        needs = {
            id: round(max(held, observed.get(id, 0)) * FAILURE_MULTIPLIER)
            for id, held in self._commitments.held(model).items()
        }
        return TooSmall(needs, self._retries[model])

    def _choose(self, footprint: Footprint, rooms: Mapping[str, int]) -> Placement | None:
        return choose(footprint, rooms, self._strategy, cpu_allowed=self._cpu_allowed)

    @property
    def _cpu_allowed(self) -> bool:
        # Without a GPU the CPU is no fallback but what there is.
        return self._cpu_fallback or not self._commitments.has_gpus

    def _rooms_without(self, gone: Iterable[str], accounts: Iterable[Account]) -> dict[str, int]:
        """The rooms there will be once these models are gone, and nothing is counted twice any more."""
        rooms = {account.id: account.hoped_bytes for account in accounts}
        for name in set(gone):
            for id, held in self._commitments.held(name).items():
                if id in rooms:
                    rooms[id] += held
        return rooms

    def _impossible(
        self, model: str, footprint: Footprint, gone: Collection[str], accounts: tuple[Account, ...]
    ) -> Impossible:
        layers = footprint.layer_count
        return Impossible(
            model=model,
            layers=layers,
            gpu_bytes=footprint.spread((1,), layers)[0] if layers else 0,
            host_bytes=footprint.host_bytes(layers),
            cpu_bytes=footprint.host_bytes(0),
            cpu_allowed=self._cpu_allowed or not layers,
            layers_fixed=footprint.layers_fixed,
            gone=tuple(name for name in gone if name in self._commitments),
            accounts=accounts,
            free=self._rooms_without(gone, accounts),
        )


def _as_few_as_will_do(models: Sequence[str], enough: Callable[[Sequence[str]], bool]) -> tuple[str, ...]:
    """The first of these models, without those that are not needed. All of them together are enough."""
    count = next(count for count in range(len(models) + 1) if enough(models[:count]))
    chosen = list(models[:count])
    while True:
        # Whoever was used last is spared first.
        others = ([each for each in chosen if each != spared] for spared in reversed(chosen))
        fewer = next((each for each in others if enough(each)), None)
        if fewer is None:
            return tuple(chosen)
        chosen = fewer


# In words -----------------------------------------------------------------------------------------


def refusal(impossible: Impossible, suggestions: Suggestions | None = None) -> InsufficientVram:
    """The error for whoever asked, with what would fit instead, if anybody knows."""
    gone = f" with {', '.join(impossible.gone)} unloaded" if impossible.gone else ""
    devices = "; ".join(_device_in_words(each, impossible.free[each.id]) for each in impossible.accounts)
    sentences = (
        f"{impossible.model!r} does not fit: it needs {_needs_in_words(impossible)}.",
        f"Free{gone}: {devices}.",
        f"Tried: {_tried_in_words(impossible)}.",
        suggestions.text() if suggestions else "",
    )
    return InsufficientVram(" ".join(filter(None, sentences)))


def _needs_in_words(impossible: Impossible) -> str:
    alone = f"{amount(impossible.cpu_bytes)} of main memory"
    if not impossible.layers or not _gpus(impossible):
        return alone
    beside = f"{amount(impossible.host_bytes)} of main memory beside it"
    return f"{amount(impossible.gpu_bytes)} on a GPU with {beside}, or {alone} alone"


def _device_in_words(account: Account, free_bytes: int) -> str:
    others = f", {amount(account.foreign_bytes)} used by other programs" if account.foreign_bytes else ""
    return f"{account.name} {amount(max(0, free_bytes))} of {amount(account.total_bytes)}{others}"


def _tried_in_words(impossible: Impossible) -> str:
    tried = []
    gpus = _gpus(impossible)
    if impossible.layers and gpus:
        tried.append(Kind.SINGLE.value)
        tried += [Kind.SPREAD.value] if gpus > 1 else []
        fixed = "fewer layers on GPUs no, its flags fix their number"
        tried.append(fixed if impossible.layers_fixed else Kind.PARTIAL.value)
    tried.append(Kind.CPU.value if impossible.cpu_allowed else "the CPU no, gpu.cpu_fallback is off")
    return ", ".join(tried)


def _gpus(impossible: Impossible) -> int:
    return sum(account.id != HOST for account in impossible.accounts)
