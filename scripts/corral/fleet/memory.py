"""What the fleet knows of memory: readings from the drivers, books and decisions from policy.

`look` takes one reading of every device and tells the books; everything else asks the books. Readings
are taken here and now, without an `await`: a decision is good for the moment of its readings only, and
between the two nothing may happen. They cost well under a millisecond.

A model that has loaded is measured, and what was found is remembered for its next start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from corral import errors
from corral.catalogue import Catalogue
from corral.drivers import clock, process_facts
from corral.drivers.gpu_probe import GpuProbe, GpuReading
from corral.drivers.learned_store import LearnedStore
from corral.drivers.threads import in_thread
from corral.fleet.devices import read_gpus, read_host
from corral.fleet.footprints import file_facts, measure_out
from corral.metrics import Metrics
from corral.policy import guard as guarding
from corral.policy import plan
from corral.policy.commitments import Commitments, Device, Measurement
from corral.policy.fingerprint import FileFacts
from corral.policy.footprint import AnyFootprint, PredictedFootprint, UnknownFootprint
from corral.policy.guard import Decision, Guard, Impossible
from corral.policy.learning import Learned, LearnedKey, error_ratio
from corral.policy.memory_report import Holding, Report
from corral.policy.placement import HOST, Placement, choose
from corral.policy.plan import Plan
from corral.policy.scheduler import Outlook
from corral.settings import Allocation, Settings

log = logging.getLogger("corral.memory")

# After a start, or a model that was wanted, more of the same kind is to be expected.
QUIET_S = 3.0


class MeasuredOut(NamedTuple):
    """A footprint, and what its file was known by when it was taken."""

    facts: FileFacts | None
    footprint: AnyFootprint


class FleetMemory:
    """The guard, with eyes. What the scheduler calls its admission."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        command: Callable[[str], Sequence[str]],
        environment: Mapping[str, str],
        probe: GpuProbe | None,
        store: LearnedStore,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._command = command
        self._environment = environment
        self._probe = probe if settings.herd.gpu_enabled else None
        self._store = store
        self._metrics = metrics
        self._books = Commitments()
        self._guard = Guard(
            self._books, settings.herd.allocation_strategy, cpu_fallback=settings.herd.cpu_fallback
        )
        self._footprints: dict[str, MeasuredOut] = {}
        self._placements: dict[str, Placement] = {}
        self._pids: dict[str, int] = {}
        self._candid: set[str] = set()  # GPUs whose lists of processes have shown one of ours
        self._wanted_at = clock.monotonic()
        self._call_back: Callable[[], None] = lambda: None
        # A driver that fails a moment later must not make this look like a machine without GPUs.
        self.look()

    # Decisions, for the scheduler --------------------------------------------------------------

    def decide(self, model: str, idle: Sequence[str], busy: Sequence[str]) -> Decision:
        self._wanted_at = clock.monotonic()
        self._call_back()
        self.look()
        # To the scheduler a model on its way out holds its memory still; the books know when it does not.
        busy = [each for each in busy if each not in self._books.leaving]
        return self._guard.decide(model, self._footprint(model), idle=idle, busy=busy)

    def reserve(self, model: str, placement: Placement) -> None:
        self._guard.reserve(model, placement)
        self._placements[model] = placement

    def relieve(self, idle: Sequence[str]) -> Sequence[str]:
        return self._guard.relieve(idle)

    def refusal(self, impossible: Impossible) -> errors.CorralError:
        suggestions = self._footprint(impossible.model).would_fit(impossible.free)
        return guarding.refusal(impossible, suggestions)

    # A model's life, for the fleet -------------------------------------------------------------

    def spawned(self, model: str, pid: int) -> None:
        self._pids[model] = pid
        self._books.spawned(model, pid)

    def loaded(self, model: str) -> None:
        self._guard.loaded(model)

    def stopping(self, model: str) -> None:
        """It is told to go. What it has taken of the host's memory at its highest is worth knowing."""
        self._remember_host_peak(model)
        self._books.stopping(model)

    def ran_out(self, model: str) -> bool:
        """It died loading, for want of memory. Whether to try again at once."""
        placement = self._placements[model]
        too_small = self._guard.out_of_memory(model)
        footprint = self._footprint(model)
        if isinstance(footprint, PredictedFootprint):
            gpu_bytes = sum(size for id, size in too_small.needs.items() if id != HOST)
            if placement.gpus:
                key, predicted = footprint.gpu_key(placement.layers), footprint.predicted_gpu_bytes(placement)
                self._store.remember(key, Learned(gpu_bytes, predicted))
            else:
                key, predicted = footprint.host_key(0), footprint.predicted_host_bytes(placement)
                self._store.remember(key, Learned(too_small.needs[HOST], predicted))
        return too_small.retry

    def gone(self, model: str, *, reaped: bool) -> None:
        """Its process is gone, or can't be made to go. The memory is given back when a reading says so."""
        self._pids.pop(model, None)
        if model not in self._books:
            return
        if reaped:
            self._books.reaped(model, clock.monotonic())
        else:
            log.error("%s can't be ended: what it holds stays held", model)
            self._books.unreapable(model)

    def never_started(self, model: str) -> None:
        """No process was had for the reservation."""
        if model in self._books:
            self._books.released(model)

    def holds(self, model: str) -> bool:
        """Whether any memory is still promised to it or not yet confirmed to be given back."""
        return model in self._books

    def lend(
        self, borrower: str, size_bytes: int, *, on_gpu: bool, call_back: Callable[[], None]
    ) -> Placement | None:
        """Room for a short errand of our own, if there is some and nothing else goes on.

        From then on it is told of like a model. As soon as a model is wanted, `call_back` is called.
        """
        self.look()
        if self.restless or clock.monotonic() - self._wanted_at < QUIET_S:
            return None
        rooms = {account.id: account.room_bytes for account in self._books.accounts()}
        errand = UnknownFootprint(size_bytes, gpus=on_gpu)
        placement = choose(errand, rooms, Allocation.SINGLE_GPU_PREFERRED, cpu_allowed=False)
        if placement is not None:
            self._books.reserve(borrower, placement)
            self._call_back = call_back
        return placement

    @property
    def restless(self) -> bool:
        return bool(self._books.unsettled or self._books.leaving)

    # Readings ----------------------------------------------------------------------------------

    def look(self) -> tuple[str, ...]:
        """Read every device now. The models whose memory has come back."""
        news = self._books.observe(self._devices(), clock.monotonic())
        for measurement in news.measured:
            self._learn(measurement)
        for model in news.released:
            self._placements.pop(model, None)
        return news.released

    def _devices(self) -> list[Device]:
        host = read_host(self._pids.values())
        gpus = read_gpus(self._probe, self._settings) if self._probe is not None else []
        return [
            *(
                Device(each.uuid, number, each.total_bytes, each.used_bytes, self._processes(each))
                for number, each in enumerate(gpus)
            ),
            host,
        ]

    def _processes(self, reading: GpuReading) -> Mapping[int, int] | None:
        """The list of processes, once it has shown one of ours.

        An idle GPU's list is empty where processes are shown and where they are not. Until it is known
        which, it counts as not shown, and models load there one by one.
        """
        if reading.process_bytes and not reading.process_bytes.keys().isdisjoint(self._pids.values()):
            self._candid.add(reading.uuid)
        return reading.process_bytes if reading.uuid in self._candid else None

    # For people --------------------------------------------------------------------------------

    async def study(self, models: Iterable[str]) -> None:
        """Have these models measured out, on another thread: it may take some 50 ms each."""
        for name in models:
            if not self._is_measured_out(name):
                self._footprints[name] = await in_thread(
                    partial(self._measure_anew, name), f"measuring {name}"
                )

    def plan(self, models: Iterable[str], outlook: Outlook) -> list[Plan]:
        """What would become of a request for each of these. Not a decision: nobody is disturbed by it."""
        self.look()
        busy = tuple(name for name in outlook.busy if name not in self._books.leaving)
        return [self._plan(name, outlook._replace(busy=busy)) for name in models]

    def _plan(self, model: str, outlook: Outlook) -> Plan:
        footprint, accounts = self._footprint(model), self._books.accounts()
        if model in self._books and model not in self._books.leaving:
            return plan.of_loaded(model, footprint, self._placements[model], accounts)
        return plan.foresee(model, footprint, self._guard, outlook, accounts)

    def report(self) -> Report:
        """How the memory stands now."""
        self.look()
        models = self._catalogue.models
        held = [name for name in models if name in self._books]
        return Report(
            accounts=self._books.accounts(),
            holdings=tuple(self._holding(name) for name in held),
            smallest_bytes=min(
                (each.size_bytes for each in models.values() if each.name not in held), default=None
            ),
        )

    def _holding(self, model: str) -> Holding:
        estimate = self._footprint(model).shares(self._placements[model])
        return Holding(model, self._books.held(model), self._books.observed(model), estimate)

    def publish(self) -> None:
        """Figures for a scrape, from the last reading."""
        for account in self._books.accounts():
            reserved = sum(self._books.held(name).get(account.id, 0) for name in self._catalogue.models)
            self._metrics.gpu_memory_used_bytes.labels(account.id).set(account.used_bytes)
            self._metrics.gpu_memory_total_bytes.labels(account.id).set(account.total_bytes)
            self._metrics.gpu_memory_reserved_bytes.labels(account.id).set(reserved)
        for name in self._catalogue.models:
            self._metrics.model_vram_bytes.labels(name).set(self.held_bytes(name))

    def held_bytes(self, model: str) -> int:
        """What a model takes on GPUs, or in the host's memory where it is on none."""
        held = self._books.held(model)
        on_gpus = sum(size for id, size in held.items() if id != HOST)
        return on_gpus or held.get(HOST, 0)

    # Learning ----------------------------------------------------------------------------------

    def _learn(self, measurement: Measurement) -> None:
        placement = self._placements.get(measurement.model)
        footprint = self._footprint(measurement.model)
        measured = sum(measurement.gpu_bytes.values())
        if placement is None or not measured or not isinstance(footprint, PredictedFootprint):
            return
        learned = Learned(measured, footprint.predicted_gpu_bytes(placement))
        self._remember(measurement.model, footprint.gpu_key(placement.layers), learned)

    def _remember_host_peak(self, model: str) -> None:
        placement, pid = self._placements.get(model), self._pids.get(model)
        footprint = self._footprint(model)
        if placement is None or pid is None or not isinstance(footprint, PredictedFootprint):
            return
        peak = process_facts.peak_resident_bytes(pid)
        if not peak:
            return
        key, predicted = footprint.host_key(placement.layers), footprint.predicted_host_bytes(placement)
        before = self._recall(key)
        # A run without a full prompt touches less than one with it: only the highest says enough.
        learned = Learned(max(peak, before.measured_bytes if before else 0), predicted)
        if placement.gpus:
            self._store.remember(key, learned)
        else:
            self._remember(model, key, learned)

    def _remember(self, model: str, key: LearnedKey, learned: Learned) -> None:
        self._store.remember(key, learned)
        self._metrics.vram_estimate_error_ratio.labels(model).set(error_ratio(learned))
        log.info(
            "%s took %d MiB where %d MiB were predicted",
            model,
            learned.measured_bytes >> 20,
            learned.predicted_bytes >> 20,
        )

    def _recall(self, key: LearnedKey) -> Learned | None:
        known = self._store.recall(key)
        return None if known is None else Learned(*known)

    # Footprints --------------------------------------------------------------------------------

    def _footprint(self, name: str) -> AnyFootprint:
        if not self._is_measured_out(name):
            self._footprints[name] = self._measure_anew(name)
        return self._footprints[name].footprint

    def _is_measured_out(self, name: str) -> bool:
        """A file may be replaced while its model is off; one that runs is what it was started from."""
        known = self._footprints.get(name)
        return known is not None and (name in self._books or known.facts == self._facts(name))

    def _measure_anew(self, name: str) -> MeasuredOut:
        # First the facts: a change in between shows at the next look instead of never.
        facts = self._facts(name)
        return MeasuredOut(facts, self.measure_out(name))

    def _facts(self, name: str) -> FileFacts | None:
        try:
            return file_facts(self._catalogue.models[name].path)
        except OSError:
            return None

    def measure_out(self, name: str) -> AnyFootprint:
        """What a model will take, read anew from its file and its command line."""
        return measure_out(
            self._catalogue.models[name],
            self._command(name),
            self._environment,
            self._recall,
            gpus=self._books.has_gpus,
            multiplier=self._settings.herd.vram_multiplier,
        )
