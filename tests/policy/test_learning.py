"""Measurements beat predictions, with a smaller margin, and only for what they were taken from."""

from __future__ import annotations

import pytest

from corral.policy.learning import (
    Estimate,
    Learned,
    Source,
    error_ratio,
    estimate,
    learned_key,
)
from corral.policy.memory import read_options


def test_what_was_never_measured_gets_the_wide_margin() -> None:
    assert estimate(1000, None) == Estimate(1000, 1100, 100, Source.PREDICTED)
    assert estimate(1000, None, multiplier=1.5) == Estimate(1000, 1500, 500, Source.PREDICTED)


def test_what_was_measured_gets_the_small_margin_whatever_was_predicted() -> None:
    assert estimate(1000, Learned(2000, 1000)) == Estimate(1000, 2040, 40, Source.LEARNED)
    assert estimate(1000, Learned(500, 1000), multiplier=3.0) == Estimate(1000, 510, 10, Source.LEARNED)


def test_what_is_predicted_beyond_the_measured_layout_is_added_and_what_is_less_is_not_taken_away() -> None:
    # On two GPUs there are two contexts; the measurement may be of one.
    assert estimate(1300, Learned(2000, 1000)) == Estimate(1300, 2346, 46, Source.LEARNED)
    assert estimate(900, Learned(2000, 1000)) == Estimate(900, 2040, 40, Source.LEARNED)


def test_a_multiplier_below_one_is_no_margin_but_never_less_than_predicted() -> None:
    assert estimate(1000, None, multiplier=0.5).bytes == 1000


def test_the_factor_shares_an_estimate_among_gpus() -> None:
    assert estimate(1000, Learned(2000, 1000)).factor == pytest.approx(2.04)
    assert estimate(0, None).factor == 1.0


@pytest.mark.parametrize(
    ("measured", "predicted", "ratio"), [(1000, 1100, 0.1), (1000, 900, -0.1), (1000, 1000, 0.0), (0, 5, 0.0)]
)
def test_the_error_ratio_says_how_far_off_a_prediction_was(
    measured: int, predicted: int, ratio: float
) -> None:
    assert error_ratio(Learned(measured, predicted)) == pytest.approx(ratio)


def key(words: str, fingerprint: str = "f", gpu_layers: int = 33) -> tuple[str, str]:
    return learned_key(fingerprint, read_options(words.split(), {}), gpu_layers)


def test_a_key_names_the_file_and_the_flags_that_change_memory() -> None:
    assert key("-c 4096 -ctk q8_0 --temp 0.5") == (
        "f",
        "gpu_layers=33 context_tokens=4096 cache_type_k='q8_0'",
    )
    assert key("") == ("f", "gpu_layers=33")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-c 4096", "--ctx_size 4096 --temp 1"),
        ("", "-fa auto"),
        ("-ngl 5", "-ngl 9"),
        ("--port 1", "--port 2"),
    ],
)
def test_flags_that_come_to_the_same_share_a_measurement(one: str, other: str) -> None:
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-c 4096", "-c 8192"),
        ("-np 1", "-np 2"),
        ("", "-ctv q8_0"),
        ("", "--cpu-moe"),
        ("-md a", "-md b"),
        ("", "--no-mmproj-offload"),
    ],
)
def test_flags_that_change_the_memory_do_not(one: str, other: str) -> None:
    assert key(one) != key(other)


def test_another_file_or_another_number_of_layers_is_another_measurement() -> None:
    assert len({key(""), key("", fingerprint="g"), key("", gpu_layers=20)}) == 3


def test_a_set_is_written_the_same_way_every_time() -> None:
    assert key("--spec-type ngram-mod,draft-mtp") == key("--spec-type draft-mtp,ngram-mod")
    assert key("--spec-type ngram-mod,draft-mtp")[1].endswith("drafting=draft-mtp,ngram-mod")
