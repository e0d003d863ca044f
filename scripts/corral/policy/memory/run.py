"""What a llama-server makes of its options for one model: tokens, cells, sequences, outputs.

The options are wishes. The server rounds the context up to 256, divides it among the slots that don't
share it, and never computes more tokens at once than fit into it.
"""

from __future__ import annotations

from typing import NamedTuple

from corral.policy.memory.options import LaunchOptions
from corral.policy.memory.shape import Shape

CELLS_STEP = 256


class Run(NamedTuple):
    sequences: int
    streams: int  # separate caches: one, or one per sequence
    cells: int  # tokens that one stream's cache holds
    window_cells: int  # the same for layers that see a window only
    ubatch: int  # tokens computed at a time
    outputs: int  # of how many of them the next token is computed, or the embedding
    flash_attention: bool


def plan_run(shape: Shape, options: LaunchOptions) -> Run:
    sequences = options.sequences
    wanted = options.context_tokens or shape.trained_tokens or CELLS_STEP
    # An embedding model must see its whole input at once.
    batch = min(options.batch_tokens, options.ubatch_tokens) if options.embedding else options.batch_tokens
    # Without causal attention a batch may be larger than the context.
    batch = min(batch, wanted) if shape.causal else batch
    streams = 1 if options.shares_cache else sequences
    cells = padded(padded(wanted) // streams)
    ubatch = min(batch, options.ubatch_tokens, cells * streams)
    outputs = ubatch if options.embedding else min(ubatch, sequences * options.outputs_per_slot)
    return Run(
        sequences=sequences,
        streams=streams,
        cells=cells,
        window_cells=_window_cells(shape, options, cells, ubatch),
        ubatch=ubatch,
        outputs=outputs,
        flash_attention=options.flash_attention and shape.flash_attention,
    )


def padded(tokens: int) -> int:
    return -(-tokens // CELLS_STEP) * CELLS_STEP


def _window_cells(shape: Shape, options: LaunchOptions, cells: int, ubatch: int) -> int:
    """A window for every sequence of the stream, and room for the tokens that are being computed."""
    if options.full_window_cache:
        return cells
    windows = shape.window_tokens * (options.sequences if options.shares_cache else 1)
    return padded(min(cells, windows + ubatch))
