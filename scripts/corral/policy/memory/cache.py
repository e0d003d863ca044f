"""How much of its memory a model spends on the context: keys and values, and recurrent states.

These are exact: a llama-server allocates them at once and in full, whoever asks it for however little.
"""

from __future__ import annotations

from corral.formats.gguf.tensor_types import NUMBER_OF, TENSOR_TYPES
from corral.policy.memory.options import CACHE_TYPES, LaunchOptions
from corral.policy.memory.run import Run
from corral.policy.memory.shape import Layer, Shape

STATE_BYTES = 4  # per element: recurrent states are kept in full precision

# With these, a draft that is turned down is undone by going back to a copy of the state.
_ROLLS_BACK = frozenset(
    {
        "bailingmoe3",
        "glm5-next",
        "kimi-k3",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "qwen35",
        "qwen35moe",
        "qwen4exp",
    }
)
_DRAFTING_WITH_STATES = frozenset({"draft-mtp", "draft-eagle3", "draft-dflash", "draft-dspark"})


def cache_bytes(shape: Shape, options: LaunchOptions, run: Run) -> tuple[int, ...]:
    """Keys and values of each layer. The layers for multi-token prediction count if they are loaded."""
    loaded = len(shape.layers) - (0 if options.predicts_ahead else shape.extra_layers)
    # Without flash attention values are stored turned around, and all layers get the widest one's room.
    widest = 0 if run.flash_attention else max((layer.value for layer in shape.layers), default=0)
    return tuple(
        _cache_bytes(layer, widest, options, run) if index < loaded else 0
        for index, layer in enumerate(shape.layers)
    )


def state_bytes(shape: Shape, options: LaunchOptions, run: Run) -> tuple[int, ...]:
    """The recurrent state of each layer, of all sequences."""
    copies = 1
    if shape.architecture in _ROLLS_BACK and options.drafting & _DRAFTING_WITH_STATES:
        copies += options.drafted_tokens
    return tuple(STATE_BYTES * layer.state * run.sequences * copies for layer in shape.layers)


def half_precision_bytes(shape: Shape, options: LaunchOptions, run: Run) -> int:
    """The widest layer's cache as the GPU's attention wants it, which a quantised one is unpacked to."""
    key = 0 if options.cache_type_k in ("f16", "bf16") else 2
    value = 0 if options.cache_type_v in ("f16", "bf16") else 2
    return max(
        (_cells(layer, run) * (layer.key * key + layer.value * value) for layer in shape.layers), default=0
    )


def row_bytes(cache_type: str, elements: int) -> int:
    kind = TENSOR_TYPES[NUMBER_OF[CACHE_TYPES[cache_type]]]
    return -(-elements // kind.block_elements) * kind.block_bytes


def _cache_bytes(layer: Layer, widest: int, options: LaunchOptions, run: Run) -> int:
    if not layer.key:
        return 0
    value = max(layer.value, widest) if layer.value else 0
    keys = row_bytes(options.cache_type_k, layer.key) + row_bytes(options.cache_type_k, layer.index_key)
    values = row_bytes(options.cache_type_v, value) + row_bytes(options.cache_type_v, layer.index_value)
    return _cells(layer, run) * (keys + values)


def _cells(layer: Layer, run: Run) -> int:
    return run.streams * (run.window_cells if layer.windowed else run.cells)
