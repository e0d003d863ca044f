"""Write a whole small GGUF file: version 3, little endian, the same bytes for the same values.

Made for models that are computed, not converted: the demo models and the tests' fixtures. The type
of a metadata value follows from the Python value (bool, int, float, str, or a list of one of the
last three), and the order of the file is the order of the arguments, so nothing but the arguments
decides a byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from corral.formats.gguf.tensor_types import NUMBER_OF, TENSOR_TYPES
from corral.formats.gguf.values import ValueType

VERSION = 3
ALIGNMENT = 32

NewValue = bool | int | float | str | Sequence[int] | Sequence[float] | Sequence[str]


class NewTensor(NamedTuple):
    name: str
    dims: tuple[int, ...]  # innermost first
    type: str  # ggml's name: F16, F32 …
    data: bytes = b""

    @property
    def size_bytes(self) -> int:
        return TENSOR_TYPES[NUMBER_OF[self.type]].size_bytes(self.dims)


def write(metadata: Mapping[str, NewValue], tensors: Sequence[NewTensor]) -> bytes:
    for tensor in tensors:
        if len(tensor.data) != tensor.size_bytes:
            found, wanted = len(tensor.data), tensor.size_bytes
            raise ValueError(f"tensor {tensor.name!r} needs {wanted} bytes of data, not {found}")
    return head(metadata, tensors) + b"".join(_padded(tensor.data) for tensor in tensors)


def head(metadata: Mapping[str, NewValue], tensors: Sequence[NewTensor]) -> bytes:
    """All that stands before the tensors' data, which they need not have with them."""
    table, offset = bytearray(), 0
    for tensor in tensors:
        table += _string(tensor.name)
        table += struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
        table += struct.pack("<IQ", NUMBER_OF[tensor.type], offset)
        offset += tensor.size_bytes + -tensor.size_bytes % ALIGNMENT
    counts = struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
    values = b"".join(_string(key) + _value(key, value) for key, value in metadata.items())
    return _padded(b"GGUF" + counts + values + table)


def f16(numbers: Iterable[float]) -> bytes:
    """Half-precision tensor data."""
    values = tuple(numbers)
    return struct.pack(f"<{len(values)}e", *values)


def f32(numbers: Iterable[float]) -> bytes:
    """Single-precision tensor data."""
    values = tuple(numbers)
    return struct.pack(f"<{len(values)}f", *values)


def _padded(data: bytes | bytearray) -> bytes:
    return bytes(data) + bytes(-len(data) % ALIGNMENT)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(key: str, value: NewValue) -> bytes:
    if isinstance(value, bool):  # before int, of which bool is a kind
        return struct.pack("<I?", ValueType.BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", ValueType.UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", ValueType.FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", ValueType.STRING) + _string(value)
    return struct.pack("<I", ValueType.ARRAY) + _array(key, value)


def _array(key: str, items: Sequence[int] | Sequence[float] | Sequence[str]) -> bytes:
    # An empty array still has an element type: a tokenizer without merges says "no strings".
    kinds = {type(item) for item in items} or {str}
    if kinds == {str}:
        body = b"".join(_string(str(item)) for item in items)
        return struct.pack("<IQ", ValueType.STRING, len(items)) + body
    if kinds == {int}:
        return struct.pack(f"<IQ{len(items)}i", ValueType.INT32, len(items), *items)
    if kinds == {float}:
        return struct.pack(f"<IQ{len(items)}f", ValueType.FLOAT32, len(items), *items)
    raise TypeError(f"the array {key!r} mixes types, or holds one that can't be written")
