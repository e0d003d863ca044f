"""The table of tensor types, held against the sizes that quantisations are known by."""

from __future__ import annotations

import pytest

from corral.formats.gguf.tensor_types import NUMBER_OF, TENSOR_TYPES


@pytest.mark.parametrize(
    ("name", "bits_per_weight"),
    [
        ("F32", 32),
        ("BF16", 16),
        ("Q8_0", 8.5),
        ("Q6_K", 6.5625),
        ("Q5_K", 5.5),
        ("Q4_K", 4.5),
        ("Q3_K", 3.4375),
        ("Q2_K", 2.625),
        ("IQ4_XS", 4.25),
        ("IQ2_XXS", 2.0625),
        ("IQ1_M", 1.75),
        ("MXFP4", 4.25),
        ("TQ1_0", 1.6875),
    ],
)
def test_quantised_types_take_their_published_bits_per_weight(name: str, bits_per_weight: float) -> None:
    assert TENSOR_TYPES[NUMBER_OF[name]].size_bytes((256, 4)) == 256 * 4 * bits_per_weight / 8
