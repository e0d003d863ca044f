"""Keys, values and states, to the byte."""

from __future__ import annotations

from typing import Any

import pytest

from corral.policy.memory.cache import cache_bytes, half_precision_bytes, row_bytes, state_bytes
from corral.policy.memory.options import CACHE_TYPES, read_options
from corral.policy.memory.run import plan_run
from corral.policy.memory.shape import read_shape
from tests.policy.memory import files
from tests.policy.memory.files import File, transformer


def cache_of(words: str, file: File) -> tuple[int, ...]:
    shape, options = read_shape(file.value()), read_options(words.split(), {})
    return cache_bytes(shape, options, plan_run(shape, options))


def state_of(words: str, file: File) -> tuple[int, ...]:
    shape, options = read_shape(file.value()), read_options(words.split(), {})
    return state_bytes(shape, options, plan_run(shape, options))


@pytest.mark.parametrize(
    ("cache_type", "size_bytes"),
    [
        ("f32", 4 * 128),
        ("f16", 2 * 128),
        ("bf16", 2 * 128),
        ("q8_0", 136),
        ("q5_1", 96),
        ("q5_0", 88),
        ("q4_1", 80),
        ("q4_0", 72),
        ("iq4_nl", 72),
    ],
)
def test_a_row_of_128_elements_takes_what_its_type_needs(cache_type: str, size_bytes: int) -> None:
    assert row_bytes(cache_type, 128) == size_bytes


def test_every_type_that_can_be_asked_for_has_a_size() -> None:
    assert all(row_bytes(cache_type, 32) > 0 for cache_type in CACHE_TYPES)


def test_a_cache_is_cells_times_keys_and_values() -> None:
    # 2 key-value heads of 32, two bytes each, keys and values.
    assert cache_of("-c 4096", transformer()) == (4096 * 2 * 64 * 2,) * 4


def test_keys_and_values_may_have_types_of_their_own() -> None:
    assert cache_of("-c 1024 -ctk q8_0 -ctv q4_0", transformer()) == (1024 * (68 + 36),) * 4


def test_slots_that_do_not_share_have_a_rounded_part_each() -> None:
    assert cache_of("-c 5000 -np 3", transformer(layers=1)) == (3 * 1792 * 256,)


def test_windowed_layers_keep_less() -> None:
    sizes = cache_of("-c 8192 -np 2", files.gemma3())
    window, everything = 2 * 1024 * 256, 2 * 4096 * 256
    assert sizes == (window, window, window, window, window, everything, window)
    assert set(cache_of("-c 8192 -np 2 --swa-full", files.gemma3())) == {everything}


def test_latent_attention_has_no_values() -> None:
    assert cache_of("-c 4096", files.latent_attention()) == (4096 * 160 * 2,) * 3
    assert cache_of("-c 4096 -ctk q8_0", files.latent_attention()) == (4096 * 170,) * 3


def test_sparse_attention_adds_its_index() -> None:
    file = files.latent_attention().saying(attention__indexer__key_length=64)
    assert cache_of("-c 4096", file) == (4096 * (160 + 64) * 2,) * 3


def test_without_flash_attention_every_layer_gets_the_widest_ones_values() -> None:
    file = transformer("deci", attention__head_count_kv=[4, 0, 2, 1])
    assert cache_of("-c 256", file) == (256 * 512, 0, 256 * 256, 256 * 128)
    # Keys of its own width, values of 4 heads.
    assert cache_of("-c 256 -fa off", file) == (256 * 512, 0, 256 * (128 + 256), 256 * (64 + 256))


def test_layers_for_multi_token_prediction_have_a_cache_only_if_they_are_used() -> None:
    file = transformer("glm4moe", layers=3, nextn_predict_layers=1)
    assert [size > 0 for size in cache_of("", file)] == [True, True, False]
    assert [size > 0 for size in cache_of("--spec-type draft-mtp", file)] == [True, True, True]


def test_an_encoder_and_a_recurrent_model_have_no_cache() -> None:
    assert sum(cache_of("--embedding", files.encoder())) == 0
    assert sum(cache_of("-c 1000000", files.mamba2())) == 0


def test_a_state_is_in_full_precision_and_one_for_every_slot() -> None:
    elements = 3 * (1024 + 2 * 2 * 64) + 64 * 1024
    assert state_of("-np 1", files.mamba2()) == (4 * elements,) * 4
    assert state_of("", files.mamba2()) == (4 * 4 * elements,) * 4
    assert state_of("-np 8 -c 100000 -ctk q8_0", files.mamba2()) == (8 * 4 * elements,) * 4


def test_a_hybrid_has_states_in_some_layers_and_a_cache_in_the_others() -> None:
    assert [size > 0 for size in cache_of("", files.hybrid())] == [False, False, True, False]
    assert [size > 0 for size in state_of("", files.hybrid())] == [True, True, False, True]


def test_drafting_keeps_copies_of_a_state_to_go_back_to_where_the_family_can() -> None:
    numbers: dict[str, Any] = {"ssm__conv_kernel": 4, "ssm__inner_size": 256, "ssm__state_size": 16}
    words = "-np 1 --spec-type draft-mtp --draft-max 3"
    goes_back, does_not = transformer("qwen35", **numbers), transformer("qwen3next", **numbers)
    assert state_of(words, goes_back)[0] == 4 * state_of("-np 1", goes_back)[0]
    assert state_of(words, does_not) == state_of("-np 1", does_not)


def test_a_quantised_cache_is_unpacked_for_the_gpu_one_layer_at_a_time() -> None:
    shape = read_shape(transformer().value())

    def unpacked(words: str) -> int:
        options = read_options(words.split(), {})
        return half_precision_bytes(shape, options, plan_run(shape, options))

    assert unpacked("-c 4096") == 0
    assert unpacked("-c 4096 -ctk q8_0") == 4096 * 64 * 2
    assert unpacked("-c 4096 -ctk q8_0 -ctv q8_0") == 2 * 4096 * 64 * 2
