"""What a llama-server makes of its options for one model, in tokens and cells."""

from __future__ import annotations

import pytest

from corral.policy.memory.options import read_options
from corral.policy.memory.run import Run, plan_run
from corral.policy.memory.shape import read_shape
from tests.policy.memory import files
from tests.policy.memory.files import File, transformer


def run_of(words: str, file: File | None = None) -> Run:
    shape = read_shape((file or transformer(context=4096)).value())
    return plan_run(shape, read_options(words.split(), {}))


@pytest.mark.parametrize(
    ("words", "streams", "cells"),
    [
        ("", 1, 4096),
        ("-c 0", 1, 4096),
        ("-c 8192", 1, 8192),
        ("-c 1000", 1, 1024),
        ("-c 1", 1, 256),
        ("-c 8192 -np 1", 1, 8192),
        ("-c 8192 -np 2", 2, 4096),
        ("-c 5000 -np 3", 3, 1792),  # 5120 / 3, rounded up again
        ("-c 300 -np 2", 2, 256),
        ("-c 8192 -np 2 -kvu", 1, 8192),
        ("-c 100 -np 64", 64, 256),
    ],
)
def test_the_context_is_divided_among_the_slots_and_rounded_up(words: str, streams: int, cells: int) -> None:
    run = run_of(words)
    assert (run.streams, run.cells) == (streams, cells)


@pytest.mark.parametrize(
    ("words", "ubatch"),
    [
        ("", 512),
        ("-ub 128", 128),
        ("-b 256", 256),
        ("-b 256 -ub 1024", 256),
        ("-b 4096 -ub 2048", 2048),
        ("-c 300 -np 1", 300),
        ("-c 64", 64),
    ],
)
def test_a_batch_is_no_longer_than_it_may_be_and_than_the_context_is(words: str, ubatch: int) -> None:
    assert run_of(words).ubatch == ubatch


@pytest.mark.parametrize(
    ("words", "outputs"),
    [
        ("", 4),
        ("-np 1", 1),
        ("-np 8", 8),
        ("-np 8 -ub 4", 4),
        ("--embedding", 512),
        ("-np 2 -md draft.gguf", 8),
    ],
)
def test_a_next_token_is_computed_per_slot_and_an_embedding_from_all_tokens(words: str, outputs: int) -> None:
    assert run_of(words).outputs == outputs


def test_an_encoder_takes_a_batch_beyond_its_context_and_embeds_it_at_once() -> None:
    # Rounded up to 512, and not cut off at 300.
    assert run_of("--embedding -b 2048 -ub 1024 -c 300", files.encoder()).ubatch == 512
    assert run_of("--embedding -b 2048 -ub 1024 -c 300").ubatch == 300
    assert run_of("--embedding -b 2048 -ub 1024 -c 2048", files.encoder()).ubatch == 1024


@pytest.mark.parametrize(
    ("words", "window_cells"),
    [
        ("-c 8192 -np 1", 1024),  # 512 + 512 tokens being computed
        ("-c 8192 -np 4", 1024),
        ("-c 8192", 2560),  # four windows and one batch
        ("-c 8192 -np 2 -kvu -ub 256", 1280),
        ("-c 8192 -np 1 -ub 100", 768),
        ("-c 512 -np 1", 512),
        ("-c 8192 --swa-full", 8192),
    ],
)
def test_a_windowed_layer_has_cells_for_its_windows_and_the_batch(words: str, window_cells: int) -> None:
    assert run_of(words, files.gemma3()).window_cells == window_cells


def test_flash_attention_is_off_if_the_flag_or_the_architecture_says_so() -> None:
    assert run_of("").flash_attention
    assert not run_of("-fa off").flash_attention
    assert not run_of("", transformer("grok")).flash_attention


def test_a_file_that_does_not_say_what_it_was_trained_with_gets_the_smallest_context() -> None:
    assert run_of("", transformer().saying(context_length=None)).cells == 256
