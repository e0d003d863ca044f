"""Flags: which fields they set, how a value is understood, and which the gateway keeps to itself."""

from __future__ import annotations

from typing import Any

import pytest

from corral.settings.flags import managed_flag, set_by_flags


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        (["-c", "8192"], {"n_ctx": 8192}),
        (["--ctx-size", "0"], {"n_ctx": 0}),
        (["--ctx_size", "4096"], {"n_ctx": 4096}),
        (["-ngl", "20"], {"n_gpu_layers": 20}),
        (["--gpu-layers", "0"], {"n_gpu_layers": 0}),
        (["--n-gpu-layers", "all"], {"n_gpu_layers": 9999}),
        (["-ngl", "auto"], {"n_gpu_layers": 9999}),
        (["-ngl", "-1"], {"n_gpu_layers": 9999}),
        (["-ctk", "q8_0", "--cache-type-v", "q4_0"], {"type_k": "q8_0", "type_v": "q4_0"}),
        (["-np", "2"], {"parallel": 2}),
        (["--embedding"], {"embedding": True}),
        (["--embeddings", "-c", "512"], {"embedding": True, "n_ctx": 512}),
        (["-c", "1", "-c", "2"], {"n_ctx": 2}),
        ([], {}),
    ],
    ids=" ".join,
)
def test_flags_set_fields(flags: list[str], values: dict[str, Any]) -> None:
    assert set_by_flags(flags) == (frozenset(values), values)


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["-c", "-5"], "n_ctx"),
        (["-c", "lots"], "n_ctx"),
        (["-c"], "n_ctx"),
        (["-c", "8192", "--ctx-size", "lots"], "n_ctx"),
        (["-ctk", "zzz"], "type_k"),
        (["-np", "-1"], "parallel"),
        (["-t", "4"], "cpu_threads"),
        (["-fa", "on"], "flash_attention"),
    ],
    ids=" ".join,
)
def test_a_field_is_known_to_be_set_even_where_its_value_is_not_understood(
    flags: list[str], field: str
) -> None:
    assert set_by_flags(flags) == (frozenset({field}), {})


def test_a_value_is_not_taken_for_a_flag() -> None:
    assert set_by_flags(["-c", "-np", "4"]) == (frozenset({"n_ctx"}), {})


def test_flags_that_are_not_ours_to_know_pass() -> None:
    flags = ["--temp", "0.7", "--no-warmup", "--mlock", "--jinja"]
    assert set_by_flags(flags) == (frozenset(), {})
    assert managed_flag(flags) is None


@pytest.mark.parametrize(
    "flag",
    ["--host", "--port", "--model", "-m", "--alias", "-a", "--api-key", "--api_key_file", "--ssl-key-file"],
)
def test_a_managed_flag_is_found_however_it_is_written(flag: str) -> None:
    assert managed_flag(["--jinja", flag, "x"]) == flag
    assert managed_flag([f"{flag}=x"]) == flag
