from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from corral.policy.placement import HOST, Footprint, Kind, Placement, choose
from corral.settings import Allocation
from tests.policy.memory_machine import GIB, MIB, Model

# Ten layers of 1 GiB, and something beside them on each GPU and on the host.
MODEL = Model(layers=10, layer_bytes=GIB, layer_count=10, context_bytes=256 * MIB, host_base_bytes=512 * MIB)
WHOLE = 10 * GIB + 256 * MIB
SINGLE_FIRST, DISTRIBUTE = Allocation.SINGLE_GPU_PREFERRED, Allocation.DISTRIBUTE


def place(
    rooms: Mapping[str, int],
    model: Footprint = MODEL,
    strategy: Allocation = SINGLE_FIRST,
    *,
    host: int = 64 * GIB,
    cpu_allowed: bool = True,
) -> Placement | None:
    return choose(model, {**rooms, HOST: host}, strategy, cpu_allowed=cpu_allowed)


def test_one_gpu_takes_the_whole_model_if_it_has_exactly_the_room() -> None:
    assert place({"a": WHOLE}) == Placement(Kind.SINGLE, 10, ("a",), (WHOLE,), 512 * MIB)


def test_the_tightest_gap_that_fits_is_taken() -> None:
    found = place({"a": 40 * GIB, "b": 12 * GIB, "c": 9 * GIB, "d": 20 * GIB})
    assert found is not None
    assert found.gpus == ("b",)


def test_of_equal_gaps_the_first_is_taken() -> None:
    found = place({"a": 12 * GIB, "b": 12 * GIB})
    assert found is not None
    assert found.gpus == ("a",)


def test_what_no_gpu_can_take_alone_is_spread_in_proportion_to_the_rooms() -> None:
    found = place({"a": 9 * GIB, "b": 6 * GIB})
    assert found == Placement(
        Kind.SPREAD,
        layers=10,
        gpus=("a", "b"),
        gpu_bytes=(6 * GIB + 256 * MIB, 4 * GIB + 256 * MIB),
        host_bytes=512 * MIB,
        tensor_split=(9 * 1024, 6 * 1024),
    )


def test_it_is_spread_over_as_few_gpus_as_will_do_and_in_their_order() -> None:
    found = place({"a": 2 * GIB, "b": 7 * GIB, "c": 3 * GIB, "d": 8 * GIB})
    assert found is not None
    assert found.kind is Kind.SPREAD
    assert found.gpus == ("b", "d")


def test_whoever_asks_for_distribution_gets_all_gpus_though_one_would_do() -> None:
    found = place({"a": 20 * GIB, "b": 20 * GIB}, strategy=DISTRIBUTE)
    assert found is not None
    assert (found.kind, found.gpus) == (Kind.SPREAD, ("a", "b"))


def test_a_gpu_too_full_for_its_part_is_left_out_of_a_distribution() -> None:
    found = place({"a": 20 * GIB, "b": 100 * MIB, "c": 20 * GIB}, strategy=DISTRIBUTE)
    assert found is not None
    assert found.gpus == ("a", "c")


def test_a_distribution_over_one_gpu_is_that_gpu() -> None:
    found = place({"a": 20 * GIB}, strategy=DISTRIBUTE)
    assert found is not None
    assert (found.kind, found.tensor_split) == (Kind.SINGLE, ())


def test_layers_are_moved_where_whole_ones_do_not_divide_as_the_rooms_do() -> None:
    # In proportion 10 layers are 7.2 and 2.8, that is 7 and 3. The second has room for 2 only.
    found = place({"a": 8 * GIB + 768 * MIB, "b": 3 * GIB + 128 * MIB})
    assert found is not None
    assert found.kind is Kind.SPREAD
    assert found.gpu_bytes == (8 * GIB + 256 * MIB, 2 * GIB + 256 * MIB)
    assert MODEL.spread(found.tensor_split, 10) == found.gpu_bytes


def test_what_fits_nowhere_whole_leaves_the_rest_of_its_layers_on_the_host() -> None:
    found = place({"a": 4 * GIB})
    assert found == Placement(Kind.PARTIAL, 3, ("a",), (3 * GIB + 256 * MIB,), 7 * GIB + 512 * MIB)


def test_as_many_layers_as_fit_are_counted_over_all_gpus() -> None:
    found = place({"a": 4 * GIB, "b": 3 * GIB})
    assert found is not None
    assert (found.kind, found.layers, found.gpus) == (Kind.PARTIAL, 5, ("a", "b"))


def test_a_gpu_that_adds_no_layer_is_left_alone() -> None:
    found = place({"a": 4 * GIB, "b": 300 * MIB})
    assert found is not None
    assert (found.layers, found.gpus) == (3, ("a",))


@pytest.mark.parametrize("room", range(1, 12))
def test_the_most_layers_are_found_for_every_room(room: int) -> None:
    found = place({"a": room * GIB})
    # A context takes a quarter of a GiB, so of so many GiB one less is for layers.
    assert found is not None
    assert found.layers == min(room - 1, 10)


def test_without_room_on_any_gpu_the_cpu_works() -> None:
    assert place({"a": GIB}) == Placement(Kind.CPU, 0, (), (), 10 * GIB + 512 * MIB)


def test_the_cpu_works_only_if_it_may() -> None:
    assert place({"a": GIB}, cpu_allowed=False) is None


def test_a_model_meant_for_the_cpu_goes_there_whatever_is_free() -> None:
    found = place({"a": 40 * GIB}, replace(MODEL, layer_count=0), cpu_allowed=False)
    assert found is not None
    assert found.kind is Kind.CPU


def test_a_model_meant_to_have_some_layers_on_gpus_is_whole_with_these() -> None:
    found = place({"a": 5 * GIB}, replace(MODEL, layer_count=4))
    assert found == Placement(Kind.SINGLE, 4, ("a",), (4 * GIB + 256 * MIB,), 6 * GIB + 512 * MIB)


def test_a_fixed_number_of_layers_is_all_or_none() -> None:
    fixed = replace(MODEL, layers_fixed=True)
    assert place({"a": 4 * GIB}, fixed, cpu_allowed=False) is None
    found = place({"a": 4 * GIB}, fixed)
    assert found is not None
    assert found.kind is Kind.CPU


@pytest.mark.parametrize(
    ("rooms", "host"),
    [
        ({"a": 40 * GIB}, 512 * MIB - 1),
        ({"a": 4 * GIB}, 7 * GIB),
        ({}, 10 * GIB),
    ],
    ids=["beside-one-gpu", "for-the-other-layers", "on-the-cpu"],
)
def test_the_host_needs_room_too(rooms: Mapping[str, int], host: int) -> None:
    assert place(rooms, host=host) is None


def test_an_unknown_host_takes_nothing() -> None:
    assert choose(MODEL, {"a": 40 * GIB}, SINGLE_FIRST, cpu_allowed=True) is None


def test_a_model_that_takes_nothing_goes_nowhere_where_the_sum_is_broken() -> None:
    nothing = Model(layers=1, layer_bytes=0, layer_count=1)
    found = place({"a": -1, "b": 0}, nothing)
    assert found is not None
    assert found.gpus == ("b",)
    assert place({"a": -1}, nothing, cpu_allowed=False) is None
    assert place({"b": 0}, nothing, host=-1) is None


def test_needs_are_told_by_device() -> None:
    found = place({"a": 9 * GIB, "b": 6 * GIB})
    assert found is not None
    assert found.needs == {"a": 6 * GIB + 256 * MIB, "b": 4 * GIB + 256 * MIB, HOST: 512 * MIB}
