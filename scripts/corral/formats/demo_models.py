"""Two models small enough to be computed on the spot, and real enough for the real engine.

They let a newcomer see a request's whole way, and let tests run the real llama-server, before
anybody has downloaded a byte. Both are ordinary files of the llama architecture whose weights are
set by hand:

- `demo` recites a short text. Attention and feed-forward are zero, so what comes next depends on the
  last token alone: embeddings are one-hot, and the output matrix holds, for each word of the text,
  the word that follows. Any other token leads to the first word, so every prompt starts the recital.
- `demo-embed` turns a text into 64 numbers. Each attention head looks a fixed number of bytes back,
  by position alone; the feed-forward layer mixes what they found into random but repeatable
  features, and the engine takes the mean. So it sees letter sequences: texts that share words are
  close, whatever they mean.

The same bytes come out on every machine and with every Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import shake_256
from math import cos, sin, sqrt
from struct import pack_into, unpack
from typing import NamedTuple

from corral.formats.gguf.values import Pooling
from corral.formats.gguf.writer import NewTensor, NewValue, f16, f32, write

SCRIPT = """\
Hello! I am the demo model that comes with Corral. I can't think, and this text is all I know, but \
every token of it went through the real llama.cpp engine, as a big model's tokens would.

To put a real model in my place, copy a .gguf file into data/models/, start Corral again, and ask for \
it by its file name without .gguf; GET /v1/models lists what is there. Over to you!"""
PARAGRAPH = "\n\n"  # goes between two recitals when the client forbids the end (`ignore_eos`)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BEGIN_OF_TEXT, END_OF_TURN = 256, 258  # their places in a vocabulary that begins with the 256 bytes
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types; a user-defined token is matched as it stands

ROPE_BASE = 10_000.0
# The norm before the output makes a one-hot state sqrt(width) high, 8 at least, so the right token leads
# by more than 16,000: beyond what any temperature or penalty levels, and within half precision.
CERTAIN, FALLBACK = 4096.0, 2048.0
# How sharply a head of the embedder looks at its one place: q·k, and so the score, grows with its square.
FOCUS = 6.0


class _Shape(NamedTuple):
    width: int
    heads: int
    feed_forward: int
    context: int

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def demo() -> bytes:
    """The reciting model, as the bytes of a GGUF file."""
    pieces = script_pieces(SCRIPT)
    vocabulary = [*_byte_alphabet(), *SPECIAL, *pieces, PARAGRAPH]
    first, paragraph = len(vocabulary) - 1 - len(pieces), len(vocabulary) - 1
    # State 0 is "begin", and state n is "piece n has been said".
    shape = _Shape(width=-(-(1 + len(pieces)) // 64) * 64, heads=2, feed_forward=64, context=131_072)
    embedding = bytearray(2 * shape.width * len(vocabulary))
    output = bytearray(embedding)
    for token in range(len(vocabulary)):
        state = token - first + 1 if first <= token < paragraph else 0
        _set(embedding, shape, token, state, 1.0)
    for state in range(len(pieces)):
        _set(output, shape, first + state, state, CERTAIN)
    _set(output, shape, END_OF_TURN, len(pieces), CERTAIN)
    _set(output, shape, paragraph, len(pieces), FALLBACK)

    metadata = _metadata("Corral demo", shape, vocabulary)
    metadata["tokenizer.chat_template"] = CHAT_TEMPLATE
    projections = [
        NewTensor(f"blk.0.{name}.weight", dims, "F16", bytes(2 * dims[0] * dims[1]))
        for name, dims in _projections(shape)
    ]
    return write(metadata, _tensors(shape, len(vocabulary), bytes(embedding), projections, bytes(output)))


def demo_embed() -> bytes:
    """The embedding model, as the bytes of a GGUF file."""
    vocabulary = [*_byte_alphabet(), *SPECIAL]
    shape = _Shape(width=64, heads=4, feed_forward=256, context=4096)
    metadata = _metadata("Corral demo embedder", shape, vocabulary)
    metadata["llama.pooling_type"] = int(Pooling.MEAN)
    # Capitals count as small letters. Small embeddings leave the word to the feed-forward layer.
    letters = (ord(chr(token).lower()) if token < 128 else token for token in range(len(vocabulary)))
    embedding = b"".join(f16(_noise(f"token {letter}", shape.width, 0.05)) for letter in letters)
    tensors = _tensors(shape, len(vocabulary), embedding, list(_embedder_block(shape)), embedding)
    return write(metadata, tensors)


def script_pieces(script: str) -> list[str]:
    """The script as tokens: words with the white space before them, each piece different from all others.

    A word that has been said before is joined with what follows, because a state must know its successor.
    """
    pieces: dict[str, None] = {}
    piece = ""
    for word in re.findall(r"\s*\S+", script):
        piece += word
        if piece not in pieces:
            pieces[piece] = None
            piece = ""
    *head, last = pieces
    return [*head, last + piece]


def _byte_alphabet() -> list[str]:
    """How byte-level vocabularies write the 256 bytes: a visible character stands for itself."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def _metadata(name: str, shape: _Shape, vocabulary: list[str]) -> dict[str, NewValue]:
    types = [NORMAL] * 256 + [CONTROL] * len(SPECIAL)
    types += [USER_DEFINED] * (len(vocabulary) - len(types))
    return {
        "general.architecture": "llama",
        "general.name": name,
        "llama.vocab_size": len(vocabulary),
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.width,
        "llama.block_count": 1,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.head_width,
        "llama.rope.freq_base": ROPE_BASE,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": BEGIN_OF_TEXT,
        "tokenizer.ggml.eos_token_id": END_OF_TURN,
        "tokenizer.ggml.add_bos_token": False,
    }


