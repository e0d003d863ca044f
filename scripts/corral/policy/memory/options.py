"""Which of a llama-server's options decide how much memory it takes, read from its command line.

A llama-server reads LLAMA_ARG_* variables first and its flags after them, the last of a kind counting;
so does `read_options`, and nothing else of either matters here. A value that can't be understood leaves
the default in place: llama-server will refuse it at its start, and says better why. Renamed flags are
known under all their names, since nobody knows which version will run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

# What `--cache-type-k` takes, and ggml's name for it.
CACHE_TYPES: Mapping[str, str] = {
    name: name.upper() for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
}
# The weights of a mixture's experts, and of an ordinary feed-forward layer.
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
_FEED_FORWARD = r"\.ffn_(up|down|gate)\."
_DEVICE = re.compile(r"[A-Za-z]+([0-9]{1,2})")  # CUDA0, Vulkan1
# No model has more layers (LLAMA_MAX_LAYERS), so a larger count for --n-cpu-moe says no more.
_LAYERS_MAX = 512
MIB = 1 << 20
TRUE, FALSE = frozenset({"1", "true", "on", "enabled"}), frozenset({"0", "false", "off", "disabled"})


class Override(NamedTuple):
    """Tensors whose names match go into this buffer, wherever their layer lies."""

    pattern: str
    buffer: str  # CPU, CUDA0 …

    @property
    def device(self) -> int | None:
        """Which GPU that is, counted from 0; None is the host."""
        numbered = _DEVICE.fullmatch(self.buffer)
        return int(numbered[1]) if numbered else None


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What llama-server was told, with its own defaults for what it was not."""

    context_tokens: int = 0  # 0: as trained
    slots: int = 0  # 0: it decides, which means 4 that share one cache
    unified_cache: bool = False
    batch_tokens: int = 2048
    ubatch_tokens: int = 512
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attention: bool = True  # "auto" turns it on wherever there is a kernel, as good as everywhere
    full_window_cache: bool = False
    embedding: bool = False
    gpu_layers: int | None = None  # None: all
    gpu: bool = True
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()
    cache_on_gpu: bool = True
    overrides: tuple[Override, ...] = ()
    offload_operations: bool = True
    memory_map: bool = True
    repack: bool = True
    projector: str | None = None
    projector_on_gpu: bool = True
    draft: str | None = None
    draft_gpu_layers: int | None = None
    draft_cache_type_k: str = "f16"
    draft_cache_type_v: str = "f16"
    draft_overrides: tuple[Override, ...] = ()
    drafting: frozenset[str] = frozenset()  # kinds of speculative decoding
    drafted_tokens: int = 3
    prompt_cache_bytes_max: int | None = 8192 * MIB  # None: no limit

    @property
    def sequences(self) -> int:
        """How many requests it works on at a time."""
        return self.slots or 4

    @property
    def shares_cache(self) -> bool:
        """Whether the slots share one cache instead of having a part each."""
        return self.unified_cache or not self.slots

    @property
    def outputs_per_slot(self) -> int:
        """Of how many tokens the next one is computed at a time: drafted ones are all checked at once."""
        return 1 + (self.drafted_tokens if self.draft or self.drafting else 0)

    @property
    def predicts_ahead(self) -> bool:
        """Whether the model's own extra layers for multi-token prediction are loaded."""
        return "draft-mtp" in self.drafting

    def for_draft(self) -> LaunchOptions:
        """What the draft model is loaded with: the same, but for what has a flag of its own."""
        return replace(
            self,
            gpu_layers=self.draft_gpu_layers,
            cache_type_k=self.draft_cache_type_k,
            cache_type_v=self.draft_cache_type_v,
            overrides=self.draft_overrides,
            embedding=False,
            projector=None,
            draft=None,
            drafting=frozenset(),
        )


def read_options(argv: Sequence[str], environment: Mapping[str, str]) -> LaunchOptions:
    """The options of a llama-server that is started with these words and these variables."""
    values: dict[str, Any] = {}
    for option, text in (*_from_environment(environment), *_from_flags(argv)):
        try:
            value = option.parse(text)
        except ValueError:
            continue
        if option.adds:
            value = values.get(option.field, ()) + value
        values[option.field] = value
    return LaunchOptions(**values)


