"""A plan says what the guard will do, where and with how much; on an empty machine, who goes with whom."""

from __future__ import annotations

import random
from dataclasses import fields

import pytest

from corral.policy.commitments import Commitments, Device
from corral.policy.footprint import AnyFootprint, PredictedFootprint, UnknownFootprint
from corral.policy.guard import EvictFirst, Guard, Place, Reason, Wait
from corral.policy.learning import Learned, LearnedKey, Source
from corral.policy.memory import Parts, predict, read_options
from corral.policy.placement import HOST, Kind
from corral.policy.plan import NOBODY, EmptyMachine, Plan, Verdict, foresee, of_loaded
from corral.policy.scheduler import Outlook
from corral.settings import Allocation
from tests.policy.memory.files import MIB, transformer

GIB = 1 << 30
FILE = transformer(layers=8, width=2048, heads=16, kv_heads=4, head=128, feed_forward=5632)
# 802 MiB on one GPU, of which 64 are the cache of 4096 tokens.
SMALL, LONG, HUGE = (f"-c {tokens} -np 2" for tokens in (4096, 65536, 1 << 20))
LAYERS = 9


def footprint(
    words: str = SMALL,
    *,
    gpus: bool = True,
    layers_fixed: bool = False,
    known: dict[LearnedKey, Learned] | None = None,
) -> PredictedFootprint:
    prediction = predict([FILE.value()], read_options(words.split(), {}))
    recall = (known or {}).get
    return PredictedFootprint(
        prediction, "print", recall, gpus=gpus, layers_fixed=layers_fixed, multiplier=1.0
    )


def devices(
    *gpus_mib: int, host_mib: int = 64 * 1024, processes: dict[int, int] | None = None
) -> list[Device]:
    return [
        *(
            Device(f"GPU-{number}", number, mib * MIB, 0, {} if processes is None else processes)
            for number, mib in enumerate(gpus_mib)
        ),
        Device(HOST, 99, host_mib * MIB, 0, {}),
    ]


class Herd:
    """Books and a guard, on a card with room for one small model or for two."""

    def __init__(self, *gpus_mib: int, cpu_fallback: bool = False, host_mib: int = 64 * 1024) -> None:
        self.books = Commitments()
        self.books.observe(devices(*gpus_mib, host_mib=host_mib), 0.0)
        self.guard = Guard(self.books, Allocation.SINGLE_GPU_PREFERRED, cpu_fallback=cpu_fallback)

    def load(self, *names: str) -> None:
        for name in names:
            decision = self.guard.decide(name, footprint(), idle=(), busy=())
            assert isinstance(decision, Place)
            self.books.reserve(name, decision.placement)

    def plan(self, wanted: AnyFootprint, outlook: Outlook = NOBODY) -> Plan:
        return foresee("new", wanted, self.guard, outlook, self.books.accounts())


# Before a running herd ----------------------------------------------------------------------------


def test_a_model_for_which_there_is_room_is_told_where_and_how_much() -> None:
    plan = Herd(1000).plan(footprint())
    assert (plan.verdict, plan.evict, plan.wait_for, plan.would_fit) == (Verdict.LOAD, (), (), None)
    assert plan.placement is not None
    assert (plan.placement.kind, plan.placement.layers, plan.placement.gpus) == (
        Kind.SINGLE,
        LAYERS,
        ("GPU-0",),
    )
    assert (plan.context_tokens, plan.slots, plan.layer_count) == (4096, 2, LAYERS)
    assert plan.names == {"GPU-0": "GPU 0", HOST: "main memory"}
    assert plan.message == "'new' would load on GPU 0 (801.7 MiB), with 35.0 MiB of main memory beside."


