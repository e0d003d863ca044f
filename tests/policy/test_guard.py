from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from corral.errors import InsufficientVram
from corral.policy.commitments import GONE_AFTER_S, Commitments, Device
from corral.policy.fit import Suggestions
from corral.policy.guard import (
    Decision,
    EvictFirst,
    Guard,
    Impossible,
    Place,
    Reason,
    TooSmall,
    Wait,
    refusal,
)
from corral.policy.placement import HOST, Kind, Placement
from corral.settings import Allocation
from tests.policy.memory_machine import GIB, Model

TOTAL = 32 * GIB  # keeps a margin of 1 GiB


def model(gibibytes: int, **differences: object) -> Model:
    """So many layers of 1 GiB each, and nothing beside them."""
    plain = Model(layers=gibibytes, layer_bytes=GIB, layer_count=gibibytes)
    return replace(plain, **differences)  # type: ignore[arg-type]


class Machine:
    """Some GPUs with 31 GiB of room each, a host with as much, and a guard that watches over them."""

    def __init__(
        self,
        gpus: int = 1,
        *,
        shows_processes: bool = True,
        strategy: Allocation = Allocation.SINGLE_GPU_PREFERRED,
        cpu_fallback: bool = False,
    ) -> None:
        self.books = Commitments()
        self.guard = Guard(self.books, strategy, cpu_fallback=cpu_fallback)
        self.gpus = [f"GPU-{index}" for index in range(gpus)]
        self.foreign = dict.fromkeys([*self.gpus, HOST], 0)
        self.processes: dict[str, dict[int, int]] = {id: {} for id in self.foreign}
        self.lost: set[str] = set()
        self.shows_processes = shows_processes
        self.now = 0.0
        self.look()

    def look(self, wait_s: float = 1.0) -> None:
        self.now += wait_s
        readings = []
        for index, (id, processes) in enumerate(self.processes.items()):
            used = self.foreign[id] * GIB + sum(processes.values())
            shown = dict(processes) if self.shows_processes or id == HOST else None
            readings.append(Device(id, index, TOTAL, used, shown))
        self.books.observe([each for each in readings if each.id not in self.lost], self.now)

    def ask(
        self, wanted: Model, *, idle: Sequence[str] = (), busy: Sequence[str] = (), name: str = "new"
    ) -> Decision:
        self.look()
        return self.guard.decide(name, wanted, idle=idle, busy=busy)

    def begin(self, name: str, wanted: Model) -> Placement:
        """It's placed and spawned, and has not taken any memory yet."""
        decision = self.ask(wanted, name=name)
        assert isinstance(decision, Place)
        self.guard.reserve(name, decision.placement)
        self.books.spawned(name, ord(name[0]))
        return decision.placement

    def load(self, name: str, wanted: Model) -> None:
        self.come_up(name, self.begin(name, wanted))

    def come_up(self, name: str, placement: Placement) -> None:
        """It takes what it was said to take, and is ready."""
        for id, need in placement.needs.items():
            self.processes[id][ord(name[0])] = need
        self.guard.loaded(name)
        self.look()

    def stop(self, name: str) -> None:
        self.books.stopping(name)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def placed(decision: Decision) -> Placement:
    assert isinstance(decision, Place), decision
    return decision.placement


# There is room ------------------------------------------------------------------------------------


def test_what_fits_is_placed(machine: Machine) -> None:
    assert placed(machine.ask(model(31))) == Placement(Kind.SINGLE, 31, ("GPU-0",), (31 * GIB,), 0)


def test_room_is_taken_without_evicting_anybody(machine: Machine) -> None:
    machine.load("a", model(20))
    assert placed(machine.ask(model(11), idle=["a"])).gpus == ("GPU-0",)


def test_several_gpus_are_better_than_an_eviction() -> None:
    machine = Machine(2)
    machine.load("a", model(20))
    machine.load("b", model(20))
    assert placed(machine.ask(model(20), idle=["a", "b"])).kind is Kind.SPREAD


def test_the_strategy_is_followed() -> None:
    machine = Machine(2, strategy=Allocation.DISTRIBUTE)
    assert placed(machine.ask(model(10))).gpus == ("GPU-0", "GPU-1")


