"""What a GGUF file says: its metadata, its tensor table, and what follows from them.

These are values: the reader fills them, the model store asks what kind of file it has found, and
the memory estimate adds up tensors by block. Metadata comes from strangers, so every helper here
looks at the type of a value before it trusts it, and answers None where the file says nothing
usable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import NamedTuple


class GgufError(ValueError):
    """The bytes are not a GGUF file that can be used: says what is wrong, and at which byte."""

    def __init__(self, problem: str, offset: int) -> None:
        super().__init__(f"{problem} (at byte {offset})")
        self.offset = offset


class ValueType(IntEnum):
    """The types of metadata values, by their numbers in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


class Omitted(NamedTuple):
    """Stands for a value too big to keep, a vocabulary say: only its type and its length.

    The type is that of an array's elements, and the length their number; STRING with `is_array`
    false is one long string, its length in bytes.
    """

    type: ValueType
    length: int
    is_array: bool = True


Number = int | float
Value = Number | str | tuple[Number, ...] | Omitted


class Kind(Enum):
    """What a file is for. Only a MODEL can be served by itself."""

    MODEL = auto()
    PROJECTOR = auto()  # the image or sound half of a multimodal model: "mmproj"
    ADAPTER = auto()  # a LoRA or a control vector, laid over a model
    CALIBRATION = auto()  # an importance matrix, used when quantising
    VOCABULARY = auto()  # a tokeniser without weights


class Pooling(IntEnum):
    """How token vectors become one vector, by their numbers in the file."""

    NONE = 0
    MEAN = 1
    CLS = 2
    LAST = 3
    RANK = 4  # one score instead of a vector: a reranker


# Encoders: they make vectors and can't continue a text, whatever their pooling type says.
EMBEDDING_ARCHITECTURES = frozenset(
    {
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llama-embed",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "t5encoder",
    }
)


class Tensor(NamedTuple):
    name: str
    dims: tuple[int, ...]  # innermost first, as in the file
    type: str  # ggml's name, or "type N" for one newer than the table
    offset: int  # from the start of the tensor data
    size_bytes: int

    @property
    def block(self) -> int | None:
        """The layer it belongs to (`blk.7.attn_q.weight` → 7); None for embeddings, output, norms."""
        prefix, _, rest = self.name.partition(".")
        number = rest.partition(".")[0]
        return int(number) if prefix == "blk" and number.isascii() and number.isdigit() else None


@dataclass(frozen=True, slots=True)
class Gguf:
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    data_offset: int
    size_bytes: int

    @property
    def architecture(self) -> str | None:
        return self._text("general.architecture")

    @property
    def name(self) -> str | None:
        return self._text("general.name")

    def hyperparameter(self, key: str) -> Value | None:
        """The architecture's own value: `block_count` of a llama model is `llama.block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def count(self, key: str) -> int | None:
        """A hyperparameter that is one whole number; None if it is absent or anything else."""
        value = self.hyperparameter(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def context_length(self) -> int | None:
        return self.count("context_length")

    @property
    def pooling_type(self) -> Pooling | None:
        number = self.count("pooling_type")
        # Minus one stands for "not specified", which an unsigned field turns into 4294967295.
        return next((pooling for pooling in Pooling if pooling == number), None)

    @property
    def is_embedding(self) -> bool:
        pools = self.pooling_type not in (None, Pooling.NONE)
        return pools or self.architecture in EMBEDDING_ARCHITECTURES

    @property
    def split_index(self) -> int:
        """Which shard of a split model this is, from 0."""
        return self._whole_number("split.no", 0)

    @property
    def split_count(self) -> int:
        """Over how many files the model is spread."""
        return max(1, self._whole_number("split.count", 1))

    @property
    def kind(self) -> Kind:
        stated = self._text("general.type")
        if stated == "mmproj" or self.architecture == "clip":
            return Kind.PROJECTOR
        if stated == "adapter" or self.architecture == "controlvector":
            return Kind.ADAPTER
        if stated == "imatrix":
            return Kind.CALIBRATION
        # The first shard of a split model may hold metadata only.
        if not self.tensors and self.split_count == 1:
            return Kind.VOCABULARY
        return Kind.MODEL

    def _text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def _whole_number(self, key: str, default: int) -> int:
        value = self.metadata.get(key)
        return value if isinstance(value, int) else default