def test_the_parts_are_of_each_device_and_their_sum_is_the_whole() -> None:
    wanted = footprint(LONG)
    plan = Herd(1000, 1000, 1000, 1000, 1000).plan(wanted)
    assert plan.placement is not None
    assert [share.device for share in plan.shares] == [*plan.placement.gpus, HOST]
    assert [share.bytes for share in plan.shares] == list(plan.placement.needs.values())
    assert [share.parts.total for share in plan.shares] == [share.bytes for share in plan.shares]
    for part in fields(Parts):
        assert getattr(plan.parts, part.name) == sum(getattr(share.parts, part.name) for share in plan.shares)
    assert plan.parts.cache == sum(wanted.prediction.cache)


def test_what_was_learnt_is_told_from_what_is_predicted_on_each_device() -> None:
    plain = footprint()
    known = {plain.gpu_key(LAYERS): Learned(900 * MIB, 1000 * MIB)}
    plan = Herd(1000).plan(footprint(known=known))
    assert plan.placement is not None
    gpu, host = plan.shares
    assert (gpu.source, host.source) == (Source.LEARNED, Source.PREDICTED)
    assert gpu.bytes == pytest.approx(918 * MIB, rel=0.01)
    assert gpu.parts.total == plain.predicted_gpu_bytes(plan.placement)


def test_a_model_that_idle_ones_must_make_way_for_says_which() -> None:
    herd = Herd(2000)
    herd.load("a", "b")
    plan = herd.plan(footprint(), Outlook(("b", "a"), (), None))
    assert (plan.verdict, plan.evict, plan.wait_for) == (Verdict.EVICT, ("b",), ())
    assert plan.placement is not None
    assert plan.placement.gpus == ("GPU-0",)
    assert plan.message.startswith("'new' would load on GPU 0 (")
    assert plan.message.endswith(" beside, once b is unloaded.")


def test_a_model_that_waits_for_busy_ones_says_for_which_and_where_it_will_be() -> None:
    herd = Herd(1000)
    herd.load("a")
    plan = herd.plan(footprint(), Outlook((), ("a",), None))
    assert (plan.verdict, plan.evict, plan.wait_for) == (Verdict.WAIT, (), ("a",))
    assert plan.placement is not None
    assert plan.placement.layers == LAYERS
    assert plan.message.endswith(" beside. It has to wait: models that are in use hold the memory (a).")


def test_the_number_of_models_may_cost_a_model_as_well_as_the_memory() -> None:
    herd = Herd(2000)
    herd.load("a", "b")
    plan = herd.plan(footprint(), Outlook(("a", "b"), (), EvictFirst(("a",))))
    assert (plan.verdict, plan.evict) == (Verdict.EVICT, ("a",))
    roomy = Herd(4000)
    roomy.load("a", "b")
    plan = roomy.plan(footprint(), Outlook(("a", "b"), (), EvictFirst(("a",))))
    assert (plan.verdict, plan.evict) == (Verdict.EVICT, ("a",))
    assert plan.message.endswith("once a is unloaded.")


def test_a_place_among_the_models_may_have_to_be_waited_for_with_memory_enough() -> None:
    plan = Herd(1000).plan(footprint(), Outlook((), (), Wait(Reason.FULL, ("a",))))
    assert (plan.verdict, plan.wait_for) == (Verdict.WAIT, ("a",))
    assert plan.message.endswith(" It has to wait: as many models are loaded as may be (a).")


def test_what_fits_nowhere_is_refused_in_the_guards_words_and_with_what_would_fit() -> None:
    herd = Herd(1000)
    plan = herd.plan(footprint(LONG))
    assert plan.verdict is Verdict.LOAD  # as many layers as fit
    plan = herd.plan(footprint(LONG, layers_fixed=True))
    assert (plan.verdict, plan.placement, plan.shares) == (Verdict.IMPOSSIBLE, None, ())
    assert plan.message.startswith("'new' does not fit: it needs ")
    assert plan.impossible is not None
    assert plan.would_fit is not None
    assert plan.would_fit.context_tokens is not None
    shorter = footprint(f"-c {plan.would_fit.context_tokens} -np 2", layers_fixed=True)
    assert herd.plan(shorter).verdict is Verdict.LOAD
    assert plan.parts.total == plan.impossible.gpu_bytes + plan.impossible.host_bytes


