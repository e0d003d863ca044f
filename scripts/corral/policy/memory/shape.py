"""The shape of a network, as far as memory goes: read from a model file's metadata and tensor table.

Architectures differ in few things that matter here: how wide the keys and values of a layer are, which
layers look back over a window only, which keep a state of fixed size instead of a cache, which share
the cache of a layer before them, and how wide the widest intermediate result is. llama.cpp has these
facts spread over a hundred files; here they are tables, by the names of the architectures. An
architecture that is in no table is taken for a plain transformer, which is what most new ones are.

The file is a stranger's: a number that makes no sense is taken for missing, or ends in `Unpredictable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from corral.formats.gguf import Gguf, Omitted, Tensor

LAYERS_MAX = 512  # llama.cpp's own limit
QUANTISED_BLOCK = 32  # elements, in every type that a cache can have
NUMBER_MAX = 1 << 32  # of any width or length: beyond it a file is damaged, and sums grow without sense


class Unpredictable(ValueError):
    """The file does not say enough to tell how much memory its model takes."""


class Windows(NamedTuple):
    """Which layers of an architecture see a sliding window only: all but every `period`th."""

    period: int
    whole_first: bool = False  # the layer that sees everything is the first of each group, not the last
    tokens: int = 0  # the window of a file that names none; 0: then there is no window


class Layer(NamedTuple):
    """What one block keeps between two tokens. Widths are elements per token of context."""

    key: int = 0
    value: int = 0
    index_key: int = 0  # of the small second cache by which sparse attention finds its tokens
    index_value: int = 0
    windowed: bool = False
    state: int = 0  # elements per sequence, whatever its length


@dataclass(frozen=True, slots=True)
class Shape:
    architecture: str
    width: int
    vocabulary: int
    trained_tokens: int
    layers: tuple[Layer, ...]
    window_tokens: int
    extra_layers: int  # at the end, for multi-token prediction: left on the disk unless asked for
    heads: int
    query: int  # elements of all heads' queries
    heads_in_blocks: bool  # so that a cache of them can be quantised
    latent: int  # elements of what latent attention unfolds for all heads: 0 without
    feed_forward: int  # elements of the widest feed-forward layer's results that live at once
    recurrent: int  # elements that a recurrent layer needs per token
    causal: bool
    generates: bool  # has a cache and computes a next token
    flash_attention: bool


# Layers that see everything: the last of each `period`, or the first. From llama.cpp's model classes.
_WINDOWS: Mapping[str, Windows] = {
    "afmoe": Windows(4),
    "cohere2": Windows(4),
    "cohere2moe": Windows(4, whole_first=True),
    "exaone-moe": Windows(4, tokens=128),
    "exaone4": Windows(4, tokens=4096),
    "gemma-embedding": Windows(6),
    "gemma2": Windows(2, tokens=4096),
    "gemma3": Windows(6),
    "gemma3n": Windows(5),
    "gpt-oss": Windows(2),
    "laguna": Windows(4, whole_first=True),
    "llama4": Windows(4, tokens=8192),
    "mellum": Windows(4),
    "modern-bert": Windows(3, whole_first=True),
    "muse-glimmer": Windows(4),
    "olmo2": Windows(4),
    "plamo3": Windows(8),
    "smallthinker": Windows(4, whole_first=True),
}
# These list their windowed layers one by one.
_WINDOWS_LISTED = frozenset({"dots3note", "gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35"})

_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
# A layer without key-value heads is recurrent here. Elsewhere it just has no attention.
_RECURRENT_WITHOUT_HEADS = frozenset(
    {
        "bailingmoe3",
        "glm5-next",
        "granitehybrid",
        "jamba",
        "kimi-k3",
        "kimi-linear",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "plamo2",
    }
)
# All layers are recurrent but every so many-th.
_ATTENTION_INTERVAL: Mapping[str, int] = {
    "minimax-01": 8,
    "qwen35": 4,
    "qwen35moe": 4,
    "qwen3next": 4,
    "qwen4exp": 4,
}
_BOTH_IN_EVERY_LAYER = frozenset({"falcon-h1"})
_NOTHING_BESIDES_FEED_FORWARD = frozenset({"nemotron_h", "nemotron_h_moe"})
_NO_CACHE = frozenset(
    {
        "bert",
        "dream",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llada",
        "llada-moe",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "rnd1",
    }
)
_NO_FLASH_ATTENTION = frozenset({"grok"})
_DELTA_NET = frozenset({"qwen35", "qwen35moe", "qwen3next", "qwen4exp"})
_LAYERS_WITH_OWN_CACHE = {"gemma3n": 20}


def whole(shards: Sequence[Gguf]) -> Gguf:
    """The files of a split model as one: the first has the metadata, each a part of the tensors."""
    if not shards:
        raise Unpredictable("no model file was given")
    first, *_ = ordered = sorted(shards, key=lambda shard: shard.split_index)
    tensors = tuple(tensor for shard in ordered for tensor in shard.tensors)
    return replace(first, tensors=tensors, size_bytes=sum(shard.size_bytes for shard in ordered))


def read_shape(model: Gguf) -> Shape:
    """Raises Unpredictable if the basic numbers are missing."""
    return _Reading(model).shape()


class _Reading:
    """One model file's numbers, each looked at before it is believed."""

    def __init__(self, model: Gguf) -> None:
        self._model = model
        self.architecture = model.architecture or ""
        self.count = self._needed("block_count", LAYERS_MAX)
        self.width = self._needed("embedding_length", NUMBER_MAX)
        self.extra = min(self._number("nextn_predict_layers"), self.count)
        self.heads = self._per_layer("attention.head_count", 0)
        self.kv_heads = self._per_layer("attention.head_count_kv", None) or self.heads
        head = self.width // self.heads[0] if self.heads[0] else 0
        self.key = self._number("attention.key_length", head)
        self.value = self._number("attention.value_length", head)
        self.latent_key = self._number("attention.key_length_mla")
        self.latent_value = self._number("attention.value_length_mla")

    def shape(self) -> Shape:
        windowed, window_tokens = self._windows()
        recurrent = self._recurrent_layers()
        generates = self.architecture not in _NO_CACHE
        layers = tuple(self._layer(i, windowed[i], recurrent[i], generates) for i in range(self.count))
        heads = max(self.heads)
        return Shape(
            architecture=self.architecture,
            width=self.width,
            vocabulary=self._vocabulary(),
            trained_tokens=self._number("context_length"),
            layers=layers,
            window_tokens=window_tokens,
            extra_layers=self.extra,
            heads=heads,
            query=heads * self.key,
            heads_in_blocks=self.key % QUANTISED_BLOCK == 0 and self.value % QUANTISED_BLOCK == 0,
            latent=heads * self._unfolded(),
            feed_forward=_feed_forward(self._model.tensors, self._experts_used()),
            recurrent=self._recurrent_width() if any(recurrent) else 0,
            causal=generates and self._model.hyperparameter("attention.causal") is not False,
            generates=generates,
            flash_attention=self.architecture not in _NO_FLASH_ATTENTION,
        )

    # Numbers --------------------------------------------------------------------------------------

    def _number(self, key: str, default: int = 0) -> int:
        value = self._model.count(key)
        return value if value is not None and 0 <= value < NUMBER_MAX else default

    def _needed(self, key: str, limit: int) -> int:
        value = self._model.count(key)
        if value is None or not 0 < value <= limit:
            raise Unpredictable(f"its {self.architecture}.{key} is {value}, so nothing can be computed")
        return value

    def _per_layer(self, key: str, default: int | None) -> tuple[int, ...]:
        """One number for all layers, or a list of one for each. Empty if there is neither nor a default."""
        value = self._model.hyperparameter(key)
        if isinstance(value, tuple):
            numbers = [item if isinstance(item, int) and 0 <= item < NUMBER_MAX else 0 for item in value]
            return tuple((numbers + [0] * self.count)[: self.count])
        if isinstance(value, int) and 0 <= value < NUMBER_MAX:
            return (value,) * self.count
        return () if default is None else (default,) * self.count

    def _vocabulary(self) -> int:
        tokens = self._model.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, Omitted):
            return min(tokens.length, NUMBER_MAX)
        return self._number("vocab_size")

    def _experts_used(self) -> int:
        used = self._per_layer("expert_used_count", None)
        return max(used, default=0)

    # Attention ------------------------------------------------------------------------------------

    def _unfolded(self) -> int:
        """Latent attention (MLA) stores one short vector per token and unfolds it for every head."""
        if not (self.latent_key and self.latent_value):
            return 0
        return self.key + self.value + self.latent_key + self.latent_value

    def _windows(self) -> tuple[tuple[bool, ...], int]:
        """Which layers see a window only, and how long it is."""
        rule = _WINDOWS.get(self.architecture)
        tokens = self._number("attention.sliding_window", rule.tokens if rule else 0)
        # EXAONE 4 has a window in its 32B model only, which is told by its 64 layers.
        if not tokens or (self.architecture == "exaone4" and self.count != 64):
            return (False,) * self.count, 0
        if self.architecture in {"lfm2", "lfm2moe"}:
            return tuple(heads > 0 for heads in self.kv_heads), tokens
        pattern = self._model.hyperparameter("attention.sliding_window_pattern")
        if isinstance(pattern, tuple) and (rule or self.architecture in _WINDOWS_LISTED):
            return tuple(bool(item) for item in (*pattern, *([0] * self.count))[: self.count]), tokens
        if rule is None:
            return (False,) * self.count, 0
        period = self._number("attention.sliding_window_pattern", rule.period)
        return tuple(self._in_window(layer, period, rule) for layer in range(self.count)), tokens

    def _in_window(self, layer: int, period: int, rule: Windows) -> bool:
        if layer >= self.count - self.extra:
            return False
        whole_at = 0 if rule.whole_first else period - 1
        return period == 0 or layer % period != whole_at

    def _layer(self, index: int, windowed: bool, recurrent: bool, generates: bool) -> Layer:
        layer = Layer(windowed=windowed, state=self._state() if recurrent else 0)
        both = self.architecture in _BOTH_IN_EVERY_LAYER
        if not generates or (recurrent and not both) or self._is_feed_forward_only(index):
            return layer
        if index >= self._layers_with_cache():
            return layer
        key, value = self.key, self.value
        if windowed:
            key = self._number("attention.key_length_swa", key)
            value = self._number("attention.value_length_swa", value)
        heads = self.kv_heads[index]
        indexed = self._number("attention.indexer.key_length")
        return layer._replace(
            key=key * heads,
            value=0 if self._unfolded() else value * heads,
            index_key=indexed,
            index_value=self.value if indexed and not self._unfolded() else 0,
        )

    def _is_feed_forward_only(self, index: int) -> bool:
        if self.architecture not in _NOTHING_BESIDES_FEED_FORWARD:
            return False
        return self._per_layer("feed_forward_length", 0)[index] > 0

    def _layers_with_cache(self) -> int:
        """Later layers use the cache of an earlier one."""
        fixed = _LAYERS_WITH_OWN_CACHE.get(self.architecture, self.count)
        return min(fixed, self.count - self._number("attention.shared_kv_layers"))

    # Recurrence -----------------------------------------------------------------------------------

    def _recurrent_layers(self) -> tuple[bool, ...]:
        if self.architecture in _RECURRENT | _BOTH_IN_EVERY_LAYER:
            return (True,) * self.count
        own = self.count - self.extra
        if self.architecture in _RECURRENT_WITHOUT_HEADS:
            without = [not heads for heads in self.kv_heads]
            return tuple(
                without[i] and i < own and not self._is_feed_forward_only(i) for i in range(self.count)
            )
        if self.architecture not in _ATTENTION_INTERVAL:
            return (False,) * self.count
        listed = self._per_layer("attention.recurrent_layers", None)
        if listed:
            return tuple(bool(item) for item in listed)
        interval = self._number("full_attention_interval", _ATTENTION_INTERVAL[self.architecture]) or 1
        return tuple(i < own and (i + 1) % interval != 0 for i in range(self.count))

    def _state(self) -> int:
        """Elements of one layer's state: what rolls through the convolution, and what is remembered."""
        heads = self.heads[0]
        if wkv := self._number("wkv.head_size"):
            return self._number("token_shift_count", 2) * self.width + self.width * wkv
        if kernel := self._number("shortconv.l_cache"):
            return self.width * max(0, kernel - 1)
        convolved = max(0, self._number("ssm.conv_kernel") - 1)
        if kda := self._number("kda.head_dim"):
            return 3 * (convolved or 3) * heads * kda + kda * kda * heads
        if self.architecture == "minimax-01":
            return self.key * self.key * heads
        inner, state = self._number("ssm.inner_size"), self._number("ssm.state_size")
        groups = self._number("ssm.group_count")
        return convolved * (inner + 2 * groups * state) + state * inner

    def _recurrent_width(self) -> int:
        """Elements per token that a recurrent layer's intermediate results take. Sums as measured."""
        if self._number("wkv.head_size"):
            return 18 * self.width
        inner, state = self._number("ssm.inner_size"), self._number("ssm.state_size")
        grouped = self._number("ssm.group_count") * state
        if self.architecture in _DELTA_NET:
            return 2 * (inner + 2 * grouped) + 2 * inner + 2 * self.width + self.heads[0] * self.key
        if kda := self._number("kda.head_dim"):
            return 10 * self.heads[0] * kda
        # Input projection (x, z, B, C, dt), its convolved part before and after, and the scan's result
        # before and after the skip connection.
        return 6 * inner + 6 * grouped + self._number("ssm.time_step_rank")


def _feed_forward(tensors: Sequence[Tensor], experts_used: int) -> int:
    """The widest feed-forward layer. Read off the tensors: metadata name it in five different ways."""
    dims = {tensor.name: tensor.dims for tensor in tensors if ".ffn_" in tensor.name}
    widest = 0
    for name, shape in dims.items():
        prefix, _, rest = name.partition(".ffn_")
        if len(shape) < 2 or rest not in ("down.weight", "down_exps.weight"):
            continue
        experts = rest.removeprefix("down").removesuffix(".weight")
        inner, outer = shape[0], shape[1]
        # gate, up and their product live at once; without a gate the activation works in place.
        gated = any(f"{prefix}.ffn_{kind}{experts}.weight" in dims for kind in ("gate", "gate_up"))
        up = dims.get(f"{prefix}.ffn_up{experts}.weight", ())
        fused = len(up) > 1 and up[1] == 2 * inner
        results = inner * (3 if gated or fused else 1)
        if experts:
            # The experts' results go where gate and up were, or behind them if that is too narrow.
            results = (results + (outer if results - inner < outer else 0)) * max(1, experts_used)
        widest = max(widest, results)
    return widest
