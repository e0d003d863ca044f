"""How much room the intermediate results of one batch take: the compute buffer.

llama.cpp lays out a batch's whole computation beforehand, and a result's place is used again as soon as
nobody needs it. So what counts is the widest moment: the feed-forward layer with its gate, the unfolded
heads of latent attention, the scan of a recurrent layer, or the row of one number per word of the
vocabulary at the end. The sums below were measured on the real thing for each kind of layer, and are
right within a few per cent; where they err they say too much.
"""

from __future__ import annotations

from typing import NamedTuple

from corral.policy.memory.cache import STATE_BYTES, half_precision_bytes
from corral.policy.memory.options import LaunchOptions
from corral.policy.memory.run import Run
from corral.policy.memory.shape import Shape

FLOAT_BYTES = 4
# Bytes per pair of a token and a cell in the mask that says who may see whom.
_MASK_BYTES = {True: 2, False: 4}  # by flash attention


class Compute(NamedTuple):
    """The buffer of a processor, by what it has to compute."""

    host_layers_bytes: int  # the host, with layers of its own
    host_inputs_bytes: int  # the host, when all layers are on GPUs
    device_layers_bytes: int  # a GPU with layers
    device_output_bytes: int  # a GPU that has the output layer only
    inputs_bytes: int  # what all of them start from: part of each of these


def compute_bytes(shape: Shape, options: LaunchOptions, run: Run) -> Compute:
    token_bytes = FLOAT_BYTES * run.ubatch
    masks = _masks_bytes(shape, run)
    results = max(_results_bytes(shape, run), _output_bytes(shape, run), _scores_bytes(shape, run))
    # A GPU's attention reads half precision: a quantised cache is unpacked for it, one layer at a time.
    unpacked = token_bytes * (3 * shape.width + shape.query) + half_precision_bytes(shape, options, run)
    return Compute(
        host_layers_bytes=masks + results,
        host_inputs_bytes=masks + token_bytes * 2 * shape.width,
        device_layers_bytes=masks + max(results, unpacked),
        device_output_bytes=_output_bytes(shape, run),
        inputs_bytes=masks + token_bytes * shape.width,
    )


def output_buffer_bytes(shape: Shape, options: LaunchOptions, run: Run) -> int:
    """Where the host keeps what comes out: a row as long as the vocabulary for every output."""
    embedded = shape.width if options.embedding else 0
    return FLOAT_BYTES * max(run.outputs, run.sequences) * (shape.vocabulary + embedded)


def _results_bytes(shape: Shape, run: Run) -> int:
    token_bytes = FLOAT_BYTES * run.ubatch
    # Besides a layer's own results: what flows past it, its input and output, and the queries.
    around = (3 if shape.causal else 2) * shape.width + shape.query
    widest = shape.feed_forward + around
    if shape.latent:
        widest = max(widest, shape.latent + 4 * shape.width)
    if not shape.recurrent:
        return token_bytes * widest
    state = STATE_BYTES * max(layer.state for layer in shape.layers) * run.sequences
    return max(token_bytes * widest, token_bytes * (shape.recurrent + shape.width) + state)


def _output_bytes(shape: Shape, run: Run) -> int:
    if not shape.generates:
        return 0
    return FLOAT_BYTES * (run.outputs * shape.vocabulary + 2 * run.ubatch * shape.width)


def _masks_bytes(shape: Shape, run: Run) -> int:
    """One mask for each kind of cache; an encoder's tokens see one another."""
    if not shape.generates:
        cells = run.ubatch
    else:
        kinds = {layer.windowed for layer in shape.layers if layer.key}
        cells = sum(run.window_cells if windowed else run.cells for windowed in kinds)
    return cells * run.ubatch * _MASK_BYTES[run.flash_attention]


def _scores_bytes(shape: Shape, run: Run) -> int:
    """Without flash attention every head's score for every pair of token and cell exists at once."""
    if run.flash_attention:
        return 0
    cells = run.cells if shape.generates else run.ubatch
    around = 4 * shape.width + max(2 * shape.query, shape.latent)
    return FLOAT_BYTES * run.ubatch * (shape.heads * cells + around)