def test_two_cards_are_suggested_more_than_one_and_hold_it() -> None:
    suggested = []
    for herd in (Herd(1000), Herd(1000, 1000)):
        would_fit = herd.plan(footprint(HUGE, layers_fixed=True)).would_fit
        assert would_fit is not None
        assert would_fit.context_tokens is not None
        suggested.append(would_fit.context_tokens)
        shorter = footprint(f"-c {would_fit.context_tokens} -np 2", layers_fixed=True)
        assert herd.plan(shorter).verdict is Verdict.LOAD
    assert suggested[1] > 2 * suggested[0]


def test_layers_are_not_suggested_if_the_rest_would_not_fit_on_the_host() -> None:
    plan = Herd(1000, host_mib=100).plan(footprint(HUGE))
    assert plan.verdict is Verdict.IMPOSSIBLE
    assert plan.would_fit is not None
    assert plan.would_fit.gpu_layers is None


def test_a_model_that_is_not_all_on_gpus_says_what_would_be() -> None:
    plan = Herd(1000).plan(footprint(LONG))
    assert plan.placement is not None
    assert 0 < plan.placement.layers < LAYERS
    assert f"with {plan.placement.layers} of 9 layers on GPU 0" in plan.message
    assert plan.would_fit is not None
    assert (plan.would_fit.context_tokens is not None, plan.would_fit.gpu_layers) == (True, None)


def test_without_a_gpu_it_is_the_memory_that_counts() -> None:
    plan = Herd().plan(footprint(gpus=False))
    assert (plan.verdict, [share.device for share in plan.shares]) == (Verdict.LOAD, [HOST])
    assert plan.message.startswith("'new' would load on the CPU, with ")
    assert plan.would_fit is None


def test_a_file_that_cannot_be_read_is_planned_by_its_size() -> None:
    plan = Herd(1000).plan(UnknownFootprint(500 * MIB, gpus=True))
    assert (plan.verdict, plan.context_tokens, plan.slots) == (Verdict.LOAD, None, None)
    gpu, host = plan.shares
    assert (gpu.bytes, gpu.parts, gpu.source) == (500 * MIB, Parts(weights=500 * MIB), Source.FILE_SIZE)
    assert host.bytes == 0


def test_a_model_that_is_there_is_told_where() -> None:
    herd = Herd(1000)
    decision = herd.guard.decide("a", footprint(), idle=(), busy=())
    assert isinstance(decision, Place)
    herd.books.reserve("a", decision.placement)
    plan = of_loaded("a", footprint(), decision.placement, herd.books.accounts())
    assert (plan.verdict, plan.placement) == (Verdict.LOADED, decision.placement)
    assert plan.message == "'a' has its place on GPU 0 (801.7 MiB), with 35.0 MiB of main memory beside."


def test_a_model_that_is_there_in_part_is_not_told_what_would_fit_beside_itself() -> None:
    herd = Herd(1000)
    wanted = footprint(LONG)
    decision = herd.guard.decide("a", wanted, idle=(), busy=())
    assert isinstance(decision, Place)
    assert of_loaded("a", wanted, decision.placement, herd.books.accounts()).would_fit is None


def test_a_plan_changes_nothing_in_the_books() -> None:
    herd = Herd(1000)
    herd.load("a")
    before = herd.books.accounts()
    herd.plan(footprint(), Outlook(("a",), (), None))
    assert herd.books.accounts() == before
    assert "new" not in herd.books


