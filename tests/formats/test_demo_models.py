"""The demo models: the same bytes for ever, and a script whose every state knows its successor."""

from __future__ import annotations

from hashlib import sha256

import pytest

from corral.formats import demo_models, gguf
from corral.formats.gguf import Gguf, Kind, Omitted, Pooling, ValueType


def read_bytes(data: bytes) -> Gguf:
    return gguf.read(lambda offset, length: data[offset : offset + length], len(data))


# Caches, tests and bug reports may know the files by these. A new script or weight is a new hash.
DEMO_SHA256 = "cc93d38e078a2818d5dcec621051bd401ea8007cc9b415821312118cc087eccc"
DEMO_EMBED_SHA256 = "bbbd3ed9d594d345aad614bddb7cb496171df54fd9f1399b333ce48016410e4d"


def test_the_demo_models_are_the_same_bytes_everywhere() -> None:
    assert sha256(demo_models.demo()).hexdigest() == DEMO_SHA256
    assert sha256(demo_models.demo_embed()).hexdigest() == DEMO_EMBED_SHA256


def test_demo_is_a_chat_model_with_room_for_long_streams() -> None:
    found = read_bytes(demo_models.demo())
    assert (found.kind, found.architecture, found.is_embedding) == (Kind.MODEL, "llama", False)
    assert (found.context_length, found.count("block_count")) == (131_072, 1)
    assert "tokenizer.chat_template" in found.metadata
    assert found.size_bytes < 1 << 20


def test_demo_embed_says_that_it_embeds() -> None:
    found = read_bytes(demo_models.demo_embed())
    assert (found.pooling_type, found.is_embedding) == (Pooling.MEAN, True)
    assert (found.context_length, found.count("embedding_length")) == (4096, 64)
    assert found.metadata["tokenizer.ggml.tokens"] == Omitted(ValueType.STRING, 259)


def test_the_script_tells_a_newcomer_what_this_is_and_what_to_do() -> None:
    script = demo_models.SCRIPT
    assert 60 <= len(script.split()) <= 90
    for fact in ("demo model", "Corral", "real llama.cpp engine", ".gguf", "data/models/", "GET /v1/models"):
        assert fact in script


@pytest.mark.parametrize(
    ("script", "pieces"),
    [
        ("one two three", ["one", " two", " three"]),
        ("one\n\ntwo", ["one", "\n\ntwo"]),
        ("a rose is a rose is red", ["a", " rose", " is", " a", " rose is", " red"]),
        ("x x x", ["x", " x x"]),
    ],
)
def test_a_word_said_before_is_joined_with_what_follows(script: str, pieces: list[str]) -> None:
    assert demo_models.script_pieces(script) == pieces


def test_the_pieces_of_the_script_are_all_different_and_make_it_whole() -> None:
    pieces = demo_models.script_pieces(demo_models.SCRIPT)
    assert "".join(pieces) == demo_models.SCRIPT
    assert len(set(pieces)) == len(pieces)
