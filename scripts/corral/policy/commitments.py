"""Who has been promised which memory: the books that the VRAM guard decides by.

On every device, before every spawn, this must hold:

    sum of max(reserved, measured) + foreign + margin <= total,  foreign = max(0, used - sum of measured)

`reserved` is a promise, from the decision to load a model until its release is confirmed. `measured` is
what of the device's used bytes is known to be the model's own. Whatever is not known to be ours counts
as foreign. While a model loads and can't be measured, its growing part is therefore counted twice: that
errs on the safe side, and `Account.hoped_bytes` says how much room there may be in truth.

An error is dangerous in one direction only: a measurement above the truth hides foreign memory. Once a
model has all that it will take this does no harm, because the measurement counts as promised itself for
as long as it stands: the sum never falls below `used`. Before that, no part may be read after the whole.

Once a model is loaded, its measurement takes the reservation's place, on a GPU: there a llama-server
takes all that it needs at once. On the host the reservation stays, because weights are mapped from the
file there, and the kernel doesn't count mapped pages as used.

Readings and facts come in, with the time where it matters; nothing here reads or decides anything.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from corral.policy.placement import HOST, Placement

# What is left alone on each device: for allocators' rounding, libraries that load a kernel late, and
# predictions that are a little off. A 24 GiB card keeps 768 MiB.
MARGIN_DIVISOR = 32
MARGIN_BYTES_MAX = 1 << 30

# The driver gives memory back 0.5 to 1.5 s after a process has gone (measured). A reading that merely
# stands still proves nothing meanwhile: it stands still before the memory comes back, too.
GIVE_BACK_S_MAX = 5.0
# Of what a process held, so much may seem to be there still: others come and go in the same moment.
GIVEN_BACK_DIVISOR = 10

# A device that could not be read for so long is gone, and nobody waits for it any more.
GONE_AFTER_S = 30.0

# If a device has gained less than this part of what a model was to take, memory of somebody else came
# free in the same moment, and the difference says nothing about the model.
BELIEVABLE = 0.75


class Overcommitted(Exception):
    """A reservation for which there is no room: a bug in whoever decided it."""


@dataclass(frozen=True, slots=True)
class Device:
    """One reading of one device's memory: a GPU, a part of one (MIG), or the host.

    `processes` is each process's part of `used_bytes` by pid, None where that is not shown. It is to be
    read before `used_bytes`, so that no part is newer than the whole. On the host a process's part is
    without mapped pages.
    """

    id: str  # a UUID, or HOST
    index: int
    total_bytes: int
    used_bytes: int
    processes: Mapping[int, int] | None


class Measurement(NamedTuple):
    """What a model has been found to take on each of its GPUs."""

    model: str
    gpu_bytes: Mapping[str, int]


class News(NamedTuple):
    """What has become certain with a reading."""

    measured: tuple[Measurement, ...]
    released: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Account:
    """One device's memory, divided up."""

    id: str
    index: int
    total_bytes: int
    used_bytes: int
    committed_bytes: int  # the sum of max(reserved, measured)
    foreign_bytes: int
    unseen_bytes: int  # at most so much of the foreign bytes is really ours: of models that come or go
    closed: bool  # whether something is under way here that must end before anything else begins

    @property
    def name(self) -> str:
        """For people, who don't know their cards by UUID."""
        return "main memory" if self.id == HOST else f"GPU {self.index}"

    @property
    def margin_bytes(self) -> int:
        return min(MARGIN_BYTES_MAX, self.total_bytes // MARGIN_DIVISOR)

    @property
    def room_bytes(self) -> int:
        """What may still be promised. Below zero, the sum is broken and nothing at all may be."""
        return self.total_bytes - self.committed_bytes - self.foreign_bytes - self.margin_bytes

    @property
    def hoped_bytes(self) -> int:
        """The room there will be once nothing is counted twice any more."""
        return self.room_bytes + min(self.foreign_bytes, self.unseen_bytes)


class _Stage(enum.Enum):
    LOADING = enum.auto()
    LOADED = enum.auto()
    LEAVING = enum.auto()
    STUCK = enum.auto()  # it can't be reaped: what it holds is simply held


@dataclass(slots=True)
class _Holding:
    """What one model holds on one device."""

    reserved: int
    rest_before: int  # what of the device's used bytes was known to be nobody's when it was reserved
    measured: int | None = None
    settled: bool = False  # whether `measured` is the truth about the loaded model
    rest_after: int = 0  # what there should be once it has left

    @property
    def bytes(self) -> int:
        return max(self.reserved, self.measured or 0)

    def unseen_bytes(self, stage: _Stage) -> int:
        """What of the foreign bytes may be its own, because it grew or died after it was last seen."""
        unseen = stage is _Stage.LEAVING or (self.measured is None and not self.settled)
        return self.bytes - (self.measured or 0) if unseen else 0


@dataclass(slots=True)
class _Tenant:
    holdings: dict[str, _Holding]
    stage: _Stage = _Stage.LOADING
    pid: int | None = None
    reaped_at: float | None = None
    assumed: bool = False  # whether some measurement is only its reservation, for want of a better one

    @property
    def settled(self) -> bool:
        return all(holding.settled for holding in self.holdings.values())


class Commitments:
    def __init__(self) -> None:
        self._devices: dict[str, Device] = {}  # those of the last reading, GPUs first
        self._seen_at: dict[str, float] = {}
        self._blind: set[str] = set()  # devices whose lists of processes have proved to be incomplete
        self._has_gpus = False
        self._tenants: dict[str, _Tenant] = {}

    # What others may know ----------------------------------------------------------------------

    def __contains__(self, model: str) -> bool:
        return model in self._tenants

    def held(self, model: str) -> dict[str, int]:
        """Bytes by device that are promised to the model, or that it has taken if that is more."""
        tenant = self._tenants.get(model)
        return {id: holding.bytes for id, holding in tenant.holdings.items()} if tenant else {}

    def observed(self, model: str) -> dict[str, int]:
        """Bytes by device that it was last seen to use, as far as that can be told."""
        return {
            id: holding.measured if holding.measured is not None else self._difference(id, holding)
            for id, holding in self._tenants[model].holdings.items()
            if id in self._devices
        }

    @property
    def leaving(self) -> tuple[str, ...]:
        return tuple(name for name, tenant in self._tenants.items() if tenant.stage is _Stage.LEAVING)

    @property
    def unsettled(self) -> tuple[str, ...]:
        """Models that load, or have loaded and are not measured yet."""
        coming = (_Stage.LOADING, _Stage.LOADED)
        return tuple(
            name for name, each in self._tenants.items() if each.stage in coming and not each.settled
        )

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Devices that were there a short time ago and can't be read now."""
        return tuple(id for id in self._seen_at if id not in self._devices)

    @property
    def has_gpus(self) -> bool:
        """Whether there are GPUs here, or were: one that is lost makes no CPU machine of this."""
        return self._has_gpus

    def accounts(self) -> tuple[Account, ...]:
        """Every device that can be read, GPUs in their order, the host last."""
        return tuple(self._account(device) for device in self._devices.values())

    def _account(self, device: Device) -> Account:
        committed = measured = unseen = 0
        changing = False
        for tenant in self._tenants.values():
            if (holding := tenant.holdings.get(device.id)) is not None:
                committed += holding.bytes
                measured += holding.measured or 0
                unseen += holding.unseen_bytes(tenant.stage)
                changing |= not holding.settled or tenant.stage is _Stage.LEAVING
        return Account(
            id=device.id,
            index=device.index,
            total_bytes=device.total_bytes,
            used_bytes=device.used_bytes,
            committed_bytes=committed,
            foreign_bytes=max(0, device.used_bytes - measured),
            unseen_bytes=unseen,
            # Without a list of processes, a model's size is what the device gains while it loads. So
            # only one thing may happen there at a time.
            closed=changing and self._processes(device) is None,
        )

    # Facts about models ------------------------------------------------------------------------

    def reserve(self, model: str, placement: Placement) -> None:
        """A process for this model is about to be spawned. The rule is checked here, whoever decided."""
        accounts = {account.id: account for account in self.accounts()}
        if model in self._tenants:
            raise Overcommitted(f"{model!r} holds memory already")
        for id, need in placement.needs.items():
            account = accounts.get(id)
            if account is None or account.closed or need > account.room_bytes:
                raise Overcommitted(f"{model!r} needs {need} bytes on {id}, which has {account}")
        self._tenants[model] = _Tenant(
            {id: _Holding(need, self._rest(id)) for id, need in placement.needs.items()}
        )

    def spawned(self, model: str, pid: int) -> None:
        self._tenants[model].pid = pid

    def loaded(self, model: str) -> None:
        """It says that it is ready. It is measured with the next readings."""
        tenant = self._tenants[model]
        if tenant.stage is _Stage.LOADING:
            tenant.stage = _Stage.LOADED

    def stopping(self, model: str) -> None:
        """It has been told to go, or is found dead."""
        tenant = self._tenants[model]
        if tenant.stage is _Stage.LEAVING:
            return
        tenant.stage = _Stage.LEAVING
        for id, holding in tenant.holdings.items():
            known = holding.measured is not None and id in self._devices
            holding.rest_after = self._rest(id) if known else holding.rest_before

    def reaped(self, model: str, now: float) -> None:
        """Its process is gone. The release is confirmed by the readings that follow."""
        self.stopping(model)
        tenant = self._tenants[model]
        tenant.reaped_at, tenant.pid = now, None  # the pid may soon be another's

    def unreapable(self, model: str) -> None:
        """Its process does not go, even when killed. What it holds stays held, and nobody waits for it."""
        tenant = self._tenants[model]
        tenant.stage = _Stage.STUCK
        for id, holding in tenant.holdings.items():
            device = self._devices.get(id)
            if holding.measured is None and device and self._processes(device) is None:
                # Nothing better will ever be known, and unmeasured it would count twice for good.
                holding.measured = min(self._difference(id, holding), holding.reserved)
            holding.settled = True

    def released(self, model: str) -> None:
        """It holds nothing: confirmed, or no process was ever started."""
        del self._tenants[model]

    # Readings ----------------------------------------------------------------------------------

    def observe(self, readings: Iterable[Device], now: float) -> News:
        """All devices as they are now. One that is missing could not be read."""
        ordered = sorted(readings, key=lambda device: (device.id == HOST, device.index))
        self._devices = {device.id: device for device in ordered}
        self._seen_at |= dict.fromkeys(self._devices, now)
        self._seen_at = {id: at for id, at in self._seen_at.items() if now - at < GONE_AFTER_S}
        self._has_gpus |= any(id != HOST for id in self._devices)
        self._attribute()
        released = tuple(name for name, tenant in self._tenants.items() if self._is_released(tenant, now))
        for name in released:
            self.released(name)
        measured = (self._settle(name, tenant) for name, tenant in self._tenants.items())
        return News(tuple(found for found in measured if found is not None), released)

    def _processes(self, device: Device) -> Mapping[int, int] | None:
        return None if device.id in self._blind else device.processes

    def _rest(self, id: str) -> int:
        """Used bytes that are not known to be a model's. Below zero when others came free since."""
        holdings = (tenant.holdings.get(id) for tenant in self._tenants.values())
        return self._devices[id].used_bytes - sum(each.measured or 0 for each in holdings if each)

    def _difference(self, id: str, holding: _Holding) -> int:
        """What the device has gained since this was reserved, and nobody else is known to have taken."""
        return max(0, self._rest(id) - holding.rest_before)

    def _attribute(self) -> None:
        """Processes that are shown are measured at every reading, while they load as well."""
        for tenant in self._tenants.values():
            for id, holding in tenant.holdings.items():
                device = self._devices.get(id)
                processes = self._processes(device) if device else None
                if processes is None or tenant.pid is None or tenant.pid not in processes:
                    continue  # a dead process vanishes from the list before its memory is back
                holding.measured = processes[tenant.pid]
                if holding.settled and id != HOST:
                    holding.reserved = max(holding.reserved, holding.measured)

    def _settle(self, name: str, tenant: _Tenant) -> Measurement | None:
        """Measure a model that has loaded; what there is to learn, when the last device is measured."""
        if tenant.stage is not _Stage.LOADED or tenant.settled:
            return None
        for id, holding in tenant.holdings.items():
            if not holding.settled and id in self._devices:
                self._settle_holding(tenant, id, holding)
        if not tenant.settled or tenant.assumed:
            return None
        sizes = {id: each.measured or 0 for id, each in tenant.holdings.items() if id != HOST}
        return Measurement(name, sizes)

    def _settle_holding(self, tenant: _Tenant, id: str, holding: _Holding) -> None:
        device = self._devices[id]
        if holding.measured is None and holding.reserved:
            # A list that lacks a process which has just loaded here: pids of another namespace.
            self._blind.add(id)
        if self._processes(device) is None:
            neighbours = [
                each for each in self._tenants.values() if each is not tenant and id in each.holdings
            ]
            if any(each.stage is _Stage.LEAVING for each in neighbours):
                return  # what the device gains and what it loses can't be told apart
            self._conclude(tenant, id, crowded=any(not each.holdings[id].settled for each in neighbours))
        holding.settled = True
        if id != HOST:
            holding.reserved = holding.measured or 0

    def _conclude(self, tenant: _Tenant, id: str, *, crowded: bool) -> None:
        """Take a model's size from what the device has gained."""
        holding = tenant.holdings[id]
        gained = self._difference(id, holding)
        if id == HOST:
            holding.measured = 0  # far too much else comes and goes there
        elif gained < holding.reserved * BELIEVABLE:
            holding.measured, tenant.assumed = holding.reserved, True
        else:
            # Of several that loaded at once, none is given what may be another's.
            holding.measured = min(gained, holding.reserved) if crowded else gained

    def _is_released(self, tenant: _Tenant, now: float) -> bool:
        if tenant.reaped_at is None or now <= tenant.reaped_at:
            return False
        gpus = {id: holding for id, holding in tenant.holdings.items() if id != HOST}
        given_back = all(self._is_given_back(id, holding) for id, holding in gpus.items())
        return given_back or now - tenant.reaped_at >= GIVE_BACK_S_MAX

    def _is_given_back(self, id: str, holding: _Holding) -> bool:
        if id not in self._devices:
            return False
        # Of several that are gone it can't be told whose memory is back. So they're released together.
        dead = (each.holdings.get(id) for each in self._tenants.values() if each.reaped_at is not None)
        still_there = self._rest(id) + sum(each.measured or 0 for each in dead if each) - holding.rest_after
        size = holding.measured or holding.reserved
        return not size or still_there <= size // GIVEN_BACK_DIVISOR
