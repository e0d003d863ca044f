"""Where a model's weights go: by layer, so that a placement can divide them among GPUs and the host.

Token embeddings stay on the host. Layers move as a whole, but for tensors that an override sends
elsewhere. A model without an output matrix uses its token embeddings for it, which then exist twice:
on the host, and wherever the output layer lies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from corral.formats.gguf import Gguf, Tensor
from corral.policy.memory.options import LaunchOptions, Override
from corral.policy.memory.shape import Shape

_INPUTS = ("token_embd.", "token_embd_norm.", "token_types.", "position_embd.", "per_layer_token_embd.")
_OUTPUT = "output.weight"
# What the CPU backend rearranges for speed, and so copies, on x86 with AVX2; with more, or on ARM,
# there are some more. Matrices of whole groups of 8 rows only.
_REPACKED = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
_REPACKED_ROWS = 8


class Block(NamedTuple):
    """The weights of a layer, or of the output."""

    bytes: int = 0  # go where the layer goes
    host_bytes: int = 0  # stay on the host by an override
    repacked_bytes: int = 0  # of all these, what a host without GPUs keeps a second time
    largest_bytes: int = 0  # the largest matrix, which is what a GPU borrows at a time
    largest_host_bytes: int = 0

    def plus(self, size_bytes: int, *, on_host: bool, is_matrix: bool, repacked: bool) -> Block:
        largest = size_bytes if is_matrix else 0
        return Block(
            self.bytes + (0 if on_host else size_bytes),
            self.host_bytes + (size_bytes if on_host else 0),
            self.repacked_bytes + (size_bytes if repacked else 0),
            max(self.largest_bytes, largest),
            max(self.largest_host_bytes, largest if on_host else 0),
        )


@dataclass(frozen=True, slots=True)
class Weights:
    layers: tuple[Block, ...]
    output: Block
    input_bytes: int  # always on the host
    tied_bytes: int  # token embeddings that serve as the output matrix too
    tied_repacked: bool
    pinned: tuple[int, ...]  # bytes that overrides send to a GPU, by its number


def read_weights(model: Gguf, shape: Shape, options: LaunchOptions) -> Weights:
    loaded = len(shape.layers) - (0 if options.predicts_ahead else shape.extra_layers)
    layers = [Block()] * len(shape.layers)
    output, input_bytes, pinned = Block(), 0, [0] * (1 + _highest_device(options.overrides))
    route = _Route(options.overrides)
    for tensor in model.tensors:
        index = tensor.block
        if index is not None and index >= loaded:
            continue  # multi-token prediction that nobody asked for, or damage
        override = route.of(tensor.name)
        if override is not None and override.device is not None:
            pinned[override.device] += tensor.size_bytes
        elif tensor.name.startswith(_INPUTS):
            input_bytes += tensor.size_bytes
        elif index is None:
            output = _with(output, tensor, override)
        else:
            layers[index] = _with(layers[index], tensor, override)
    tied = _tied(model.tensors) if shape.generates else None
    return Weights(
        tuple(layers),
        output,
        input_bytes,
        tied.size_bytes if tied else 0,
        tied is not None and _is_repacked(tied),
        tuple(pinned),
    )


class _Route:
    """Which override a tensor follows: the first whose pattern is found in its name."""

    def __init__(self, overrides: Iterable[Override]) -> None:
        self._rules = [(pattern, rule) for rule in overrides if (pattern := _compiled(rule.pattern))]

    def of(self, name: str) -> Override | None:
        return next((rule for pattern, rule in self._rules if pattern.search(name)), None)


def _compiled(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except re.error:
        return None  # llama-server will refuse it too


def _with(block: Block, tensor: Tensor, override: Override | None) -> Block:
    return block.plus(
        tensor.size_bytes,
        on_host=override is not None,
        is_matrix=len(tensor.dims) > 1,
        repacked=_is_repacked(tensor),
    )


def _is_repacked(tensor: Tensor) -> bool:
    rows = tensor.dims[1] if len(tensor.dims) > 1 else 0
    return tensor.type in _REPACKED and rows > 0 and rows % _REPACKED_ROWS == 0


def _tied(tensors: Sequence[Tensor]) -> Tensor | None:
    """The token embeddings, if there is no output matrix beside them."""
    by_name = {tensor.name: tensor for tensor in tensors}
    return None if _OUTPUT in by_name else by_name.get("token_embd.weight")


def _highest_device(overrides: Iterable[Override]) -> int:
    return max((rule.device for rule in overrides if rule.device is not None), default=-1)
