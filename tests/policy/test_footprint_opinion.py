"""A second opinion makes a footprint larger, never smaller, and counts for nothing beside a measurement."""

from __future__ import annotations

import pytest

from corral.policy.footprint import PredictedFootprint
from corral.policy.learning import LEARNED_MULTIPLIER, Learned, LearnedKey
from corral.policy.memory import HOST_ONLY, predict, read_options
from tests.policy.memory.files import transformer

MULTIPLIER = 1.5
PREDICTION = predict([transformer().value()], read_options(["-c", "4096", "-np", "1"], {}))
ALL_LAYERS = PREDICTION.layers + 1

Known = dict[LearnedKey, Learned]


def footprint(known: Known, gpus: bool = True) -> PredictedFootprint:
    return PredictedFootprint(
        PREDICTION, "print", known.get, gpus=gpus, layers_fixed=False, multiplier=MULTIPLIER
    )


def with_opinion(total: int, predicted: int = 100, gpus: bool = True) -> PredictedFootprint:
    return footprint({footprint({}, gpus).opinion_key: Learned(total, predicted)}, gpus)


def on_one(subject: PredictedFootprint, layers: int = ALL_LAYERS) -> int:
    return sum(subject.spread((1,), layers))


def test_more_than_predicted_is_reserved_in_proportion() -> None:
    assert on_one(with_opinion(130)) == pytest.approx(1.3 * on_one(footprint({})), rel=1e-6)


@pytest.mark.parametrize("total", [100, 70, 0], ids=["the same", "less", "nothing"])
def test_an_opinion_lowers_nothing(total: int) -> None:
    assert on_one(with_opinion(total)) == on_one(footprint({}))


def test_it_counts_for_every_layout_on_gpus() -> None:
    plain, raised = footprint({}), with_opinion(130)
    assert on_one(raised, 2) == pytest.approx(1.3 * on_one(plain, 2), rel=1e-6)
    several = zip(raised.spread((3, 1), ALL_LAYERS), plain.spread((3, 1), ALL_LAYERS), strict=True)
    assert all(more == pytest.approx(1.3 * less, rel=1e-6) for more, less in several)


def test_an_opinion_on_gpus_says_nothing_about_the_host() -> None:
    plain, raised = footprint({}), with_opinion(130)
    assert [raised.host_bytes(layers) for layers in (0, ALL_LAYERS)] == [
        plain.host_bytes(layers) for layers in (0, ALL_LAYERS)
    ]


def test_without_gpus_it_is_the_host_that_takes_more() -> None:
    plain, raised = footprint({}, gpus=False), with_opinion(130, gpus=False)
    assert raised.host_bytes(0) == pytest.approx(1.3 * plain.host_bytes(0), rel=1e-6)
    assert plain.opinion_key != footprint({}).opinion_key


def test_what_the_host_was_seen_to_hold_does_not_lower_it() -> None:
    plain = footprint({}, gpus=False)
    both = footprint({plain.host_key(0): Learned(1, 1), plain.opinion_key: Learned(130, 100)}, gpus=False)
    predicted = PREDICTION.total_host_bytes(HOST_ONLY)
    assert both.host_bytes(0) == pytest.approx(1.3 * predicted, abs=1)


def test_a_measurement_of_gpus_beats_it() -> None:
    plain = footprint({})
    key = plain.gpu_key(ALL_LAYERS)
    both = footprint({key: Learned(1 << 30, 1 << 30), plain.opinion_key: Learned(200, 100)})
    assert on_one(both) == pytest.approx((1 << 30) * LEARNED_MULTIPLIER, abs=2)


def test_what_would_fit_is_judged_by_it_too() -> None:
    needs = [
        subject.would_fit({"GPU-a": 1 << 20}).needed_bytes for subject in (footprint({}), with_opinion(130))
    ]
    assert needs[1] == pytest.approx(1.3 * needs[0], rel=1e-6)


@pytest.mark.parametrize("gpus", [True, False], ids=["on a GPU", "on the host"])
def test_one_is_news_until_there_is_one(gpus: bool) -> None:
    plain = footprint({}, gpus)
    assert plain.is_open
    assert not footprint({plain.opinion_key: Learned(100, 100)}, gpus).is_open


def test_one_is_no_news_once_the_gpus_are_measured() -> None:
    known = Learned(100, 100)
    assert not footprint({footprint({}).gpu_key(ALL_LAYERS): known}).is_open
    assert footprint({footprint({}).gpu_key(2): known}).is_open
    on_host = footprint({}, gpus=False)
    assert footprint({on_host.host_key(0): known}, gpus=False).is_open
