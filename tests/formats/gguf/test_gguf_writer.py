"""The GGUF writer: what it writes is read back, and the same arguments are the same bytes."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from corral.formats import gguf
from corral.formats.gguf import NewTensor, Omitted, ValueType
from corral.formats.gguf.writer import f32
from tests.formats.gguf.crafting import SMALL, read_bytes


def test_what_is_written_is_read_back() -> None:
    found = read_bytes(SMALL)
    assert dict(found.metadata) == {
        "general.architecture": "llama",
        "general.name": "Ünïcode",
        "llama.block_count": 2,
        "llama.rope.freq_base": 0.5,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": Omitted(ValueType.STRING, 3),
        "tokenizer.ggml.merges": Omitted(ValueType.STRING, 0),
        "llama.attention.head_count_kv": (8, 0, -1),
        "llama.weights": (0.5, 0.25),
    }
    assert found.tensors == (
        ("token_embd.weight", (4, 3), "F16", 0, 24),
        ("blk.0.attn_q.weight", (32, 2), "Q8_0", 32, 68),
        ("blk.1.attn_q.weight", (5,), "F32", 128, 20),
    )
    assert (found.version, found.size_bytes, found.data_offset % 32) == (3, len(SMALL), 0)
    first = found.tensors[0]
    begin = found.data_offset + first.offset
    assert struct.unpack("<12e", SMALL[begin : begin + first.size_bytes]) == tuple(range(12))


def test_writing_twice_gives_the_same_bytes() -> None:
    arguments: tuple[Any, Any] = ({"a": 1, "b": ["x"]}, [NewTensor("t", (2,), "F32", f32([1.0, 2.0]))])
    assert gguf.write(*arguments) == gguf.write(*arguments)


def test_a_tensor_without_its_bytes_is_not_written() -> None:
    with pytest.raises(ValueError, match="tensor 't' needs 8 bytes of data, not 4"):
        gguf.write({}, [NewTensor("t", (2,), "F32", bytes(4))])


def test_an_array_of_mixed_types_is_not_written() -> None:
    with pytest.raises(TypeError, match="the array 'a' mixes types"):
        gguf.write({"a": [1, "x"]}, [])  # type: ignore[dict-item]
