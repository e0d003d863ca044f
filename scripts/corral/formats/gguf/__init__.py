"""GGUF: the file format of the models that llama.cpp runs.

A file is a header, metadata (key and value), a table of tensors, and the tensors' bytes. `reader`
takes the first three from a read-at callable and never the last, so a 40 GB model costs a few
milliseconds; `writer` makes whole small files; `values` is what both speak of, and `tensor_types`
knows how many bytes a quantised row takes. Versions 2 and 3, little endian, as every file in
circulation is.
"""

from __future__ import annotations

from corral.formats.gguf.reader import ReadAt, read
from corral.formats.gguf.values import Gguf, GgufError, Kind, Omitted, Pooling, Tensor, ValueType
from corral.formats.gguf.writer import NewTensor, write

__all__ = [
    "Gguf",
    "GgufError",
    "Kind",
    "NewTensor",
    "Omitted",
    "Pooling",
    "ReadAt",
    "Tensor",
    "ValueType",
    "read",
    "write",
]
