"""Which layer lies where, by llama-server's own rule.

Layers are numbered from 0, and the output layer comes after the last. `-ngl N` takes the N last of
them, so the output goes first and layer 0 last; those are divided among the GPUs in order, each GPU
getting its share.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

from corral.policy.memory.options import LaunchOptions


class Layout(NamedTuple):
    gpu_layers: int  # as -ngl counts them: one more than the layers is all
    shares: tuple[float, ...]  # of each visible GPU, in any unit; empty without a GPU

    def places(self, layers: int) -> tuple[int | None, ...]:
        """The GPU of each of so many layers, and of the output at the end; None is the host."""
        taken = min(self.gpu_layers, layers + 1) if self.shares else 0
        on_host = (None,) * (layers + 1 - taken)
        bounds = list(accumulate(self.shares))
        if not taken or not bounds[-1]:
            return on_host + (0,) * taken
        bounds = [bound / bounds[-1] for bound in bounds]
        return on_host + tuple(bisect_right(bounds, index / taken) for index in range(taken))


HOST_ONLY = Layout(0, ())


def wanted_layout(options: LaunchOptions, layers: int, devices: int) -> Layout:
    """What the options ask for, on a machine where the server sees so many GPUs."""
    if not options.gpu or devices < 1:
        return HOST_ONLY
    gpu_layers = layers + 1 if options.gpu_layers is None else min(options.gpu_layers, layers + 1)
    if options.split_mode == "none":
        return Layout(gpu_layers, (1.0,) + (0.0,) * (devices - 1))
    shares = options.tensor_split or (1.0,) * devices
    return Layout(gpu_layers, (*shares, *([0.0] * devices))[:devices])