def test_what_never_fits_whole_is_placed_in_part() -> None:
    found = placed(Machine().ask(model(40)))
    assert (found.kind, found.layers, found.host_bytes) == (Kind.PARTIAL, 31, 9 * GIB)


def test_the_cpu_is_the_last_resort_and_only_with_leave() -> None:
    fixed = model(40, layers_fixed=True, layer_bytes=GIB * 3 // 4)
    machine = Machine(cpu_fallback=True)
    machine.foreign["GPU-0"] = 10
    assert placed(machine.ask(fixed)).kind is Kind.CPU
    machine = Machine(cpu_fallback=False)
    machine.foreign["GPU-0"] = 10
    assert isinstance(machine.ask(fixed), Impossible)


def test_without_a_gpu_the_cpu_needs_no_leave() -> None:
    assert placed(Machine(0).ask(model(31))).kind is Kind.CPU


def test_a_machine_that_has_lost_its_gpus_is_no_machine_without_gpus(machine: Machine) -> None:
    machine.lost.add("GPU-0")
    assert machine.ask(model(3)) == Wait(Reason.UNREADABLE, ("GPU-0",))
    machine.look(GONE_AFTER_S)
    assert isinstance(machine.ask(model(3)), Impossible)


# Room can be made ---------------------------------------------------------------------------------


def test_the_least_recently_used_go_and_no_more_than_needed(machine: Machine) -> None:
    for name, size in (("a", 8), ("b", 10), ("c", 12)):
        machine.load(name, model(size))
    assert machine.ask(model(8), idle=["b", "a", "c"]) == EvictFirst(("b",))
    assert machine.ask(model(15), idle=["a", "b", "c"]) == EvictFirst(("a", "b"))


def test_a_small_one_is_spared_if_the_large_one_that_must_go_is_enough(machine: Machine) -> None:
    machine.load("a", model(3))
    machine.load("b", model(20))
    assert machine.ask(model(20), idle=["a", "b"]) == EvictFirst(("b",))


def test_only_models_on_the_gpu_that_gets_the_room_go() -> None:
    machine = Machine(2)
    machine.foreign["GPU-0"] = 5
    machine.load("a", model(25))
    machine.load("b", model(30))
    wanted = model(30, layers_fixed=True)
    assert machine.ask(wanted, idle=["a", "b"]) == EvictFirst(("b",))


def test_a_model_in_use_is_waited_for(machine: Machine) -> None:
    machine.load("a", model(10))
    machine.load("b", model(20))
    assert machine.ask(model(25), idle=["a"], busy=["b"]) == Wait(Reason.BUSY, ("b",))


def test_a_better_place_is_waited_for(machine: Machine) -> None:
    machine.load("a", model(20))
    assert machine.ask(model(25), busy=["a"]) == Wait(Reason.BUSY, ("a",))


def test_a_pinned_model_stays_and_the_new_one_gets_what_is_left(machine: Machine) -> None:
    machine.load("a", model(20))
    assert placed(machine.ask(model(25))).layers == 11


def test_an_idle_model_goes_for_more_layers_of_one_that_never_fits_whole(machine: Machine) -> None:
    machine.load("a", model(20))
    assert machine.ask(model(40), idle=["a"]) == EvictFirst(("a",))


# Something is under way ---------------------------------------------------------------------------


def test_a_model_that_is_leaving_frees_its_memory_once_though_it_is_named_twice(machine: Machine) -> None:
    machine.load("a", model(15))
    machine.load("b", model(10))
    machine.stop("a")
    assert machine.ask(model(25), idle=["b"], busy=["a"]) == EvictFirst(("b",))


def test_a_release_is_waited_for_before_anybody_else_goes(machine: Machine) -> None:
    machine.load("a", model(15))
    machine.load("b", model(15))
    machine.stop("a")
    assert machine.ask(model(15), idle=["b"]) == Wait(Reason.RELEASING, ("a",))
    assert machine.ask(model(20), idle=["b"]) == EvictFirst(("b",))


def test_a_model_is_not_loaded_while_its_old_process_is_there(machine: Machine) -> None:
    machine.load("a", model(15))
    machine.stop("a")
    assert machine.ask(model(15), name="a") == Wait(Reason.RELEASING, ("a",))


def test_one_that_cannot_be_reaped_is_not_waited_for(machine: Machine) -> None:
    machine.load("a", model(15))
    machine.stop("a")
    machine.books.unreapable("a")
    assert isinstance(machine.ask(model(20, layers_fixed=True)), Impossible)


def test_where_processes_are_hidden_one_load_follows_the_other() -> None:
    machine = Machine(shows_processes=False)
    machine.begin("a", model(10))
    assert machine.ask(model(10), busy=["a"]) == Wait(Reason.LOADING, ("a",))


def test_where_processes_are_hidden_nobody_is_evicted_beside_a_load() -> None:
    machine = Machine(shows_processes=False)
    machine.load("a", model(10))
    placement = machine.begin("b", model(10))
    assert machine.ask(model(20), idle=["a"]) == Wait(Reason.LOADING, ("b",))
    machine.come_up("b", placement)
    assert machine.ask(model(20), idle=["a"]) == EvictFirst(("a",))


def test_where_processes_are_hidden_another_gpu_is_not_waited_for() -> None:
    machine = Machine(2, shows_processes=False)
    first = machine.begin("a", model(10))
    assert placed(machine.ask(model(10), busy=["a"])).gpus != first.gpus


def test_what_a_loading_model_has_taken_unseen_makes_nothing_impossible() -> None:
    machine = Machine(shows_processes=False)
    machine.begin("a", model(20))
    machine.processes["GPU-0"][ord("a")] = 18 * GIB
    assert machine.ask(model(30), busy=["a"]) == Wait(Reason.BUSY, ("a",))


def test_a_gpu_that_cannot_be_read_gets_nothing_and_is_waited_for() -> None:
    machine = Machine(2)
    machine.lost.add("GPU-0")
    assert placed(machine.ask(model(31))).gpus == ("GPU-1",)
    assert machine.ask(model(40)) == Wait(Reason.UNREADABLE, ("GPU-0",))


@pytest.mark.parametrize("seen_before", [True, False])
def test_without_a_reading_of_the_host_nothing_is_loaded(seen_before: bool) -> None:
    machine = Machine()
    if not seen_before:
        machine.books = Commitments()
        machine.guard = Guard(machine.books, Allocation.SINGLE_GPU_PREFERRED, cpu_fallback=True)
    machine.lost.add(HOST)
    assert machine.ask(model(3)) == Wait(Reason.UNREADABLE, (HOST,))


# Others take memory -------------------------------------------------------------------------------


def test_where_others_have_broken_the_sum_nothing_is_added(machine: Machine) -> None:
    machine.load("a", model(20))
    machine.foreign["GPU-0"] = 12
    nothing = model(1, layer_bytes=0)
    assert machine.ask(nothing, busy=["a"]) == Wait(Reason.FOREIGN, ("a",))
    assert machine.ask(nothing, idle=["a"]) == EvictFirst(("a",))


def test_idle_models_go_until_the_sum_holds_again(machine: Machine) -> None:
    for name in ("a", "b", "c"):
        machine.load(name, model(10))
    assert machine.guard.relieve(["a", "b", "c"]) == ()
    machine.foreign["GPU-0"] = 2
    machine.look()
    assert machine.guard.relieve(["b", "a", "c"]) == ("b",)
    machine.foreign["GPU-0"] = 15
    machine.look()
    assert machine.guard.relieve(["b", "a", "c"]) == ("b", "a")


def test_relief_takes_only_what_is_on_the_device_in_need() -> None:
    machine = Machine(2)
    machine.load("a", model(30))
    machine.load("b", model(20))
    machine.foreign["GPU-1"] = 12
    machine.look()
    assert machine.guard.relieve(["a", "b"]) == ("b",)


def test_relief_is_given_though_it_is_not_enough(machine: Machine) -> None:
    machine.load("a", model(10))
    machine.load("b", model(10))
    machine.foreign["GPU-0"] = 30
    machine.look()
    assert machine.guard.relieve(["b"]) == ("b",)


def test_what_leaves_anyway_is_relief_enough(machine: Machine) -> None:
    machine.load("a", model(10))
    machine.load("b", model(10))
    machine.stop("a")
    machine.foreign["GPU-0"] = 15
    machine.look()
    assert machine.guard.relieve(["b"]) == ()


def test_a_load_that_counts_twice_is_no_reason_for_relief() -> None:
    machine = Machine(shows_processes=False)
    machine.load("a", model(10))
    machine.begin("b", model(20))
    machine.processes["GPU-0"][ord("b")] = 18 * GIB
    machine.look()
    assert machine.guard.relieve(["a"]) == ()


# Memory ran out -----------------------------------------------------------------------------------


def run_out(machine: Machine, name: str, size: int) -> TooSmall:
    """It is being loaded and dies when it has taken so many GiB."""
    machine.processes["GPU-0"][ord(name)] = size * GIB
    machine.look()
    lesson = machine.guard.out_of_memory(name)
    machine.books.reaped(name, machine.now)
    machine.processes["GPU-0"].clear()
    machine.look()
    assert name not in machine.books
    return lesson


def test_a_death_from_want_of_memory_teaches_a_tenth_more(machine: Machine) -> None:
    machine.begin("a", model(10))
    assert run_out(machine, "a", 9) == TooSmall({"GPU-0": 11 * GIB, HOST: 0}, retry=True)


def test_what_it_was_seen_to_take_teaches_more(machine: Machine) -> None:
    machine.begin("a", model(10))
    assert run_out(machine, "a", 20).needs["GPU-0"] == 22 * GIB


def test_it_is_tried_once_more_with_everything_idle_gone(machine: Machine) -> None:
    machine.begin("a", model(10))
    run_out(machine, "a", 9)
    machine.load("b", model(1))
    assert machine.ask(model(11), name="a", idle=["b"]) == EvictFirst(("b",))
    machine.stop("b")
    assert machine.ask(model(11), name="a") == Wait(Reason.RELEASING, ("b",))
    machine.books.released("b")
    machine.processes["GPU-0"].clear()
    machine.begin("a", model(11))
    assert run_out(machine, "a", 10).retry is False
    machine.load("b", model(1))
    assert isinstance(machine.ask(model(12), name="a", idle=["b"]), Place)


def test_after_a_good_load_it_may_be_tried_again_once_more(machine: Machine) -> None:
    machine.begin("a", model(10))
    run_out(machine, "a", 9)
    machine.begin("a", model(11))
    machine.guard.loaded("a")
    assert run_out(machine, "a", 9).retry is True


# What is said -------------------------------------------------------------------------------------


def test_a_refusal_says_what_it_needs_what_is_free_and_what_was_tried() -> None:
    machine = Machine(2)
    machine.load("a", model(10))
    machine.foreign["GPU-1"] = 4
    machine.foreign[HOST] = 30
    decision = machine.ask(model(70), idle=["a"])
    assert isinstance(decision, Impossible)
    error = refusal(decision, Suggestions(70 * GIB, 58 * GIB, None, False, None, gpu_layers=58))
    assert isinstance(error, InsufficientVram)
    assert (error.status, error.code) == (503, "insufficient_vram")
    assert error.message == (
        "'new' does not fit: it needs 70.0 GiB on a GPU with 0 bytes of main memory beside it, "
        "or 70.0 GiB of main memory alone. "
        "Free with a unloaded: GPU 0 31.0 GiB of 32.0 GiB; "
        "GPU 1 27.0 GiB of 32.0 GiB, 4.0 GiB used by other programs; "
        "main memory 1.0 GiB of 32.0 GiB, 30.0 GiB used by other programs. "
        "Tried: one GPU, several GPUs, as many layers on GPUs as fit, the CPU no, gpu.cpu_fallback is off. "
        "It needs 70.0 GiB and 58.0 GiB are free. It would fit with 58 layers on the GPU (--gpu-layers 58)."
    )


def test_a_refusal_without_gpus_speaks_of_main_memory_alone() -> None:
    decision = Machine(0).ask(model(40))
    assert isinstance(decision, Impossible)
    assert refusal(decision).message == (
        "'new' does not fit: it needs 40.0 GiB of main memory. "
        "Free: main memory 31.0 GiB of 32.0 GiB. Tried: the CPU."
    )
