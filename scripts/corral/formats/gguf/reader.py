"""Read a GGUF header: metadata and the tensor table, never the tensors.

The caller lends a `read_at(offset, length)`; the reader asks it for windows of 1 MiB and walks
them, so it needs no file, no mmap and no more memory than what it keeps. It trusts nothing: every
count has a limit, every length is compared with the bytes that are left before anything is read or
allocated, and whatever is wrong becomes one GgufError that says what and where. Big arrays, which
are the vocabulary, are stepped over: stepping over 150,000 strings is the reader's only hot loop.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from math import prod
from struct import Struct, unpack_from
from types import MappingProxyType
from typing import NamedTuple

from corral.formats.gguf.tensor_types import TENSOR_TYPES
from corral.formats.gguf.values import Gguf, GgufError, Omitted, Tensor, Value, ValueType

ReadAt = Callable[[int, int], bytes]

WINDOW_BYTES = 1 << 20
# Three times the largest tokenizer in circulation; a header that claims more is damaged.
HEADER_BYTES_MAX = 128 << 20
KEYS_MAX = 65_536
TENSORS_MAX = 65_536
KEY_BYTES_MAX = 65_535  # the format's own limits: 2^16 - 1 for a key, 64 for a tensor's name
TENSOR_NAME_BYTES_MAX = 64
DIMENSIONS_MAX = 4
ELEMENTS_MAX = 2**63 - 1
STRING_BYTES_KEPT = 65_536
NUMBERS_KEPT = 1_024  # per-layer values are kept, scores of a vocabulary are not

DEFAULT_ALIGNMENT = 32

_UINT32 = Struct("<I")
_UINT64 = Struct("<Q")
_SCALARS = {
    ValueType.UINT8: Struct("<B"),
    ValueType.INT8: Struct("<b"),
    ValueType.UINT16: Struct("<H"),
    ValueType.INT16: Struct("<h"),
    ValueType.UINT32: _UINT32,
    ValueType.INT32: Struct("<i"),
    ValueType.FLOAT32: Struct("<f"),
    ValueType.BOOL: Struct("<?"),
    ValueType.UINT64: _UINT64,
    ValueType.INT64: Struct("<q"),
    ValueType.FLOAT64: Struct("<d"),
}


def read(read_at: ReadAt, size_bytes: int) -> Gguf:
    """The header of a file of `size_bytes`. Raises GgufError, and nothing else of its own."""
    cursor = _Cursor(read_at, size_bytes)
    version, tensor_count, key_count = _counts(cursor)
    metadata = _metadata(cursor, key_count)
    alignment = _alignment(metadata, cursor.here)
    entries = _tensor_table(cursor, tensor_count)
    data_offset = -(-cursor.here // alignment) * alignment
    tensors = _placed(entries, data_offset, size_bytes)
    return Gguf(version, MappingProxyType(metadata), tensors, data_offset, size_bytes)


class _Cursor:
    """Walks forward through the file over one window of its bytes."""

    __slots__ = ("_limit", "_position", "_read_at", "_size_bytes", "_start", "_window")

    def __init__(self, read_at: ReadAt, size_bytes: int) -> None:
        self._read_at = read_at
        self._size_bytes = size_bytes
        self._limit = min(size_bytes, HEADER_BYTES_MAX)
        self._window = b""
        self._start = 0  # of the window, in the file
        self._position = 0  # in the window; beyond its end after a long skip

    @property
    def here(self) -> int:
        return self._start + self._position

    def take(self, count: int, what: str) -> bytes:
        self._need(count, what)
        begin = self._position
        self._position += count
        return self._window[begin : self._position]

    def number(self, layout: Struct, what: str) -> int:
        self._need(layout.size, what)
        value: int = layout.unpack_from(self._window, self._position)[0]
        self._position += layout.size
        return value

    def text(self, bytes_max: int, what: str) -> str:
        length = self.number(_UINT64, what)
        if length > bytes_max:
            raise GgufError(f"{what} of {length} bytes is over the limit of {bytes_max}", self.here - 8)
        return self.take(length, what).decode("utf-8", "replace")

    def skip(self, count: int, what: str) -> None:
        self._check(count, what)
        self._position += count

    def skip_strings(self, count: int, what: str) -> None:
        """Step over strings by their lengths alone. The inner loop runs once per word of a vocabulary."""
        self._check(8 * count, what)
        length_at = _UINT64.unpack_from
        while count:
            self._need(8, what)
            window, position = self._window, self._position
            last = len(window) - 8
            for left in range(count - 1, -1, -1):  # noqa: B007  # counting in the range is twice as fast
                position += 8 + length_at(window, position)[0]
                if position > last:
                    break
            count, self._position = left, position
            self._check(0, what)

    def _check(self, count: int, what: str) -> None:
        missing = self.here + count - self._limit
        if missing <= 0:
            return
        if self._limit == self._size_bytes:
            raise GgufError(f"the file ends within {what}: {missing} bytes are missing", self._size_bytes)
        raise GgufError(f"{what} goes beyond the limit of {HEADER_BYTES_MAX} bytes for a header", self.here)

    def _need(self, count: int, what: str) -> None:
        """Have the next `count` bytes in the window."""
        if self._position + count <= len(self._window):
            return
        self._check(count, what)
        here = self.here
        self._window = self._read_at(here, min(max(count, WINDOW_BYTES), self._limit - here))
        self._start, self._position = here, 0
        if len(self._window) < count:
            raise GgufError(f"the file ends within {what}: it was cut while being read", here)


def _counts(cursor: _Cursor) -> tuple[int, int, int]:
    magic = cursor.take(4, "the first four bytes")
    if magic != b"GGUF":
        raise GgufError(f"not a GGUF file: it begins with {magic!r}", 0)
    version = cursor.number(_UINT32, "the version")
    if version & 0xFFFF == 0:
        raise GgufError("a big-endian file; only little-endian ones can be used here", 4)
    if version not in (2, 3):
        raise GgufError(f"GGUF version {version}; versions 2 and 3 can be read", 4)
    tensors = cursor.number(_UINT64, "the number of tensors")
    if tensors > TENSORS_MAX:
        raise GgufError(f"{tensors} tensors are over the limit of {TENSORS_MAX}", 8)
    keys = cursor.number(_UINT64, "the number of metadata keys")
    if keys > KEYS_MAX:
        raise GgufError(f"{keys} metadata keys are over the limit of {KEYS_MAX}", 16)
    return version, tensors, keys


def _metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for index in range(count):
        begin = cursor.here
        key = cursor.text(KEY_BYTES_MAX, f"the name of metadata key {index}")
        if not key or key in metadata:
            raise GgufError(f"metadata key {key!r} is {'given twice' if key else 'empty'}", begin)
        metadata[key] = _value(cursor, key)
    return metadata


def _value(cursor: _Cursor, key: str) -> Value:
    kind = _value_type(cursor, key)
    what = f"the value of {key!r}"
    if kind is ValueType.STRING:
        return _string(cursor, what)
    if kind is ValueType.ARRAY:
        return _array(cursor, key)
    return cursor.number(_SCALARS[kind], what)


def _value_type(cursor: _Cursor, key: str) -> ValueType:
    number = cursor.number(_UINT32, f"the type of {key!r}")
    try:
        return ValueType(number)
    except ValueError:
        raise GgufError(f"metadata key {key!r} has the unknown type {number}", cursor.here - 4) from None


def _string(cursor: _Cursor, what: str) -> Value:
    length = cursor.number(_UINT64, what)
    if length > STRING_BYTES_KEPT:
        cursor.skip(length, what)
        return Omitted(ValueType.STRING, length, is_array=False)
    return cursor.take(length, what).decode("utf-8", "replace")


def _array(cursor: _Cursor, key: str) -> Value:
    element = _value_type(cursor, key)
    what = f"the array {key!r}"
    if element is ValueType.ARRAY:
        raise GgufError(f"{what} holds arrays, which nothing reads", cursor.here - 4)
    count = cursor.number(_UINT64, what)
    if element is ValueType.STRING:
        cursor.skip_strings(count, what)
        return Omitted(element, count)
    layout = _SCALARS[element]
    if count > NUMBERS_KEPT:
        cursor.skip(count * layout.size, what)
        return Omitted(element, count)
    return unpack_from(f"<{count}{layout.format[1:]}", cursor.take(count * layout.size, what))


def _alignment(metadata: dict[str, Value], offset: int) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise GgufError(f"general.alignment is {alignment!r}, not a power of two", offset)
    return alignment


class _Entry(NamedTuple):
    """A line of the tensor table, before it is known where the data begin."""

    name: str
    dims: tuple[int, ...]
    type_number: int
    offset: int


def _tensor_table(cursor: _Cursor, count: int) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    for index in range(count):
        begin = cursor.here
        name = cursor.text(TENSOR_NAME_BYTES_MAX, f"the name of tensor {index}")
        if name in entries:
            raise GgufError(f"tensor {name!r} is given twice", begin)
        what = f"the entry of tensor {name!r}"
        dimensions = cursor.number(_UINT32, what)
        if dimensions > DIMENSIONS_MAX:
            raise GgufError(f"tensor {name!r} has {dimensions} dimensions, more than {DIMENSIONS_MAX}", begin)
        row = cursor.take(8 * dimensions + 12, what)
        *dims, type_number, offset = unpack_from(f"<{dimensions}QIQ", row)
        _check_shape(name, tuple(dims), type_number, begin)
        entries[name] = _Entry(name, tuple(dims), type_number, offset)
    return list(entries.values())


def _check_shape(name: str, dims: tuple[int, ...], type_number: int, begin: int) -> None:
    if prod(dims) > ELEMENTS_MAX:
        raise GgufError(f"tensor {name!r} has the impossible shape {list(dims)}", begin)
    kind = TENSOR_TYPES.get(type_number)
    row = dims[0] if dims else 1
    if kind and row % kind.block_elements:
        raise GgufError(
            f"tensor {name!r} has rows of {row} elements; {kind.name} comes in {kind.block_elements}s", begin
        )


def _placed(entries: list[_Entry], data_offset: int, size_bytes: int) -> tuple[Tensor, ...]:
    """The table with sizes, once it is sure that the file holds every tensor to its last byte."""
    data_bytes = max(0, size_bytes - data_offset)
    edges = sorted({entry.offset for entry in entries})
    tensors = tuple(_sized(entry, edges, data_bytes) for entry in entries)
    end = max((tensor.offset + tensor.size_bytes for tensor in tensors), default=0)
    if end > data_bytes:
        missing = data_offset + end - size_bytes
        raise GgufError(f"the file is cut short: {missing} bytes of its tensors are missing", size_bytes)
    return tensors


def _sized(entry: _Entry, edges: list[int], data_bytes: int) -> Tensor:
    kind = TENSOR_TYPES.get(entry.type_number)
    if kind:
        return Tensor(entry.name, entry.dims, kind.name, entry.offset, kind.size_bytes(entry.dims))
    # A type newer than the table: the tensor ends where the next begins, give or take the padding.
    following = bisect_right(edges, entry.offset)
    end = edges[following] if following < len(edges) else data_bytes
    size_bytes = max(0, end - entry.offset)
    return Tensor(entry.name, entry.dims, f"type {entry.type_number}", entry.offset, size_bytes)