# How values are written ---------------------------------------------------------------------------


def _count(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if number < low:
            raise ValueError(text)
        return number

    return parse


def _truth(text: str) -> bool:
    if text not in TRUE | FALSE:
        raise ValueError(text)
    return text in TRUE


def _slots(text: str) -> int:
    number = int(text)
    return max(0, number)  # -1 is "auto"


def _layers(text: str) -> int | None:
    # "auto" and "all", and their old forms -1 and -2: as many as there are.
    number = -1 if text in ("auto", "all") else int(text)
    return number if number >= 0 else None


def _cache_type(text: str) -> str:
    if text not in CACHE_TYPES:
        raise ValueError(text)
    return text


def _flash_attention(text: str) -> bool:
    return text == "auto" or _truth(text)


def _load_mode(text: str) -> bool:
    """Whether the file is mapped. Locked into memory without a map, or read directly, it is copied."""
    if text not in ("auto", "mmap", "mmap+mlock", "none", "mlock", "dio"):
        raise ValueError(text)
    return text in ("auto", "mmap", "mmap+mlock")


def _proportions(text: str) -> tuple[float, ...]:
    return tuple(max(0.0, float(part)) for part in text.replace("/", ",").split(",") if part.strip())


def _overrides(text: str) -> tuple[Override, ...]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    if not all(pattern and equals and buffer for pattern, equals, buffer in pairs):
        raise ValueError(text)
    return tuple(Override(pattern, buffer) for pattern, _, buffer in pairs)


def _all_experts(text: str) -> tuple[Override, ...]:
    return (Override(_EXPERTS, "CPU"),) if _truth(text) else ()


def _first_layers(tensors: str) -> Callable[[str], tuple[Override, ...]]:
    def parse(text: str) -> tuple[Override, ...]:
        layers = min(_count(0)(text), _LAYERS_MAX)
        return tuple(Override(rf"blk\.{layer}{tensors}", "CPU") for layer in range(layers))

    return parse


def _pooling(text: str) -> bool:
    """A pooling type has the same effect as --embedding, all but "none", which has none."""
    if text == "none":
        raise ValueError(text)
    return True


def _kinds(text: str) -> frozenset[str]:
    return frozenset(text.split(",")) - {"none", ""}


def _prompt_cache(text: str) -> int | None:
    mebibytes = int(text)
    return mebibytes * MIB if mebibytes >= 0 else None


def _device(text: str) -> bool:
    return text != "none"


# The options --------------------------------------------------------------------------------------


class _Option(NamedTuple):
    """One option: the flags that take a value, those that need none, and its variable."""

    field: str
    parse: Callable[[str], Any]
    flags: str = ""
    on: str = ""
    off: str = ""
    variable: str = ""
    adds: bool = False  # given again it adds to what was given before


_OPTIONS = (
    _Option("context_tokens", _count(0), "-c --ctx-size", variable="CTX_SIZE"),
    _Option("slots", _slots, "-np --parallel", variable="N_PARALLEL"),
    _Option("unified_cache", _truth, "", "-kvu --kv-unified", "-no-kvu --no-kv-unified", "KV_UNIFIED"),
    _Option("batch_tokens", _count(1), "-b --batch-size", variable="BATCH"),
    _Option("ubatch_tokens", _count(1), "-ub --ubatch-size", variable="UBATCH"),
    _Option("cache_type_k", _cache_type, "-ctk --cache-type-k", variable="CACHE_TYPE_K"),
    _Option("cache_type_v", _cache_type, "-ctv --cache-type-v", variable="CACHE_TYPE_V"),
    _Option("flash_attention", _flash_attention, "-fa --flash-attn", variable="FLASH_ATTN"),
    _Option("full_window_cache", _truth, "", "--swa-full", variable="SWA_FULL"),
    _Option("embedding", _truth, "", "--embedding --embeddings", variable="EMBEDDINGS"),
    _Option("embedding", _truth, "", "--rerank --reranking", variable="RERANKING"),
    _Option("embedding", _pooling, "--pooling", variable="POOLING"),
    _Option("gpu_layers", _layers, "-ngl --gpu-layers --n-gpu-layers", variable="N_GPU_LAYERS"),
    _Option("gpu", _device, "-dev --device", variable="DEVICE"),
    _Option("split_mode", str, "-sm --split-mode", variable="SPLIT_MODE"),
    _Option("tensor_split", _proportions, "-ts --tensor-split", variable="TENSOR_SPLIT"),
    _Option("cache_on_gpu", _truth, "", "-kvo --kv-offload", "-nkvo --no-kv-offload", "KV_OFFLOAD"),
    _Option("overrides", _overrides, "-ot --override-tensor", variable="OVERRIDE_TENSOR", adds=True),
    _Option("overrides", _all_experts, "", "-cmoe --cpu-moe", variable="CPU_MOE", adds=True),
    _Option("overrides", _first_layers(_EXPERTS), "-ncmoe --n-cpu-moe", variable="N_CPU_MOE", adds=True),
    _Option("overrides", _first_layers(_FEED_FORWARD), "-ncffn --n-cpu-ffn", variable="N_CPU_FFN", adds=True),
    _Option("offload_operations", _truth, "", "--op-offload", "--no-op-offload"),
    _Option("memory_map", _load_mode, "-lm --load-mode", variable="LOAD_MODE"),
    _Option("memory_map", _truth, "", "--mmap", "--no-mmap", "MMAP"),  # until version 0.7
    _Option("repack", _truth, "", "--repack", "-nr --no-repack", "REPACK"),
    _Option("projector", str, "-mm --mmproj", variable="MMPROJ"),
    _Option("projector_on_gpu", _truth, "", "--mmproj-offload", "--no-mmproj-offload", "MMPROJ_OFFLOAD"),
    _Option("draft", str, "-md --model-draft --spec-draft-model", variable="SPEC_DRAFT_MODEL"),
    _Option(
        "draft_gpu_layers",
        _layers,
        "-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl",
        variable="N_GPU_LAYERS_DRAFT",
    ),
    _Option(
        "draft_cache_type_k",
        _cache_type,
        "-ctkd --cache-type-k-draft --spec-draft-type-k",
        variable="SPEC_DRAFT_CACHE_TYPE_K",
    ),
    _Option(
        "draft_cache_type_v",
        _cache_type,
        "-ctvd --cache-type-v-draft --spec-draft-type-v",
        variable="SPEC_DRAFT_CACHE_TYPE_V",
    ),
    _Option(
        "draft_overrides",
        _overrides,
        "-otd --override-tensor-draft --spec-draft-override-tensor",
        adds=True,
    ),
    _Option(
        "draft_overrides",
        _all_experts,
        "",
        "-cmoed --cpu-moe-draft --spec-draft-cpu-moe",
        variable="SPEC_DRAFT_CPU_MOE",
        adds=True,
    ),
    _Option("drafting", _kinds, "--spec-type", variable="SPEC_TYPE"),
    _Option(
        "drafted_tokens",
        _count(0),
        "--spec-draft-n-max --draft-max --draft --draft-n",
        variable="SPEC_DRAFT_N_MAX",
    ),
    _Option("prompt_cache_bytes_max", _prompt_cache, "-cram --cache-ram", variable="CACHE_RAM"),
)


def _by_flag() -> Iterator[tuple[str, tuple[_Option, str | None]]]:
    """Each flag with its option and, if it takes no value, the value that it stands for."""
    for option in _OPTIONS:
        yield from ((flag, (option, None)) for flag in option.flags.split())
        yield from ((flag, (option, "1")) for flag in option.on.split())
        yield from ((flag, (option, "0")) for flag in option.off.split())


_FLAGS = dict(_by_flag())


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[_Option, str]]:
    for option in _OPTIONS:
        if not option.variable:
            continue
        # That it is there is what counts for LLAMA_ARG_NO_MMAP, whatever its value.
        if option.off and f"LLAMA_ARG_NO_{option.variable}" in environment:
            yield option, "0"
        elif (text := environment.get(f"LLAMA_ARG_{option.variable}")) is not None:
            yield option, text


def _from_flags(argv: Iterable[str]) -> Iterator[tuple[_Option, str]]:
    words = iter(argv)
    for word in words:
        # llama-server reads --ctx_size as --ctx-size.
        flag = word.replace("_", "-") if word.startswith("--") else word
        if flag in _FLAGS:
            option, implied = _FLAGS[flag]
            yield option, implied if implied is not None else next(words, "")