def _tensors(
    shape: _Shape, tokens: int, embedding: bytes, block: list[NewTensor], output: bytes
) -> list[NewTensor]:
    """The whole model around its one block; every norm only rescales."""
    ones = f32([1.0] * shape.width)
    return [
        NewTensor("token_embd.weight", (shape.width, tokens), "F16", embedding),
        NewTensor("blk.0.attn_norm.weight", (shape.width,), "F32", ones),
        *block,
        NewTensor("blk.0.ffn_norm.weight", (shape.width,), "F32", ones),
        NewTensor("output_norm.weight", (shape.width,), "F32", ones),
        NewTensor("output.weight", (shape.width, tokens), "F16", output),
    ]


def _projections(shape: _Shape) -> list[tuple[str, tuple[int, int]]]:
    width, head, inner = shape.width, shape.head_width, shape.feed_forward
    return [
        ("attn_q", (width, width)),
        ("attn_k", (width, head)),
        ("attn_v", (width, head)),
        ("attn_output", (width, width)),
        ("ffn_gate", (width, inner)),
        ("ffn_up", (width, inner)),
        ("ffn_down", (inner, width)),
    ]


def _embedder_block(shape: _Shape) -> Iterator[NewTensor]:
    """Random projections, but for the attention: its queries and keys are constants.

    Rotary positions turn a query and a key by their places, so a query that starts out turned back by
    h places meets the key of h bytes ago head on, and every other one askew.
    """
    gains = {"attn_q": 0.0, "attn_k": 0.0, "ffn_gate": 2.0, "ffn_up": 2.0, "ffn_down": 10.0}
    for name, dims in _projections(shape):
        scale = gains.get(name, 1.0) / sqrt(dims[0])
        yield NewTensor(f"blk.0.{name}.weight", dims, "F16", f16(_noise(name, dims[0] * dims[1], scale)))
    pairs = shape.head_width // 2
    speeds = [ROPE_BASE ** (-pair / pairs) for pair in range(pairs)]
    queries = [
        part for back in range(shape.heads) for speed in speeds for part in _turned(-back * speed, FOCUS)
    ]
    keys = [part for _ in speeds for part in _turned(0.0, FOCUS)]
    yield NewTensor("blk.0.attn_q.bias", (shape.width,), "F32", f32(queries))
    yield NewTensor("blk.0.attn_k.bias", (shape.head_width,), "F32", f32(keys))


def _turned(angle: float, length: float) -> tuple[float, float]:
    return length * cos(angle), length * sin(angle)


def _noise(name: str, count: int, scale: float) -> list[float]:
    """Numbers of mean 0 and deviation `scale`, the same for a name for ever: evenly spread hash bits."""
    bits = shake_256(name.encode()).digest(2 * count)
    step = scale * sqrt(3) / 32_768
    return [number * step for number in unpack(f"<{count}h", bits)]


def _set(matrix: bytearray, shape: _Shape, row: int, column: int, number: float) -> None:
    pack_into("<e", matrix, 2 * (row * shape.width + column), number)