@pytest.mark.parametrize("seed", range(40))
def test_a_plan_is_what_the_guard_decides_in_the_end(seed: int) -> None:
    chance = random.Random(seed)
    herd = Herd(*(chance.randrange(300, 3000) for _ in range(chance.randrange(4))), cpu_fallback=True)
    idle = []
    for name in "abc":
        decision = herd.guard.decide(name, footprint(), idle=(), busy=())
        if isinstance(decision, Place) and chance.random() < 0.7:
            herd.books.reserve(name, decision.placement)
            idle.append(name)
    wanted = footprint(f"-c {chance.randrange(1, 40) * 2048}")
    plan = herd.plan(wanted, Outlook(tuple(idle), (), None))
    for name in plan.evict:
        herd.books.released(name)
        idle.remove(name)
    decision = herd.guard.decide("new", wanted, idle=tuple(idle), busy=())
    assert plan.verdict in (Verdict.LOAD, Verdict.EVICT)
    assert decision == Place(plan.placement)  # type: ignore[arg-type]


# Before an empty machine --------------------------------------------------------------------------


def empty(*gpus_mib: int, cpu_fallback: bool = False) -> EmptyMachine:
    return EmptyMachine(devices(*gpus_mib), Allocation.SINGLE_GPU_PREFERRED, cpu_fallback=cpu_fallback)


def sets(
    machine: EmptyMachine, footprints: dict[str, PredictedFootprint], models_max: int = 9
) -> list[list[str]]:
    return [list(company.placements) for company in machine.together(dict(footprints), models_max)]


def test_models_that_fit_together_are_one_set_and_the_others_are_the_next() -> None:
    small = dict.fromkeys("abcde", footprint())
    assert sets(empty(2000), small) == [["a", "b"], ["c", "d"], ["e"]]
    assert sets(empty(2000, 1000), small) == [["a", "b", "c"], ["d", "e"]]


def test_a_later_model_may_go_with_an_earlier_one_where_one_between_them_does_not() -> None:
    footprints = {"a": footprint(), "long": footprint("-c 40960"), "b": footprint()}
    assert sets(empty(2000), footprints) == [["a", "b"], ["long"]]


def test_a_set_has_no_more_models_than_may_be_loaded() -> None:
    assert sets(empty(9000), dict.fromkeys("abc", footprint()), models_max=2) == [["a", "b"], ["c"]]


def test_nobody_gets_a_worse_place_for_company() -> None:
    machine = empty(1000, cpu_fallback=True)
    assert sets(machine, dict.fromkeys("ab", footprint())) == [["a"], ["b"]]
    assert sets(
        EmptyMachine(devices(), Allocation.DISTRIBUTE, cpu_fallback=False),
        dict.fromkeys("ab", footprint(gpus=False)),
    ) == [["a", "b"]]


def test_what_fits_nowhere_is_in_no_set() -> None:
    machine = empty(1000)
    footprints = {"huge": footprint(LONG, layers_fixed=True), "a": footprint()}
    assert machine.alone("huge", footprints["huge"]).verdict is Verdict.IMPOSSIBLE
    assert machine.alone("a", footprints["a"]).verdict is Verdict.LOAD
    assert sets(machine, footprints) == [["a"]]


def test_each_set_says_what_it_leaves_and_the_machine_what_there_is() -> None:
    machine = empty(2000)
    [company] = machine.together({"a": footprint()}, 9)
    before, after = machine.accounts[0], company.accounts[0]
    assert before.room_bytes == 2000 * MIB - 2000 * MIB // 32
    assert before.room_bytes - after.room_bytes == company.placements["a"].gpu_bytes[0]


def test_a_driver_that_hides_processes_hides_nothing_of_an_empty_machine() -> None:
    gpu = Device("GPU-0", 0, 2000 * MIB, 0, None)
    machine = EmptyMachine([gpu, devices()[-1]], Allocation.SINGLE_GPU_PREFERRED, cpu_fallback=False)
    assert sets(machine, dict.fromkeys("ab", footprint())) == [["a", "b"]]


def test_what_is_in_use_already_is_taken() -> None:
    gpu = Device("GPU-0", 0, 2000 * MIB, 1000 * MIB, {})
    machine = EmptyMachine([gpu, devices()[-1]], Allocation.SINGLE_GPU_PREFERRED, cpu_fallback=False)
    assert sets(machine, dict.fromkeys("ab", footprint())) == [["a"], ["b"]]
