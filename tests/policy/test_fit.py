"""Whoever is refused learns what would have fitted, and it would have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corral.policy.fit import Suggestions, what_would_fit, what_would_fit_on_host
from corral.policy.memory import HOST_ONLY, Layout, Prediction, predict, read_options
from corral.policy.memory.prediction import CONTEXT_BYTES
from tests.policy.memory import files
from tests.policy.memory.files import MIB, File, transformer

GIB = 1024 * MIB
# 8 layers, 32 MiB of cache per 1024 tokens: the context decides.
LONG = transformer(layers=8, width=1024, heads=8, kv_heads=8, head=128, feed_forward=2816, context=65536)


def predicted(words: str, file: File = LONG) -> Prediction:
    return predict([file.value()], read_options(words.split(), {}))


def needs(prediction: Prediction, layers: int = 9, multiplier: float = 1.1) -> int:
    return round(prediction.total_device_bytes(Layout(layers, (1.0,))) * multiplier)


def shorter(prediction: Prediction, tokens: int) -> Prediction:
    return prediction.with_options(replace(prediction.options, context_tokens=tokens))


@pytest.mark.parametrize("words", ["-c 65536", "-c 65536 -np 4", "-c 65536 -np 3"])
@pytest.mark.parametrize("available", [700 * MIB, GIB, 2 * GIB - 1])
def test_the_longest_context_fits_and_one_step_more_does_not(words: str, available: int) -> None:
    prediction = predicted(words)
    tokens = what_would_fit(prediction, [available]).context_tokens
    assert tokens is not None
    # Slots that don't share have a part each, rounded up by itself: in between nothing is gained.
    step = 256 * prediction.run.streams
    assert tokens % step == 0
    assert needs(shorter(prediction, tokens)) <= available < needs(shorter(prediction, tokens + step))


@pytest.mark.parametrize("available", [600 * MIB, GIB, 2 * GIB])
def test_the_most_layers_fit_and_one_more_does_not(available: int) -> None:
    prediction = predicted("-c 65536")
    layers = what_would_fit(prediction, [available]).gpu_layers
    assert layers is not None
    assert needs(prediction, layers) <= available < needs(prediction, layers + 1)


def test_what_was_asked_for_is_never_suggested() -> None:
    suggestions = what_would_fit(predicted("-c 65536"), [100 * GIB])
    assert (suggestions.context_tokens, suggestions.gpu_layers) == (65536 - 256, 8)


def test_a_smaller_cache_is_enough_if_it_is() -> None:
    plain, small = predicted("-c 65536"), predicted("-c 65536 -ctk q8_0 -ctv q8_0")
    assert what_would_fit(plain, [needs(small)]).small_cache
    assert not what_would_fit(plain, [needs(small) - 1]).small_cache


def test_a_smaller_cache_allows_a_longer_context() -> None:
    available = GIB
    suggestions = what_would_fit(predicted("-c 65536"), [available])
    tokens = suggestions.small_cache_context_tokens
    assert tokens is not None
    assert tokens > (suggestions.context_tokens or 0)
    small = predicted("-c 65536 -ctk q8_0 -ctv q8_0")
    assert needs(shorter(small, tokens)) <= available < needs(shorter(small, tokens + 256))


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("-c 65536 -ctk q8_0 -ctv q8_0", LONG),
        ("-c 65536 -ctk q4_0 -ctv q4_0", LONG),
        ("-c 65536 -fa off", LONG),
        ("-c 65536", transformer(attention__key_length=80, attention__value_length=80)),
        ("-c 65536", files.mamba2()),
    ],
    ids=["already small", "smaller still", "no flash attention", "heads not in blocks", "no cache"],
)
def test_a_smaller_cache_is_not_suggested_where_it_is_none(words: str, file: File) -> None:
    suggestions = what_would_fit(predicted(words, file), [100 * GIB])
    assert not suggestions.small_cache
    assert suggestions.small_cache_context_tokens is None


def test_too_little_for_anything_is_said_to_be() -> None:
    suggestions = what_would_fit(predicted("-c 65536"), [CONTEXT_BYTES])
    assert suggestions[2:] == (None, False, None, None)
    assert suggestions.text().endswith("No context and no number of layers would make it fit.")


def test_several_gpus_are_filled_by_what_is_free_on_them() -> None:
    prediction = predicted("-c 65536")
    free = [GIB, 2 * GIB]
    layers = what_would_fit(prediction, free).gpu_layers
    assert layers is not None
    sizes = prediction.device_bytes(Layout(layers, (1.0, 2.0)))
    assert all(round(device.total * 1.1) <= room for device, room in zip(sizes, free, strict=True))


def test_on_a_host_without_a_gpu_the_context_gives() -> None:
    prediction = predicted("-c 65536")
    suggestions = what_would_fit_on_host(prediction, GIB)
    tokens = suggestions.context_tokens
    assert tokens is not None
    assert suggestions.gpu_layers is None
    fits, does_not = (
        shorter(prediction, size).total_host_bytes(HOST_ONLY) for size in (tokens, tokens + 256)
    )
    assert round(fits * 1.1) <= GIB < round(does_not * 1.1)


def test_pages_of_the_file_need_not_count() -> None:
    counted = what_would_fit_on_host(predicted("-c 65536"), GIB)
    free = what_would_fit_on_host(predicted("-c 65536"), GIB, count_mapped=False)
    assert free.needed_bytes < counted.needed_bytes
    assert (free.context_tokens or 0) > (counted.context_tokens or 0)


def test_the_margin_counts() -> None:
    prediction = predicted("-c 65536")
    assert what_would_fit(prediction, [GIB]).needed_bytes == needs(prediction)
    assert what_would_fit(prediction, [GIB], 1.0).needed_bytes == needs(prediction, multiplier=1.0)
    wide, narrow = what_would_fit(prediction, [GIB], 1.5), what_would_fit(prediction, [GIB], 1.0)
    assert (wide.context_tokens or 0) < (narrow.context_tokens or 0)


EVERYTHING = Suggestions(9 * GIB, 6 * GIB, 8192, False, 16384, 24)
NEEDS = "It needs 9.0 GiB and 6.0 GiB are free."
SHORTER = "It would fit with a context of 8192 tokens (--ctx-size 8192)"


@pytest.mark.parametrize(
    ("suggestions", "said"),
    [
        (
            EVERYTHING,
            f"{NEEDS} {SHORTER}, or with a context of 16384 tokens and a cache of type q8_0,"
            " or with 24 layers on the GPU (--gpu-layers 24).",
        ),
        (
            EVERYTHING._replace(small_cache=True, gpu_layers=None),
            f"{NEEDS} It would fit with a smaller cache"
            " (--cache-type-k q8_0 --cache-type-v q8_0), or with a context of 8192 tokens (--ctx-size 8192).",
        ),
        (
            EVERYTHING._replace(context_tokens=None, small_cache_context_tokens=None),
            f"{NEEDS} It would fit with 24 layers on the GPU (--gpu-layers 24).",
        ),
        (
            EVERYTHING._replace(small_cache_context_tokens=8192, gpu_layers=None),
            f"{NEEDS} {SHORTER}.",
        ),
        (
            Suggestions(700 * MIB, 20, None, False, None, None),
            "It needs 700.0 MiB and 20 bytes are free. No context and no number of layers would make it fit.",
        ),
    ],
)
def test_the_text_says_each_way_and_how_to_ask_for_it(suggestions: Suggestions, said: str) -> None:
    assert suggestions.text() == said
