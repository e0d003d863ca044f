"""What would fit instead, for somebody whose model does not.

A refusal that only says "too big" sends a person off to try numbers. This says which context, which
cache, or how many layers would have fitted into what is free, by the same sums that refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from corral.formats.size import amount
from corral.policy.learning import UNLEARNED_MULTIPLIER
from corral.policy.memory import HOST_ONLY, Layout, Prediction

CONTEXT_STEP = 256
# A shorter context is no help to anybody.
CONTEXT_MIN = 512
SMALL_CACHE = "q8_0"  # half the size, at next to no loss


class Suggestions(NamedTuple):
    """Each is one change that would be enough by itself; None: no such change is."""

    needed_bytes: int
    available_bytes: int
    context_tokens: int | None  # the longest
    small_cache: bool  # whether keeping everything else and storing the cache smaller is enough
    small_cache_context_tokens: int | None  # the longest context with that
    gpu_layers: int | None  # the most

    @property
    def with_small_cache(self) -> int | None:
        """A context worth naming beside the plain one: None if a smaller cache gains nothing."""
        plain, small = self.context_tokens or 0, self.small_cache_context_tokens or 0
        return small if small > plain else None

    @property
    def ways(self) -> list[str]:
        """What to do, one or the other."""
        ways = []
        if self.small_cache:
            ways.append(f"a smaller cache (--cache-type-k {SMALL_CACHE} --cache-type-v {SMALL_CACHE})")
        if self.context_tokens is not None:
            ways.append(f"a context of {self.context_tokens} tokens (--ctx-size {self.context_tokens})")
        if self.with_small_cache and not self.small_cache:
            ways.append(f"a context of {self.with_small_cache} tokens and a cache of type {SMALL_CACHE}")
        if self.gpu_layers is not None:
            ways.append(f"{self.gpu_layers} layers on the GPU (--gpu-layers {self.gpu_layers})")
        return ways

    def text(self) -> str:
        """One sentence for an error message."""
        needs = f"It needs {amount(self.needed_bytes)} and {amount(self.available_bytes)} are free."
        if not self.ways:
            return f"{needs} No context and no number of layers would make it fit."
        return f"{needs} It would fit with {', or with '.join(self.ways)}."


def what_would_fit(
    prediction: Prediction, available_bytes: Sequence[int], multiplier: float = UNLEARNED_MULTIPLIER
) -> Suggestions:
    """With so much free on each GPU. Several are filled in proportion to what is free on them."""
    wanted = prediction.layout(len(available_bytes))
    shares = tuple(float(free) for free in available_bytes)

    def needs(candidate: Prediction, gpu_layers: int) -> list[int]:
        devices = candidate.device_bytes(Layout(gpu_layers, shares))
        return [round(device.total * multiplier) for device in devices]

    return _Search(prediction, available_bytes, needs, wanted.gpu_layers).suggestions()


def what_would_fit_on_host(
    prediction: Prediction,
    available_bytes: int,
    multiplier: float = UNLEARNED_MULTIPLIER,
    *,
    count_mapped: bool = True,
) -> Suggestions:
    """The same without a GPU, where only the context can give. Pages of the file count or not."""

    def needs(candidate: Prediction, _: int) -> list[int]:
        host = candidate.host_bytes(HOST_ONLY)
        return [round((host.total if count_mapped else host.anonymous_bytes) * multiplier)]

    return _Search(prediction, [available_bytes], needs, 0).suggestions()


class _Search:
    def __init__(
        self,
        prediction: Prediction,
        available_bytes: Sequence[int],
        needs: Callable[[Prediction, int], list[int]],
        gpu_layers: int,
    ) -> None:
        self._prediction = prediction
        self._available = available_bytes
        self._needs = needs  # bytes by place, with so many layers on the GPU
        self._gpu_layers = gpu_layers

    def suggestions(self) -> Suggestions:
        small = self._with_cache(SMALL_CACHE)
        possible = small.shape.heads_in_blocks and small.run.flash_attention
        gains = possible and sum(small.cache) < sum(self._prediction.cache)
        return Suggestions(
            needed_bytes=sum(self._needs(self._prediction, self._gpu_layers)),
            available_bytes=sum(self._available),
            context_tokens=self._longest_context(self._prediction),
            small_cache=gains and self._fits(small, self._gpu_layers),
            small_cache_context_tokens=self._longest_context(small) if gains else None,
            gpu_layers=_largest(1, self._gpu_layers - 1, partial(self._fits, self._prediction)),
        )

    def _fits(self, candidate: Prediction, gpu_layers: int) -> bool:
        needed = self._needs(candidate, gpu_layers)
        return all(need <= free for need, free in zip(needed, self._available, strict=True))

    def _with_cache(self, cache_type: str) -> Prediction:
        options = replace(
            self._prediction.options,
            cache_type_k=cache_type,
            cache_type_v=cache_type,
            draft_cache_type_k=cache_type,
            draft_cache_type_v=cache_type,
        )
        return self._prediction.with_options(options)

    def _longest_context(self, candidate: Prediction) -> int | None:
        """The longest context below the one asked for that fits."""
        current = candidate.run.cells * candidate.run.streams

        def fits(steps: int) -> bool:
            options = replace(candidate.options, context_tokens=steps * CONTEXT_STEP)
            return self._fits(candidate.with_options(options), self._gpu_layers)

        steps = _largest(CONTEXT_MIN // CONTEXT_STEP, current // CONTEXT_STEP - 1, fits)
        return None if steps is None else steps * CONTEXT_STEP


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number from low to high that fits, if smaller ones always fit better."""
    if high < low or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
