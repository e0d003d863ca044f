"""What a file says about itself: what it is for, whether it embeds, and only what can be believed."""

from __future__ import annotations

from typing import Any

import pytest

from corral.formats import gguf
from corral.formats.gguf import Gguf, Kind, NewTensor, Pooling
from corral.formats.gguf.writer import f32
from tests.formats.gguf.crafting import read_bytes


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blk.7.attn_q.weight", 7),
        ("blk.123.x", 123),
        ("token_embd.weight", None),
        ("v.blk.3.attn_q.weight", None),
        ("blk.x.y", None),
        ("blk.", None),
        ("blk.²", None),
    ],
)
def test_a_tensor_knows_its_block(name: str, block: int | None) -> None:
    assert gguf.Tensor(name, (1,), "F32", 0, 4).block == block


def described(*, tensors: int = 1, **metadata: Any) -> Gguf:
    """A file with these metadata; dots are written as double underscores."""
    one = NewTensor("t", (1,), "F32", f32([0.0]))
    return read_bytes(gguf.write({k.replace("__", "."): v for k, v in metadata.items()}, [one] * tensors))


def test_the_hyperparameters_are_the_architectures_own() -> None:
    found = described(
        general__architecture="qwen3",
        qwen3__context_length=40_960,
        qwen3__block_count=28,
        llama__block_count=1,
    )
    assert (found.architecture, found.context_length, found.count("block_count")) == ("qwen3", 40_960, 28)


@pytest.mark.parametrize("value", ["many", 1.5, True, [1, 2]])
def test_a_hyperparameter_of_the_wrong_type_is_none(value: Any) -> None:
    found = described(general__architecture="llama", llama__context_length=value)
    assert found.context_length is None


def test_metadata_of_the_wrong_type_harm_nothing() -> None:
    found = described(general__architecture=7, general__type=1.0, split__count="2", split__no="x")
    assert (found.architecture, found.name, found.kind) == (None, None, Kind.MODEL)
    assert (found.split_index, found.split_count, found.is_embedding) == (0, 1, False)


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ({"general__architecture": "llama"}, Kind.MODEL),
        ({"general__architecture": "llama", "general__type": "model"}, Kind.MODEL),
        ({"general__architecture": "clip"}, Kind.PROJECTOR),
        ({"general__architecture": "qwen2vl", "general__type": "mmproj"}, Kind.PROJECTOR),
        ({"general__architecture": "llama", "general__type": "adapter"}, Kind.ADAPTER),
        ({"general__architecture": "controlvector"}, Kind.ADAPTER),
        ({"general__type": "imatrix"}, Kind.CALIBRATION),
        ({"general__architecture": "llama", "tensors": 0}, Kind.VOCABULARY),
        ({"general__architecture": "llama", "split__no": 0, "split__count": 3, "tensors": 0}, Kind.MODEL),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value.name,
)
def test_a_file_says_what_it_is_for(metadata: dict[str, Any], kind: Kind) -> None:
    assert described(**metadata).kind is kind


@pytest.mark.parametrize(
    ("metadata", "pooling", "embeds"),
    [
        ({"general__architecture": "llama"}, None, False),
        ({"general__architecture": "llama", "llama__pooling_type": 0}, Pooling.NONE, False),
        ({"general__architecture": "llama", "llama__pooling_type": 1}, Pooling.MEAN, True),
        ({"general__architecture": "qwen3", "qwen3__pooling_type": 3}, Pooling.LAST, True),
        ({"general__architecture": "qwen3", "qwen3__pooling_type": 4}, Pooling.RANK, True),
        ({"general__architecture": "qwen3", "llama__pooling_type": 1}, None, False),
        ({"general__architecture": "llama", "llama__pooling_type": 4_294_967_295}, None, False),
        ({"general__architecture": "bert"}, None, True),
        ({"general__architecture": "nomic-bert-moe"}, None, True),
        ({"general__architecture": "t5encoder"}, None, True),
        ({"general__architecture": "bert", "bert__pooling_type": 0}, Pooling.NONE, True),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_embedding_shows_in_pooling_or_architecture(
    metadata: dict[str, Any], pooling: Pooling | None, embeds: bool
) -> None:
    found = described(**metadata)
    assert (found.pooling_type, found.is_embedding) == (pooling, embeds)
