"""Model files for tests of the memory sums: small ones of every family, as values and as real bytes.

The numbers are small and all different, so that a sum that takes the wrong one comes out wrong. The
same description makes the value that the sums read and the file that the real llama-server loads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from corral.formats.gguf import Gguf, NewTensor, Omitted, Tensor, ValueType, write
from corral.formats.gguf.tensor_types import NUMBER_OF, TENSOR_TYPES
from corral.formats.gguf.writer import ALIGNMENT, NewValue, head

Dims = tuple[int, ...]
MIB = 1 << 20
WORDS = 512


@dataclass(frozen=True)
class File:
    """A model file: hyperparameters without the architecture's prefix, and tensors by name."""

    architecture: str
    hyperparameters: Mapping[str, Any]
    tensors: Mapping[str, tuple[Dims, str]] = field(default_factory=dict)
    words: int = WORDS

    def saying(self, **changes: Any) -> File:
        """With other hyperparameters; `__` stands for a dot, and None takes one away."""
        now = dict(self.hyperparameters) | {key.replace("__", "."): value for key, value in changes.items()}
        return replace(self, hyperparameters={key: v for key, v in now.items() if v is not None})

    def with_tensors(self, tensors: Mapping[str, tuple[Dims, str]]) -> File:
        return replace(self, tensors={**self.tensors, **tensors})

    def without(self, *names: str) -> File:
        return replace(self, tensors={name: own for name, own in self.tensors.items() if name not in names})

    def value(self, **more: Any) -> Gguf:
        """What the reader would return. `more` are fields of the value, or metadata with a dot in the key."""
        metadata: dict[str, Any] = {
            "general.architecture": self.architecture,
            "tokenizer.ggml.tokens": Omitted(ValueType.STRING, self.words),
        }
        metadata |= {f"{self.architecture}.{key}": value for key, value in self._numbers()}
        tensors, offset = [], 0
        for name, (dims, kind) in self.tensors.items():
            size_bytes = TENSOR_TYPES[NUMBER_OF[kind]].size_bytes(dims)
            tensors.append(Tensor(name, dims, kind, offset, size_bytes))
            offset += size_bytes
        model = Gguf(3, MappingProxyType(metadata), tuple(tensors), 0, offset)
        return replace(model, **more)

    def bytes(self) -> bytes:
        """A whole file that a llama-server loads. All its weights are zero."""
        tensors = [tensor._replace(data=bytes(tensor.size_bytes)) for tensor in self._tensors()]
        return write(self._metadata(), tensors)

    def write(self, path: Path) -> None:
        """The same file, of any size and at once: its weights are a hole, and take nothing of the disk."""
        tensors = self._tensors()
        beginning = head(self._metadata(), tensors)
        path.write_bytes(beginning)
        units = sum(-(-tensor.size_bytes // ALIGNMENT) for tensor in tensors)
        os.truncate(path, len(beginning) + units * ALIGNMENT)

    def _metadata(self) -> dict[str, NewValue]:
        metadata: dict[str, NewValue] = {"general.architecture": self.architecture}
        metadata |= {f"{self.architecture}.{key}": value for key, value in self.hyperparameters.items()}
        metadata |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": [f"<{number}>" for number in range(self.words)],
            "tokenizer.ggml.token_type": [1] * self.words,
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.token_type_count": 2,  # an encoder's; others pass over it
        }
        return metadata

    def _tensors(self) -> list[NewTensor]:
        return [NewTensor(name, dims, kind) for name, (dims, kind) in self.tensors.items()]

    def _numbers(self) -> Iterator[tuple[str, Any]]:
        for key, value in self.hyperparameters.items():
            yield key, tuple(value) if isinstance(value, list) else value


def transformer(
    architecture: str = "llama",
    *,
    layers: int = 4,
    width: int = 256,
    heads: int = 8,
    kv_heads: int = 2,
    head: int = 32,
    feed_forward: int = 768,
    kind: str = "Q8_0",
    words: int = WORDS,
    context: int = 4096,
    tied: bool = False,
    **hyperparameters: Any,
) -> File:
    """A plain one, as llama is: grouped queries, a gated feed-forward layer, norms before both."""
    tensors: dict[str, tuple[Dims, str]] = {"token_embd.weight": ((width, words), kind)}
    for layer in range(layers):
        block = {
            "attn_norm": ((width,), "F32"),
            "attn_q": ((width, heads * head), kind),
            "attn_k": ((width, kv_heads * head), kind),
            "attn_v": ((width, kv_heads * head), kind),
            "attn_output": ((heads * head, width), kind),
            "ffn_norm": ((width,), "F32"),
            "ffn_gate": ((width, feed_forward), kind),
            "ffn_up": ((width, feed_forward), kind),
            "ffn_down": ((feed_forward, width), kind),
        }
        tensors |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    tensors["output_norm.weight"] = ((width,), "F32")
    if not tied:
        tensors["output.weight"] = ((width, words), kind)
    own: dict[str, Any] = {
        "context_length": context,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": feed_forward,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": head,
    }
    file = File(architecture, own, tensors, words)
    return file.saying(**hyperparameters)


def gemma3(**hyperparameters: Any) -> File:
    """Five layers with a window for each without, and norms after attention and feed-forward too."""
    file = transformer("gemma3", layers=7, attention__sliding_window=512, **hyperparameters)
    width = 256
    for layer in range(7):
        norms = {"attn_q_norm": 32, "attn_k_norm": 32, "post_attention_norm": width, "post_ffw_norm": width}
        file = file.with_tensors(
            {f"blk.{layer}.{name}.weight": ((size,), "F32") for name, size in norms.items()}
        )
    return file


def mixture(experts: int = 8, used: int = 4, inner: int = 256) -> File:
    """Of experts, of which a few work on each token."""
    width = 256
    file = transformer(
        "qwen3moe", expert_count=experts, expert_used_count=used, expert_feed_forward_length=inner
    )
    for layer in range(4):
        block = f"blk.{layer}."
        file = file.without(*(f"{block}ffn_{name}.weight" for name in ("gate", "up", "down")))
        file = file.with_tensors(
            {
                f"{block}attn_q_norm.weight": ((32,), "F32"),
                f"{block}attn_k_norm.weight": ((32,), "F32"),
                f"{block}ffn_gate_inp.weight": ((width, experts), "F32"),
                f"{block}ffn_gate_exps.weight": ((width, inner, experts), "Q8_0"),
                f"{block}ffn_up_exps.weight": ((width, inner, experts), "Q8_0"),
                f"{block}ffn_down_exps.weight": ((inner, width, experts), "Q8_0"),
            }
        )
    return file


def latent_attention() -> File:
    """One short vector per token, unfolded for all heads (MLA), and dense feed-forward layers."""
    width, heads, rank, rope, nope, value, queries = 512, 16, 128, 32, 64, 64, 192
    file = transformer(
        "deepseek2",
        layers=3,
        width=width,
        heads=heads,
        kv_heads=1,
        head=rank + rope,
        feed_forward=1024,
        attention__value_length=rank,
        attention__key_length_mla=nope + rope,
        attention__value_length_mla=value,
        attention__kv_lora_rank=rank,
        attention__q_lora_rank=queries,
        rope__dimension_count=rope,
        leading_dense_block_count=3,
        expert_count=4,
        expert_used_count=2,
        expert_feed_forward_length=256,
        expert_shared_count=1,
        expert_weights_scale=1.0,
    )
    for layer in range(3):
        block = f"blk.{layer}.attn_"
        file = file.without(*(f"{block}{name}.weight" for name in "qkv"))
        file = file.with_tensors(
            {
                f"{block}q_a_norm.weight": ((queries,), "F32"),
                f"{block}kv_a_norm.weight": ((rank,), "F32"),
                f"{block}q_a.weight": ((width, queries), "Q8_0"),
                f"{block}q_b.weight": ((queries, heads * (nope + rope)), "Q8_0"),
                f"{block}kv_a_mqa.weight": ((width, rank + rope), "Q8_0"),
                f"{block}k_b.weight": ((nope, rank, heads), "Q8_0"),
                f"{block}v_b.weight": ((rank, value, heads), "Q8_0"),
                f"{block}output.weight": ((heads * value, width), "Q8_0"),
            }
        )
    return file


def mamba2(layers: int = 4) -> File:
    """No attention at all: every layer keeps a state."""
    width, inner, state, groups, heads, kernel = 512, 1024, 64, 2, 16, 4
    mixed = inner + 2 * groups * state
    tensors: dict[str, tuple[Dims, str]] = {"token_embd.weight": ((width, WORDS), "Q8_0")}
    for layer in range(layers):
        block = {
            "attn_norm.weight": ((width,), "F32"),
            "ssm_in.weight": ((width, inner + mixed + heads), "Q8_0"),
            "ssm_conv1d.weight": ((kernel, mixed), "F32"),
            "ssm_conv1d.bias": ((mixed,), "F32"),
            "ssm_dt.bias": ((heads,), "F32"),
            "ssm_a": ((1, heads), "F32"),
            "ssm_d": ((1, heads), "F32"),
            "ssm_norm.weight": ((inner // groups, groups), "F32"),
            "ssm_out.weight": ((inner, width), "Q8_0"),
        }
        tensors |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    tensors["output_norm.weight"] = ((width,), "F32")
    tensors["output.weight"] = ((width, WORDS), "Q8_0")
    own = {
        "context_length": 4096,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "ssm.conv_kernel": kernel,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": heads,
        "ssm.group_count": groups,
    }
    return File("mamba2", own, tensors)


def hybrid(attention: Sequence[int] = (2,), layers: int = 4) -> File:
    """Granite's: layers without key-value heads are recurrent, and all have a feed-forward layer."""
    plain = transformer(
        "granitehybrid",
        layers=layers,
        width=512,
        heads=8,
        head=64,
        attention__head_count_kv=[2 if layer in attention else 0 for layer in range(layers)],
        logit_scale=1.0,
    )
    recurrent = mamba2(layers)
    states = {key: value for key, value in recurrent.hyperparameters.items() if key.startswith("ssm.")}
    file = replace(plain, hyperparameters={**plain.hyperparameters, **states})
    for layer in range(layers):
        block = f"blk.{layer}."
        if layer in attention:
            continue
        file = file.without(*(f"{block}attn_{name}.weight" for name in ("q", "k", "v", "output")))
        file = file.with_tensors(
            {name: own for name, own in recurrent.tensors.items() if name.startswith(f"{block}ssm")}
        )
    return file


def encoder() -> File:
    """As BERT is: no cache, no next token, every token sees all others."""
    width, inner = 128, 512
    tensors: dict[str, tuple[Dims, str]] = {
        "token_embd.weight": ((width, WORDS), "Q8_0"),
        "position_embd.weight": ((width, 512), "F32"),
        "token_types.weight": ((width, 2), "F32"),
        "token_embd_norm.weight": ((width,), "F32"),
        "token_embd_norm.bias": ((width,), "F32"),
    }
    for layer in range(2):
        matrices = {"attn_q": width, "attn_k": width, "attn_v": width, "attn_output": width, "ffn_up": inner}
        for name, size in matrices.items():
            tensors[f"blk.{layer}.{name}.weight"] = ((width, size), "Q8_0")
            tensors[f"blk.{layer}.{name}.bias"] = ((size,), "F32")
        tensors[f"blk.{layer}.ffn_down.weight"] = ((inner, width), "Q8_0")
        tensors[f"blk.{layer}.ffn_down.bias"] = ((width,), "F32")
        for name in ("attn_output_norm", "layer_output_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = ((width,), "F32")
            tensors[f"blk.{layer}.{name}.bias"] = ((width,), "F32")
    own = {
        "context_length": 512,
        "embedding_length": width,
        "block_count": 2,
        "feed_forward_length": inner,
        "attention.head_count": 4,
        "attention.layer_norm_epsilon": 1e-12,
        "attention.causal": False,
        "pooling_type": 1,
    }
    return File("bert", own, tensors)
