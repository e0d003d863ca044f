"""What a model takes wherever it is put: the prediction, corrected by what was measured.

The guard asks for bytes as a function of where the layers go (`placement.Footprint`). Here the answer
comes from the file and the flags, times a margin, and times more if a second opinion was asked for and
says more; or, for a layout that has been loaded before, from what it really took, with the small margin
that a measurement deserves.

A file that can't be read has a footprint too: about its own size. The engine will say what is wrong
with it, and says it better than we could.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from corral.policy.fit import Suggestions, what_would_fit, what_would_fit_on_host
from corral.policy.learning import Learned, LearnedKey, Source, estimate, learned_key
from corral.policy.memory import HOST_ONLY, Layout, Parts, Prediction, second_opinion
from corral.policy.placement import HOST, Placement

Memory = Callable[[LearnedKey], Learned | None]


class Share(NamedTuple):
    """What a model takes on one device, and how that comes about."""

    device: str
    bytes: int  # to be reserved
    parts: Parts  # the bare prediction
    source: Source  # of `bytes`


class PredictedFootprint:
    def __init__(
        self,
        prediction: Prediction,
        fingerprint: str,
        recall: Memory,
        *,
        gpus: bool,
        layers_fixed: bool,
        multiplier: float,
    ) -> None:
        self.prediction = prediction
        self.layer_count = prediction.layout(1).gpu_layers if gpus else 0
        self.layers_fixed = layers_fixed
        self._fingerprint = fingerprint
        self._recall = recall
        self._multiplier = multiplier

    def spread(self, shares: Sequence[float], layers: int) -> tuple[int, ...]:
        sizes = self._gpu_sizes(Layout(layers, tuple(shares)))
        learned = self._recall(self.gpu_key(layers))
        factor = estimate(sum(sizes), learned, self._multiplier * self._scale).factor
        return tuple(math.ceil(size * factor) for size in sizes)

    def host_bytes(self, layers: int) -> int:
        learned = self._recall(self.host_key(layers))
        # Where there are GPUs, the second opinion is on what these will hold.
        scale = 1.0 if self.layer_count else self._scale
        predicted = self._host_size(layers)
        # A process touches all its memory with its first full prompt, and may never get one (measured:
        # a third was missing). So what it was seen to hold can raise the prediction, never lower it.
        return max(round(predicted * scale), estimate(predicted, learned, self._multiplier * scale).bytes)

    def _gpu_sizes(self, layout: Layout) -> list[int]:
        return [device.total for device in self.prediction.device_bytes(layout)]

    def _host_size(self, layers: int) -> int:
        return self.prediction.total_host_bytes(_host_layout(layers))

    # For people --------------------------------------------------------------------------------

    @property
    def context_tokens(self) -> int:
        """Of all slots together."""
        return self.prediction.run.cells * self.prediction.run.streams

    @property
    def slots(self) -> int:
        return self.prediction.run.sequences

    def shares(self, placement: Placement) -> tuple[Share, ...]:
        """What it takes of each device of a placement, the host last."""
        gpus = self.prediction.device_bytes(_layout(placement))
        parts = [*gpus, self.prediction.host_parts(_host_layout(placement.layers))]
        sources = [self._source(self.gpu_key(placement.layers))] * len(placement.gpus)
        sources.append(self._source(self.host_key(placement.layers)))
        return tuple(map(Share, placement.needs, placement.needs.values(), parts, sources))

    def would_fit(self, free: Mapping[str, int]) -> Suggestions:
        """What would fit instead, into so much free memory by device."""
        gpus = sorted((max(0, size) for id, size in free.items() if id != HOST), reverse=True)
        multiplier = self._multiplier * self._scale
        if self.layer_count and gpus:
            # Each takes a context of its own, so with one alone there may be more room than with all.
            tries = (what_would_fit(self.prediction, some, multiplier) for some in (gpus[:1], gpus))
            best = max(tries, key=lambda found: (found.context_tokens or 0, found.gpu_layers or 0))
            fits_beside = best.gpu_layers and self.host_bytes(best.gpu_layers) <= free.get(HOST, 0)
            return best if fits_beside else best._replace(gpu_layers=None)
        return what_would_fit_on_host(self.prediction, max(0, free.get(HOST, 0)), multiplier)

    # What is learnt ----------------------------------------------------------------------------

    def gpu_key(self, layers: int) -> LearnedKey:
        return learned_key(self._fingerprint, self.prediction.options, layers)

    def host_key(self, layers: int) -> LearnedKey:
        key = self.gpu_key(layers)
        return key._replace(flags=f"{key.flags} on the host")

    @property
    def opinion_key(self) -> LearnedKey:
        """A second opinion is on the layout that the model is meant to have, and counts for all others."""
        key = self.gpu_key(self.layer_count) if self.layer_count else self.host_key(0)
        return key._replace(flags=f"{key.flags} by llama-fit-params")

    @property
    def is_open(self) -> bool:
        """Whether one would be news: there is none, and no measurement of the GPUs, which is better."""
        measured = self._recall(self.gpu_key(self.layer_count)) if self.layer_count else None
        return measured is None and self._recall(self.opinion_key) is None

    @property
    def _scale(self) -> float:
        return second_opinion.scale(self._recall(self.opinion_key))

    def predicted_gpu_bytes(self, placement: Placement) -> int:
        """The bare prediction for all GPUs of a placement."""
        return sum(self._gpu_sizes(_layout(placement))) if placement.gpus else 0

    def predicted_host_bytes(self, placement: Placement) -> int:
        return self._host_size(placement.layers)

    def _source(self, key: LearnedKey) -> Source:
        return Source.PREDICTED if self._recall(key) is None else Source.LEARNED


def _host_layout(layers: int) -> Layout:
    """To the host it makes little difference on how many GPUs the layers lie."""
    return Layout(layers, (1.0,)) if layers else HOST_ONLY


def _layout(placement: Placement) -> Layout:
    if not placement.gpus:
        return HOST_ONLY
    return Layout(placement.layers, tuple(map(float, placement.tensor_split)) or (1.0,))


class UnknownFootprint:
    """A file without a header that can be read."""

    layers_fixed = False
    context_tokens = slots = None

    def __init__(self, size_bytes: int, *, gpus: bool) -> None:
        self._size_bytes = size_bytes
        self.layer_count = 1 if gpus else 0

    def spread(self, shares: Sequence[float], layers: int) -> tuple[int, ...]:
        whole = sum(shares)
        return tuple(math.ceil(self._size_bytes * share / whole) for share in shares)

    def host_bytes(self, layers: int) -> int:
        return 0 if layers else self._size_bytes

    def shares(self, placement: Placement) -> tuple[Share, ...]:
        return tuple(
            Share(id, size, Parts(weights=size), Source.FILE_SIZE) for id, size in placement.needs.items()
        )

    def would_fit(self, free: Mapping[str, int]) -> None:
        """Nobody knows."""


AnyFootprint = PredictedFootprint | UnknownFootprint
