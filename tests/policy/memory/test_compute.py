"""The compute buffer: the widest moment of a batch, for each kind of layer.

The numbers are sums by hand; that they are the right sums is shown against the real llama-server.
"""

from __future__ import annotations

import pytest

from corral.policy.memory.compute import Compute, compute_bytes, output_buffer_bytes
from corral.policy.memory.options import read_options
from corral.policy.memory.run import plan_run
from corral.policy.memory.shape import read_shape
from tests.policy.memory import files
from tests.policy.memory.files import MIB, File, transformer

TOKEN = 4 * 512  # bytes of one element for every token of a batch


def compute_of(words: str, file: File) -> Compute:
    shape, options = read_shape(file.value()), read_options(words.split(), {})
    return compute_bytes(shape, options, plan_run(shape, options))


def mask(cells: int, ubatch: int = 512, bytes_each: int = 2) -> int:
    return cells * ubatch * bytes_each


PLAIN = TOKEN * (3 * 768 + 3 * 256 + 256)


def test_a_plain_transformer_is_widest_in_its_feed_forward_layer() -> None:
    compute = compute_of("-c 4096", transformer())
    assert compute.host_layers_bytes == compute.device_layers_bytes == mask(4096) + PLAIN


def test_the_mask_grows_with_the_context_and_the_rest_does_not() -> None:
    long, short = compute_of("-c 8192", transformer()), compute_of("-c 4096", transformer())
    assert long.host_layers_bytes - short.host_layers_bytes == mask(4096)


def test_slots_that_do_not_share_see_their_own_part_only() -> None:
    assert compute_of("-c 4096 -np 4", transformer()).host_layers_bytes == mask(1024) + PLAIN


def test_everything_grows_with_the_batch() -> None:
    small, large = (compute_of(f"-c 4096 -ub {size}", transformer()) for size in (256, 512))
    assert large.host_layers_bytes == 2 * small.host_layers_bytes


def test_windows_have_a_mask_of_their_own() -> None:
    masks = mask(8192) + mask(2560)
    assert compute_of("-c 8192", files.gemma3()).host_layers_bytes == masks + PLAIN


def test_experts_are_as_wide_as_those_that_work_at_once() -> None:
    widest = TOKEN * (4 * 3 * 256 + 3 * 256 + 256)
    assert compute_of("-c 4096", files.mixture()).host_layers_bytes == mask(4096) + widest


def test_latent_attention_is_widest_where_its_heads_are_unfolded() -> None:
    unfolded = 16 * (160 + 128 + 96 + 64) + 4 * 512
    compute = compute_of("-c 4096", files.latent_attention())
    assert compute.host_layers_bytes == mask(4096) + TOKEN * unfolded


def test_a_recurrent_layer_needs_room_for_its_scan_and_its_states() -> None:
    grouped, states = 2 * 64, 3 * (1024 + 2 * 2 * 64) + 64 * 1024
    scan = 6 * 1024 + 6 * grouped + 16 + 512
    assert compute_of("-np 3", files.mamba2()).host_layers_bytes == TOKEN * scan + 4 * states * 3


def test_a_recurrent_model_has_no_mask() -> None:
    assert compute_of("-c 512", files.mamba2()) == compute_of("-c 65536", files.mamba2())


def test_a_large_vocabulary_counts_where_every_token_is_an_output() -> None:
    file = transformer(words=100_000)
    rows = 4 * 512 * 100_000 + 2 * TOKEN * 256
    assert compute_of("-c 4096", file).host_layers_bytes == mask(4096) + PLAIN
    assert compute_of("-c 4096 --embedding", file).host_layers_bytes == mask(4096) + rows


def test_an_encoder_has_no_vocabulary_and_a_mask_of_its_own_tokens() -> None:
    compute = compute_of("--embedding", files.encoder())
    assert compute.host_layers_bytes == mask(512) + TOKEN * (512 + 2 * 128 + 128)
    assert compute.device_output_bytes == 0


def test_without_flash_attention_all_heads_scores_exist_at_once() -> None:
    scores = 4 * 8 * 4096 * 512 + TOKEN * (4 * 256 + 2 * 256)
    assert compute_of("-c 4096 -fa off", transformer()).host_layers_bytes == mask(4096, bytes_each=4) + scores


def test_a_gpu_unpacks_a_quantised_cache_and_the_host_does_not() -> None:
    file = transformer(words=64, feed_forward=64)
    plain = compute_of("-c 65536", file)
    quantised = compute_of("-c 65536 -ctk q8_0 -ctv q8_0", file)
    assert quantised.host_layers_bytes == plain.host_layers_bytes
    unpacked = TOKEN * (3 * 256 + 256) + 2 * 65536 * 64 * 2
    assert quantised.device_layers_bytes == mask(65536) + unpacked


def test_a_host_that_computes_nothing_still_prepares_the_inputs() -> None:
    compute = compute_of("-c 4096", transformer())
    assert compute.host_inputs_bytes == mask(4096) + 2 * TOKEN * 256
    assert compute.inputs_bytes == mask(4096) + TOKEN * 256


@pytest.mark.parametrize(
    ("words", "rows"), [("-np 1", 1), ("", 4), ("-np 16 -c 65536", 16), ("--embedding -np 1", 512)]
)
def test_the_host_keeps_a_row_of_the_vocabulary_for_every_output(words: str, rows: int) -> None:
    shape, options = read_shape(transformer().value()), read_options(words.split(), {})
    elements = files.WORDS + (256 if options.embedding else 0)
    assert output_buffer_bytes(shape, options, plan_run(shape, options)) == 4 * rows * elements


def test_an_ordinary_model_of_eight_billion_needs_what_it_is_known_to_need() -> None:
    file = transformer(layers=2, width=4096, heads=32, kv_heads=8, head=128, feed_forward=14336)
    assert compute_of("-c 8192 -np 4", file).host_layers_bytes / MIB == 118.0
