"""What would become of a model, told before it happens: where it would go, and what must happen first.

Whoever asks may be standing before a running herd or before an empty machine. The answers are the
guard's own in both cases, so a plan is never of another opinion than the load that follows it. Nothing
is reserved here, and a plan is good for the moment of its readings only.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

from corral.formats.size import amount
from corral.policy.commitments import Account, Commitments, Device
from corral.policy.fit import Suggestions
from corral.policy.footprint import AnyFootprint, Share
from corral.policy.guard import EvictFirst, Guard, Impossible, Place, Reason, Wait, refusal
from corral.policy.memory import Parts
from corral.policy.placement import Kind, Placement
from corral.policy.scheduler import Outlook
from corral.settings import Allocation

NOBODY = Outlook((), (), None)


class Verdict(enum.Enum):
    """What a request for the model would find."""

    LOADED = "loaded"
    LOAD = "load"
    EVICT = "evict"
    WAIT = "wait"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True)
class Plan:
    model: str
    verdict: Verdict
    message: str
    context_tokens: int | None  # of all slots together; None for a file that can't be read
    slots: int | None
    layer_count: int  # meant for GPUs
    parts: Parts  # of the bare prediction, wherever they'd lie
    placement: Placement | None = None
    shares: tuple[Share, ...] = ()  # of the devices of the placement
    names: Mapping[str, str] = field(default_factory=dict)  # of devices, for people
    evict: tuple[str, ...] = ()
    wait_for: tuple[str, ...] = ()
    impossible: Impossible | None = None
    would_fit: Suggestions | None = None  # where this fits nowhere, or now but not all on GPUs


class Company(NamedTuple):
    """Models that can be loaded at the same time, and how the devices are then."""

    placements: Mapping[str, Placement]
    accounts: tuple[Account, ...]


# Before a running herd ----------------------------------------------------------------------------


def foresee(
    model: str, footprint: AnyFootprint, guard: Guard, outlook: Outlook, accounts: Sequence[Account]
) -> Plan:
    """What would become of a request for a model that isn't there."""
    decision, placement = guard.rehearse(model, footprint, idle=outlook.idle, busy=outlook.busy)
    if isinstance(decision, Impossible):
        return _refused(decision, footprint)
    evict: list[str] = []
    waits: list[Wait] = []
    for step in (outlook.place, decision):
        match step:
            case EvictFirst(models):
                evict += [name for name in models if name not in evict]
            case Wait():
                waits.append(step)
    verdict = Verdict.WAIT if waits else Verdict.EVICT if evict else Verdict.LOAD
    plan = _placed(model, verdict, footprint, placement, accounts)
    return replace(
        plan,
        message=f"{plan.message}{_after(evict)}.{''.join(map(_waiting, waits))}",
        evict=tuple(evict),
        wait_for=tuple(name for wait in waits if wait.reason is not Reason.UNREADABLE for name in wait.on),
        would_fit=_whole(plan, footprint, accounts) if verdict is Verdict.LOAD else None,
    )


def of_loaded(model: str, footprint: AnyFootprint, placement: Placement, accounts: Sequence[Account]) -> Plan:
    """A model that is there, or on its way there."""
    plan = _placed(model, Verdict.LOADED, footprint, placement, accounts)
    return replace(plan, message=f"{plan.message}.")


def _placed(
    model: str,
    verdict: Verdict,
    footprint: AnyFootprint,
    placement: Placement | None,
    accounts: Sequence[Account],
) -> Plan:
    """A plan whose message lacks its end."""
    names = {account.id: account.name for account in accounts}
    where = "" if placement is None else f" {_where(placement, footprint.layer_count, names)}"
    return Plan(
        model=model,
        verdict=verdict,
        message=f"{model!r} {'has its place' if verdict is Verdict.LOADED else 'would load'}{where}",
        context_tokens=footprint.context_tokens,
        slots=footprint.slots,
        layer_count=footprint.layer_count,
        parts=_sum(footprint.shares(placement or _wished(footprint))),
        placement=placement,
        shares=footprint.shares(placement) if placement else (),
        names=names,
    )


def _whole(plan: Plan, footprint: AnyFootprint, accounts: Iterable[Account]) -> Suggestions | None:
    """What would be all on GPUs, of a model that is not. That has as many layers there as fit."""
    if plan.placement is None or plan.placement.layers == plan.layer_count:
        return None
    suggestions = footprint.would_fit({account.id: account.room_bytes for account in accounts})
    return suggestions._replace(gpu_layers=None) if suggestions else None


