"""Footprints: the prediction with its margin, or what was learnt with the small one."""

from __future__ import annotations

import math

import pytest

from corral.formats import gguf
from corral.formats.demo_models import demo
from corral.policy.footprint import PredictedFootprint, UnknownFootprint
from corral.policy.learning import LEARNED_MULTIPLIER, Learned, LearnedKey
from corral.policy.memory import HOST_ONLY, Layout, predict, read_options
from corral.policy.placement import HOST, Kind, Placement

GIB = 1 << 30
FILE = demo()
HEADER = gguf.read(lambda offset, length: FILE[offset : offset + length], len(FILE))
FLAGS = ("llama-server", "-c", "4096", "--parallel", "1", "-ngl", "99", "--cache-ram", "0")
PREDICTION = predict([HEADER], read_options(FLAGS, {}))
ALL_LAYERS = PREDICTION.layers + 1


def footprint(known: dict[LearnedKey, Learned] | None = None, gpus: bool = True) -> PredictedFootprint:
    return PredictedFootprint(
        PREDICTION, "print", (known or {}).get, gpus=gpus, layers_fixed=False, multiplier=1.5
    )


def test_an_unknown_layout_gets_the_prediction_and_the_wide_margin() -> None:
    predicted = PREDICTION.total_device_bytes(Layout(ALL_LAYERS, (1.0,)))
    (size,) = footprint().spread((1,), ALL_LAYERS)
    assert size == pytest.approx(predicted * 1.5, abs=2)
    host = PREDICTION.total_host_bytes(HOST_ONLY)
    assert footprint().host_bytes(0) == pytest.approx(host * 1.5, abs=2)


def test_a_measured_layout_gets_the_measurement_and_the_narrow_margin() -> None:
    key = footprint().gpu_key(ALL_LAYERS)
    learnt = footprint({key: Learned(10 * GIB, 1 * GIB)})
    assert sum(learnt.spread((1,), ALL_LAYERS)) == pytest.approx(10 * GIB * LEARNED_MULTIPLIER, rel=1e-6)
    assert learnt.spread((1,), 1) == footprint().spread((1,), 1)
    assert learnt.host_bytes(0) == footprint().host_bytes(0)


def test_what_was_learnt_on_the_host_is_for_the_host() -> None:
    learnt = footprint({footprint().host_key(0): Learned(3 * GIB, GIB)})
    assert learnt.host_bytes(0) == round(3 * GIB * LEARNED_MULTIPLIER)
    assert learnt.spread((1,), ALL_LAYERS) == footprint().spread((1,), ALL_LAYERS)


def test_what_was_learnt_on_the_host_takes_away_the_margin_and_no_more() -> None:
    learnt = footprint({footprint().host_key(0): Learned(GIB // 100, GIB)})
    assert learnt.host_bytes(0) == PREDICTION.total_host_bytes(HOST_ONLY)


def test_several_gpus_share_by_their_shares() -> None:
    first, second = footprint().spread((3, 1), ALL_LAYERS)
    predicted = PREDICTION.device_bytes(Layout(ALL_LAYERS, (3.0, 1.0)))
    assert first == math.ceil(predicted[0].total * 1.5)
    assert second == math.ceil(predicted[1].total * 1.5)


def test_what_one_gpu_has_shown_leaves_room_for_the_second_ones_context() -> None:
    one, two = (PREDICTION.total_device_bytes(Layout(ALL_LAYERS, shares)) for shares in ((1.0,), (1.0, 1.0)))
    learnt = footprint({footprint().gpu_key(ALL_LAYERS): Learned(one, one)})
    assert sum(learnt.spread((1, 1), ALL_LAYERS)) >= two


def test_without_a_gpu_no_layer_is_meant_for_one() -> None:
    assert footprint().layer_count == ALL_LAYERS
    assert footprint(gpus=False).layer_count == 0


def test_the_bare_prediction_of_a_placement_is_what_a_measurement_is_held_against() -> None:
    one = Placement(Kind.SINGLE, ALL_LAYERS, ("GPU-a",), (1,), 1)
    two = Placement(Kind.SPREAD, ALL_LAYERS, ("GPU-a", "GPU-b"), (1, 1), 1, (3, 1))
    alone = Placement(Kind.CPU, 0, (), (), 1)
    made = footprint()
    assert made.predicted_gpu_bytes(one) == PREDICTION.total_device_bytes(Layout(ALL_LAYERS, (1.0,)))
    assert made.predicted_gpu_bytes(two) == PREDICTION.total_device_bytes(Layout(ALL_LAYERS, (3.0, 1.0)))
    assert made.predicted_gpu_bytes(alone) == 0
    assert made.predicted_host_bytes(alone) == PREDICTION.total_host_bytes(HOST_ONLY)


@pytest.mark.parametrize("gpus", [True, False], ids=["on a GPU", "on the host"])
def test_a_refusal_can_say_what_would_fit(gpus: bool) -> None:
    need = sum(footprint().spread((1,), ALL_LAYERS)) if gpus else footprint().host_bytes(0)
    free = {"GPU-a": need - 1_000_000, HOST: need - 1_000_000}
    assert "It would fit with" in footprint(gpus=gpus).would_fit(free).text()


def test_a_file_that_cannot_be_read_takes_about_its_size() -> None:
    unknown = UnknownFootprint(1000, gpus=True)
    assert unknown.spread((1, 1), 1) == (500, 500)
    assert (unknown.layer_count, unknown.host_bytes(1), unknown.host_bytes(0)) == (1, 0, 1000)
    assert UnknownFootprint(1000, gpus=False).layer_count == 0
