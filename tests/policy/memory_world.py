"""A machine that does not exist, on which the VRAM guard is tried: devices, programs, a clock, and chance.

A world is made of a seed. Models are wanted, load by and by, are used, stop and die; other programs take
memory and give it back; drivers are late, hide processes, or don't answer. The world knows the truth
about every byte and holds it against what the guard says. A world that finds something wrong raises
`Broken`; the same seed finds it again.

The guard is given as modules, so that a test can hand in one with a planted fault.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

from corral.policy import commitments, guard
from corral.policy.placement import HOST, Placement, choose
from corral.settings import Allocation
from tests.policy.memory_machine import (
    ALIVE,
    LEAVING,
    Listing,
    Machine,
    Phase,
    Process,
    random_machines,
    random_model,
)

EVENTS = 26
# How often a model may have to ask until it is placed, a second apart.
PATIENCE = 40


class Broken(AssertionError):
    """The guard has done something that it must never do."""


class Parts(NamedTuple):
    """What is on trial."""

    commitments: ModuleType = commitments
    guard: ModuleType = guard


class World:
    def __init__(self, seed: int, parts: Parts = Parts()) -> None:  # noqa: B008
        self._chance = chance = random.Random(seed)
        self._parts = parts
        self._now = 0.0
        self._pid = 1000
        self._processes: dict[str, Process] = {}
        self._honest = chance.random() < 0.8
        self._flaky = chance.random() < 0.2  # whether readings fail now and then
        self._machines = {machine.id: machine for machine in random_machines(chance)}
        listings = {machine.listing for machine in self._machines.values()}
        self._shown = listings == {Listing.SHOWN}
        self._strange = Listing.STRANGE in listings
        names = "abcdef"[: chance.randint(2, 6)]
        self._models = {name: random_model(chance, honest=self._honest) for name in names}
        self._retried: set[str] = set()
        self._candid: set[str] = set()  # devices that have shown one of ours
        self._strategy = chance.choice(list(Allocation))
        self._cpu_fallback = chance.random() < 0.5
        self._books = parts.commitments.Commitments()
        self._guard = parts.guard.Guard(self._books, self._strategy, cpu_fallback=self._cpu_fallback)

    def run(self) -> None:
        """Everything that happens on this machine, and at last nothing."""
        happens = {
            self._pass_time: 8,
            self._want: 8,
            self._use: 3,
            self._stop_one: 1,
            self._kill_one: 1,
            self._change_foreign: 2,
            self._relieve: 3,
            self._breathe: 1,
            self._lose_sight: 1,
            self._get_stuck: 0.3,
        }
        self._observe()
        for event in self._chance.choices(list(happens), list(happens.values()), k=EVENTS):
            event()
        self._calm_down()
        self._everybody_is_placed()
        self._nothing_is_left()

    def _demand(self, holds: bool, complaint: str) -> None:
        if not holds:
            raise Broken(complaint)

    # What happens ------------------------------------------------------------------------------

    def _pass_time(self) -> None:
        self._now += self._chance.uniform(0.1, 1.0)
        for process in tuple(self._processes.values()):
            if process.phase is Phase.LOADING:
                self._grow(process)
            elif process.phase is Phase.STOPPING and self._chance.random() < 0.7:
                self._die(process)
            elif process.phase is Phase.DEAD and self._now >= process.gives_back_at:
                process.grown = 0.0
                if process.released:
                    del self._processes[process.model]
        self._observe()

    def _grow(self, process: Process) -> None:
        process.grown = min(1.0, process.grown + self._chance.uniform(0.1, 0.8))
        short = [id for id in process.needs if self._used(id) > self._machines[id].total]
        if short:
            self._run_out_of_memory(process, short)
        elif process.grown == 1.0:
            process.phase, process.used_at = Phase.READY, self._now
            process.busy = self._chance.random() < 0.2
            self._guard.loaded(process.model)

    def _run_out_of_memory(self, process: Process, short: Collection[str]) -> None:
        name = process.model
        disturbed = any(self._machines[id].disturbed_at >= process.began_at for id in short)
        self._demand(disturbed or not self._honest, f"{name} was promised memory on {short} and found none")
        lesson = self._guard.out_of_memory(name)
        learnt = all(lesson.needs[id] >= reserved * 1.09 for id, reserved in process.reserved.items())
        self._demand(learnt, f"{name} ran out of memory and nothing was learnt")
        if lesson.retry:
            self._retried.add(name)
        self._models[name] = replace(self._models[name], raised=self._models[name].raised * 1.1)
        process.grown *= 0.5
        self._die(process)

    def _die(self, process: Process) -> None:
        process.phase = Phase.DEAD
        # The driver takes its time.
        process.gives_back_at = self._now + self._chance.uniform(0.0, 1.5)
        self._books.reaped(process.model, self._now)
        process.unseen = not process.measured or process.breath != 1.0
        for other in self._processes.values():
            other.crossed |= process.unseen and other is not process

    def _stop(self, process: Process) -> None:
        process.phase = Phase.STOPPING
        self._books.stopping(process.model)

    def _stop_one(self) -> None:
        if process := self._any_of(ALIVE):
            self._stop(process)

    def _kill_one(self) -> None:
        if process := self._any_of(ALIVE):
            self._die(process)

    def _use(self) -> None:
        if process := self._any_of((Phase.READY,)):
            process.busy, process.used_at = self._chance.random() < 0.3, self._now

    def _get_stuck(self) -> None:
        if process := self._any_of((Phase.STOPPING,)):
            process.phase = Phase.STUCK
            self._books.unreapable(process.model)

    def _breathe(self) -> None:
        """A process gives some memory back, and will take it again when it likes."""
        process = self._any_of((Phase.READY,))
        if process and process.measured and self._shown:
            process.breath = self._chance.choice((0.5, 1.0))
            self._observe()

    def _change_foreign(self) -> None:
        """Another program comes or goes; it gets no more than there is."""
        machine = self._chance.choice(list(self._machines.values()))
        machine.disturbed_at = self._now
        if self._chance.random() < 0.6:
            free = max(0, machine.total - self._used(machine.id))
            machine.foreign += int(free * self._chance.choice((0.05, 0.5, 0.95)))
        else:
            machine.foreign = int(machine.foreign * self._chance.random())

    def _lose_sight(self) -> None:
        if self._flaky:
            machine = self._chance.choice(list(self._machines.values()))
            machine.readable, machine.disturbed_at = not machine.readable, self._now

    def _in(self, phases: Collection[Phase]) -> list[Process]:
        return [each for each in self._processes.values() if each.phase in phases and not each.released]

    def _any_of(self, phases: Collection[Phase]) -> Process | None:
        processes = self._in(phases)
        return self._chance.choice(processes) if processes else None

    # What is seen ------------------------------------------------------------------------------

    def _used(self, id: str) -> int:
        return self._machines[id].foreign + sum(each.uses(id) for each in self._processes.values())

    def _reading(self, machine: Machine) -> Any:
        processes: dict[int, int] | None = None
        if machine.listing in (Listing.SHOWN, Listing.LATE):
            alive = (each for each in self._processes.values() if each.phase is not Phase.DEAD)
            processes = {each.pid: used for each in alive if (used := each.uses(machine.id))}
            if processes:
                self._candid.add(machine.id)
            elif machine.listing is Listing.LATE and machine.id not in self._candid:
                processes = None
        elif machine.listing is Listing.STRANGE:
            processes = {7: machine.foreign}
        used = self._used(machine.id)
        return self._parts.commitments.Device(machine.id, machine.index, machine.total, used, processes)

    def _observe(self) -> None:
        readings = [self._reading(machine) for machine in self._machines.values() if machine.readable]
        news = self._books.observe(readings, self._now)
        for name in news.released:
            self._check_release(self._processes[name])
        for name, sizes in news.measured:
            process = self._processes[name]
            process.measured = True
            wrong = [id for id, size in sizes.items() if self._is_wrong(process, id, size)]
            self._demand(not wrong, f"{name} was measured wrongly on {wrong}")

    def _is_wrong(self, process: Process, id: str, size: int) -> bool:
        """Where processes are hidden, a size may be wrong by what others did, but not be far too small."""
        used = process.uses(id)
        return size != used if self._shown else size < 0.7 * min(used, process.reserved[id])

    def _check_release(self, process: Process) -> None:
        self._demand(process.phase is Phase.DEAD, f"{process.model} was released while its process was there")
        lingers = any(process.uses(id) > size // 10 for id, size in process.reserved.items())
        calm = all(self._machines[id].disturbed_at < process.began_at for id in process.needs)
        calm = calm and not process.crossed
        early = lingers and calm and self._shown and self._now < process.gives_back_at
        self._demand(not early, f"{process.model} was released before its memory was back")
        process.released = True
        if not any(process.uses(id) for id in process.needs):
            del self._processes[process.model]

    # What is decided ---------------------------------------------------------------------------

    def _idle_and_busy(self) -> tuple[list[str], list[str]]:
        unpinned = [each for each in self._in(ALIVE) if not self._models[each.model].pinned]
        unpinned.sort(key=lambda each: each.used_at)
        idle = [each.model for each in unpinned if each.phase is Phase.READY and not each.busy]
        return idle, [each.model for each in unpinned if each.model not in idle]

    def _want(self) -> None:
        off = [name for name in self._models if name not in self._processes]
        if off:
            self._ask(self._chance.choice(off))

    def _ask(self, name: str) -> Any:
        self._observe()
        idle, busy = self._idle_and_busy()
        decision = self._guard.decide(name, self._models[name], idle=idle, busy=busy)
        words = self._parts.guard
        match decision:
            case words.Place(where):
                self._check_quality(name, where.layers, idle, busy)
                self._spawn(name, where)
            case words.EvictFirst(victims):
                self._check_victims(name, victims, idle, busy)
                for victim in victims:
                    self._stop(self._processes[victim])
            case words.Wait(reason, on):
                self._check_wait(name, reason.name, on, idle, busy)
            case _:
                self._check_quality(name, -1, idle, busy)
        return decision

    def _spawn(self, name: str, where: Placement) -> None:
        for id, need in where.needs.items():
            self._check_spawn(name, self._machines[id], need)
        if name in self._retried:
            idle, _ = self._idle_and_busy()
            self._demand(not idle, f"{name} was tried again with {idle} still there")
            self._retried.discard(name)
        self._guard.reserve(name, where)
        self._pid += 1
        model = self._models[name]
        needs = {id: int(need * model.truth / model.raised) for id, need in where.needs.items()}
        mapped = self._chance.choice((0.0, 0.9))
        grown = self._chance.choice((0.0, 0.05, 0.05))
        crossed = any(each.unseen for each in self._processes.values())
        process = Process(name, self._pid, self._now, where.needs, needs, mapped, grown, crossed=crossed)
        self._processes[name] = process
        self._books.spawned(name, self._pid)

    def _relieve(self) -> None:
        self._observe()
        idle, _ = self._idle_and_busy()
        victims = self._guard.relieve(idle)
        self._demand(set(victims) <= set(idle), f"{victims} are to go and are not all idle")
        if self._knows_all:
            leaving = self._leaving
            missing = self._missing((*leaving, *victims))
            self._demand(missing <= self._missing((*leaving, *idle)), f"{victims} are too little relief")
            for spared in victims:
                others = [each for each in victims if each != spared]
                self._demand(self._missing((*leaving, *others)) > missing, f"{spared} is no relief")
        for victim in victims:
            self._stop(self._processes[victim])

    # What must be true -------------------------------------------------------------------------

    @property
    def _leaving(self) -> list[str]:
        return [each.model for each in self._in(LEAVING)]

    @property
    def _knows_all(self) -> bool:
        """Whether the guard can know the whole truth: nothing hidden, lost, or on its way."""
        waiting = any(each.grown == 0 for each in self._in((Phase.LOADING,)))
        return self._shown and not self._flaky and not self._in(LEAVING) and not waiting

    def _rooms(self, gone: Iterable[str]) -> dict[str, int]:
        left = [each for each in self._processes.values() if each.model not in set(gone)]
        return {
            id: each.total - each.margin - each.foreign - sum(process.promised(id) for process in left)
            for id, each in self._machines.items()
        }

    def _missing(self, gone: Iterable[str]) -> int:
        return sum(max(0, -room) for room in self._rooms(gone).values())

    def _layers(self, name: str, gone: Iterable[str]) -> int:
        """How many layers on GPUs it can have with these gone; -1: it can't be at all."""
        cpu_allowed = self._cpu_fallback or list(self._machines) == [HOST]
        found = choose(self._models[name], self._rooms(gone), self._strategy, cpu_allowed=cpu_allowed)
        return found.layers if found else -1

    def _check_spawn(self, name: str, machine: Machine, need: int) -> None:
        """The commitment rule, in truth and as far as the guard can know."""
        where = f"{name} on {machine.id}"
        self._demand(machine.readable, f"{where}, which can't be read")
        peaks = sum(each.peak(machine.id) for each in self._processes.values())
        self._demand(peaks + machine.foreign + need <= machine.total, f"{where}: promises can't be kept")
        here = [each for each in self._processes.values() if machine.id in each.reserved]
        if machine.listing is Listing.HIDDEN:
            changing = [
                each.model for each in here if not each.released and each.phase in (*LEAVING, Phase.LOADING)
            ]
            self._demand(not changing, f"{where}, which hides processes, while {changing} are on their way")
        elif self._shown and not self._flaky:
            promised = sum(each.promised(machine.id) for each in here)
            used = promised + machine.foreign + machine.margin
            self._demand(used + need <= machine.total, f"{where}: the commitment rule is broken")

    def _check_victims(
        self, name: str, victims: Sequence[str], idle: Sequence[str], busy: Sequence[str]
    ) -> None:
        ordered = [each for each in idle if each in victims]
        self._demand(bool(victims) and list(victims) == ordered, f"{victims} are not idle ones, oldest first")
        if name in self._retried or not self._knows_all:
            return
        best = self._layers(name, (*idle, *busy))
        self._demand(self._layers(name, victims) >= best, f"{victims} go, which is not enough for {name}")
        for spared in victims:
            others = [each for each in victims if each != spared]
            self._demand(self._layers(name, others) < best, f"{spared} goes for {name} and need not")

    def _check_wait(
        self, name: str, reason: str, on: Sequence[str], idle: Sequence[str], busy: Sequence[str]
    ) -> None:
        phases = {self._processes[each].phase for each in on if each in self._processes}
        if reason == "UNREADABLE":
            why = not all(machine.readable for machine in self._machines.values())
        elif reason == "RELEASING":
            why = bool(phases) and phases <= set(LEAVING)
        elif reason == "LOADING":
            why = bool(phases) and phases <= set(ALIVE)
        else:
            why = bool(on) and set(on) <= set(busy)
        self._demand(why, f"{name} waits for nothing: {reason} {on}")
        if self._knows_all and name not in self._retried:
            short = self._layers(name, idle) < self._layers(name, (*idle, *busy))
            self._demand(short, f"{name} waits ({reason}) though idle models could make room")

    def _check_quality(self, name: str, layers: int, idle: Sequence[str], busy: Sequence[str]) -> None:
        """It gets so many layers on GPUs; -1: it's refused. Can it have more, once whoever may go is gone?"""
        disturbed_at = max(machine.disturbed_at for machine in self._machines.values())
        processes = self._processes.values()
        undisturbed = all(each.began_at > disturbed_at and not each.released for each in processes)
        if self._knows_all or (self._honest and undisturbed and not self._strange):
            possible = self._layers(name, (*self._leaving, *idle, *busy))
            self._demand(layers >= possible, f"{name} could have {possible} layers and gets {layers}")

    # The end -----------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        """Other programs stay as they are, the driver answers, and nobody uses anything."""
        for machine in self._machines.values():
            machine.readable = True
        self._models = {name: replace(model, pinned=False) for name, model in self._models.items()}
        for process in self._in((Phase.STUCK,)):
            self._die(process)
        for _ in range(PATIENCE):
            if any(each.phase in LEAVING for each in self._processes.values()):
                self._pass_time()

    def _everybody_is_placed(self) -> None:
        """A model that fits an empty machine is placed some time, as well as it would be there."""
        for name in self._chance.sample(list(self._models), 2):
            if name not in self._processes:
                self._is_placed(name, self._layers(name, self._processes))

    def _is_placed(self, name: str, possible: int) -> None:
        for _ in range(PATIENCE):
            decision = self._ask(name)
            if name in self._processes:
                layers = decision.placement.layers
                self._demand(
                    layers >= possible or not self._shown, f"{name} got a bad place, {layers} layers"
                )
                return
            if isinstance(decision, self._parts.guard.Impossible):
                if possible < 0:
                    return
                self._stop_one()  # a look at an emptier machine may show more
            for process in self._in((Phase.READY,)):
                process.busy = False
            self._pass_time()
        raise Broken(f"{name} was never placed")

    def _nothing_is_left(self) -> None:
        """Everything stops, and the books are empty."""
        for process in self._in(ALIVE):
            self._stop(process)
        for _ in range(PATIENCE):
            if not self._processes:
                break
            self._pass_time()
        left = [name for name in self._models if name in self._books]
        self._demand(not left, f"{left} still hold memory after their end")
        for account in self._books.accounts():
            machine = self._machines[account.id]
            room = machine.total - machine.margin - machine.foreign
            self._demand(account.room_bytes == room, f"{account} is wrong about an empty machine")