def _refused(impossible: Impossible, footprint: AnyFootprint) -> Plan:
    suggestions = footprint.would_fit(impossible.free)
    return Plan(
        model=impossible.model,
        verdict=Verdict.IMPOSSIBLE,
        message=refusal(impossible, suggestions).message,
        context_tokens=footprint.context_tokens,
        slots=footprint.slots,
        layer_count=footprint.layer_count,
        parts=_sum(footprint.shares(_wished(footprint))),
        impossible=impossible,
        would_fit=suggestions,
    )


def _wished(footprint: AnyFootprint) -> Placement:
    """Where it would be on a machine that is large enough."""
    layers = footprint.layer_count
    if not layers:
        return Placement(Kind.CPU, 0, (), (), footprint.host_bytes(0))
    return Placement(Kind.SINGLE, layers, ("",), footprint.spread((1,), layers), footprint.host_bytes(layers))


def _sum(shares: Iterable[Share]) -> Parts:
    parts = [share.parts for share in shares]
    return Parts(*(sum(getattr(each, part.name) for each in parts) for part in fields(Parts)))


# Before an empty machine --------------------------------------------------------------------------


class EmptyMachine:
    """These devices with nothing of ours on them."""

    def __init__(self, devices: Sequence[Device], strategy: Allocation, *, cpu_fallback: bool) -> None:
        # Nothing runs, so no process can be hidden, and nothing has to load one by one.
        self._devices = [replace(device, processes={}) for device in devices]
        self._strategy = strategy
        self._cpu_fallback = cpu_fallback

    @property
    def accounts(self) -> tuple[Account, ...]:
        return self._books().accounts()

    def alone(self, model: str, footprint: AnyFootprint) -> Plan:
        """How it is for a model that has the machine to itself."""
        books = self._books()
        return foresee(model, footprint, self._guard(books), NOBODY, books.accounts())

    def together(self, footprints: Mapping[str, AnyFootprint], models_max: int) -> list[Company]:
        """All models that fit at all, in sets that fit together.

        In their order: each set takes whom it can take without giving anybody a worse place than alone,
        as the guard would, and the others are for the next.
        """
        left = {
            name: footprint
            for name, footprint in footprints.items()
            if self.alone(name, footprint).verdict is Verdict.LOAD
        }
        companies = []
        while left:
            companies.append(self._company(left, models_max))
            left = {name: each for name, each in left.items() if name not in companies[-1].placements}
        return companies

    def _company(self, footprints: Mapping[str, AnyFootprint], models_max: int) -> Company:
        books = self._books()
        guard = self._guard(books)
        placements: dict[str, Placement] = {}
        for name, footprint in footprints.items():
            if len(placements) < models_max:
                match guard.decide(name, footprint, idle=tuple(placements), busy=()):
                    case Place(placement):
                        books.reserve(name, placement)
                        placements[name] = placement
        return Company(placements, books.accounts())

    def _books(self) -> Commitments:
        books = Commitments()
        books.observe(self._devices, 0.0)
        return books

    def _guard(self, books: Commitments) -> Guard:
        return Guard(books, self._strategy, cpu_fallback=self._cpu_fallback)


# In words -----------------------------------------------------------------------------------------


def _where(placement: Placement, layer_count: int, names: Mapping[str, str]) -> str:
    memory = f"{amount(placement.host_bytes)} of main memory"
    if not placement.gpus:
        return f"on the CPU, with {memory}"
    sizes = zip(placement.gpus, placement.gpu_bytes, strict=True)
    gpus = " and ".join(f"{names.get(id, id)} ({amount(size)})" for id, size in sizes)
    some = placement.layers < layer_count
    layers = f"with {placement.layers} of {layer_count} layers " if some else ""
    return f"{layers}on {gpus}, with {memory} beside"


def _after(evict: Sequence[str]) -> str:
    if not evict:
        return ""
    return f", once {' and '.join(evict)} {'is' if len(evict) == 1 else 'are'} unloaded"


def _waiting(wait: Wait) -> str:
    on = f" ({', '.join(wait.on)})" if wait.on else ""
    return f" It has to wait: {wait.reason.value}{on}."
