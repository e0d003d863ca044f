"""GGUF bytes put together by hand: what a file may hold that the writer would never write."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from corral.formats import gguf
from corral.formats.gguf import Gguf, NewTensor
from corral.formats.gguf.writer import f16, f32


def read_bytes(data: bytes, size_bytes: int | None = None) -> Gguf:
    return gguf.read(
        lambda offset, length: data[offset : offset + length], len(data) if size_bytes is None else size_bytes
    )


def text(value: str | bytes) -> bytes:
    encoded = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def entry(name: str, dims: Sequence[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file(
    *parts: bytes,
    keys: int = 0,
    tensors: int = 0,
    version: int = 3,
    magic: bytes = b"GGUF",
    data: bytes | None = None,
) -> bytes:
    head = magic + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)
    return head if data is None else head + bytes(-len(head) % 32) + data


SMALL = gguf.write(
    {
        "general.architecture": "llama",
        "general.name": "Ünïcode",
        "llama.block_count": 2,
        "llama.rope.freq_base": 0.5,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": ["a", "", "ccc"],
        "tokenizer.ggml.merges": [],
        "llama.attention.head_count_kv": [8, 0, -1],
        "llama.weights": [0.5, 0.25],
    },
    [
        NewTensor("token_embd.weight", (4, 3), "F16", f16(range(12))),
        NewTensor("blk.0.attn_q.weight", (32, 2), "Q8_0", bytes(68)),
        NewTensor("blk.1.attn_q.weight", (5,), "F32", f32([1.0] * 5)),
    ],
)
