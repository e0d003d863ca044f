"""How many bytes a llama-server will take, on each GPU and on the host, before it is started.

Weights, caches and states are exact, from the file's tensor table and the options. Intermediate
results are within a few per cent. What lies outside llama.cpp's own books is a flat sum: a CUDA context
with its libraries, the process itself, and the image half of a multimodal model.

A prediction is not bound to a place. Ask it for any layout: all on one GPU, spread over several, some
layers on the host, or no GPU at all; asking costs little, so a search for what fits may ask often.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from corral.formats.gguf import Gguf
from corral.policy.memory.cache import cache_bytes, state_bytes
from corral.policy.memory.compute import Compute, compute_bytes, output_buffer_bytes
from corral.policy.memory.layout import Layout, wanted_layout
from corral.policy.memory.options import MIB, LaunchOptions
from corral.policy.memory.run import Run, plan_run
from corral.policy.memory.shape import Shape, read_shape, whole
from corral.policy.memory.weights import Block, Weights, read_weights

# A CUDA context with cuBLAS: 250 to 320 MiB, more on newer cards.
CONTEXT_BYTES = 320 * MIB
# A llama-server without a model: 18 to 25 MB resident, of which the program itself is half.
PROCESS_BYTES = 25_000_000
# Measured between 32,000 and 256,000 words: strings, ids and the two tables between them.
WORD_BYTES = 160
# The image half is loaded whole and needs room to compute: 1.4 times its file.
PROJECTOR_PERCENT = 140
# With several GPUs that have all layers, each keeps four batches' inputs, to work on them in turns.
PIPELINE_COPIES = 4


@dataclass(frozen=True, slots=True)
class Parts:
    """What lies on one GPU, or on the host, by what it is for."""

    weights: int = 0
    cache: int = 0
    state: int = 0
    compute: int = 0
    context: int = 0  # what a process takes without a model: on the host, the vocabulary with it
    projector: int = 0
    draft: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


class HostBytes(NamedTuple):
    """What lies in the host's memory.

    Mapped bytes are the file's own pages: the system may drop and read them again, so whoever is short
    of memory may count them or not. Anonymous ones are the process's alone. The prompt cache starts
    empty and grows with use, up to what --cache-ram allows (None: without a limit).
    """

    mapped_bytes: int
    anonymous_bytes: int
    prompt_cache_bytes_max: int | None

    @property
    def total(self) -> int:
        return self.mapped_bytes + self.anonymous_bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    model: Gguf
    options: LaunchOptions
    shape: Shape
    run: Run
    weights: Weights
    cache: tuple[int, ...]  # by layer
    state: tuple[int, ...]
    compute: Compute
    projector_bytes: int
    draft: Prediction | None

    @property
    def layers(self) -> int:
        return len(self.shape.layers)

    def layout(self, devices: int) -> Layout:
        """What the options ask for on a machine with so many GPUs."""
        return wanted_layout(self.options, self.layers, devices)

    def with_options(self, options: LaunchOptions) -> Prediction:
        """The same files, started differently."""
        own, now = self.options, options
        same = (own.overrides, own.predicts_ahead) == (now.overrides, now.predicts_ahead)
        weights = self.weights if same else read_weights(self.model, self.shape, options)
        draft = self.draft.with_options(options.for_draft()) if self.draft else None
        return _predicted(self.model, options, self.shape, weights, self.projector_bytes, draft)

    # On GPUs --------------------------------------------------------------------------------------

    def device_bytes(self, layout: Layout) -> tuple[Parts, ...]:
        """What each GPU of the layout will hold."""
        caches = self.options.cache_on_gpu
        weights = self._device_weights(layout)
        cache = self._by_device(self.cache if caches else (), layout)
        state = self._by_device(self.state if caches else (), layout)
        compute, draft = self._device_compute(layout), self._draft_bytes(layout)
        projector = self.projector_bytes if self.options.projector_on_gpu else 0
        return tuple(
            Parts(
                weights=weights[device],
                cache=cache[device],
                state=state[device],
                compute=compute[device],
                context=CONTEXT_BYTES,
                projector=projector if device == 0 else 0,
                draft=draft[device],
            )
            for device in range(len(layout.shares))
        )

    def total_device_bytes(self, layout: Layout) -> int:
        return sum(device.total for device in self.device_bytes(layout))

    def _device_weights(self, layout: Layout) -> list[int]:
        output = self.weights.output.bytes + self.weights.tied_bytes
        sizes = self._by_device((*(block.bytes for block in self.weights.layers), output), layout)
        for device, pinned in enumerate(self.weights.pinned[: len(sizes)]):
            sizes[device] += pinned
        return sizes

    def _by_device(self, sizes: Sequence[int], layout: Layout) -> list[int]:
        """These layers' bytes, added up by the GPU on which they lie."""
        totals = [0] * len(layout.shares)
        for size, place in zip(sizes, layout.places(self.layers), strict=False):
            if place is not None:
                totals[place] += size
        if self.options.split_mode in ("row", "tensor"):
            # Not whole layers but a part of each goes to every GPU.
            everything, unit = sum(totals), sum(layout.shares) or 1
            return [round(everything * share / unit) for share in layout.shares]
        return totals

    def _device_compute(self, layout: Layout) -> list[int]:
        sizes = [0] * len(layout.shares)
        *layers, output = layout.places(self.layers)
        for place in layers:
            if place is not None:
                sizes[place] = self.compute.device_layers_bytes
        if output is not None:
            sizes[output] = max(sizes[output], self.compute.device_output_bytes)
        if sizes and self.options.offload_operations and (borrowed := self._borrowed_bytes(layout)):
            # Large batches are computed on the first GPU even for layers on the host: it borrows their
            # weights, one matrix at a time.
            sizes[0] = max(sizes[0], self.compute.device_layers_bytes) + borrowed
        copies = self._pipeline_bytes(layout)
        sizes = [size + copies if size else 0 for size in sizes]
        return [size * (2 if self.options.predicts_ahead else 1) for size in sizes]

    def _borrowed_bytes(self, layout: Layout) -> int:
        """The largest matrix that stays on the host."""
        return max(
            block.largest_bytes if place is None else block.largest_host_bytes
            for block, place in self._placed_blocks(layout)
        )

    def _placed_blocks(self, layout: Layout) -> Iterable[tuple[Block, int | None]]:
        """Each layer, and the output, with the GPU on which it lies."""
        return zip((*self.weights.layers, self.weights.output), layout.places(self.layers), strict=True)

    def _pipeline_bytes(self, layout: Layout) -> int:
        """What working on several batches at a time takes: copies of the inputs, here and on the host."""
        several = sum(share > 0 for share in layout.shares) > 1 and layout.gpu_layers > self.layers
        usual = self.options.split_mode == "layer" and not self.options.overrides
        if not (several and usual and self.options.cache_on_gpu):
            return 0
        return (PIPELINE_COPIES - 1) * self.compute.inputs_bytes

    def _draft_bytes(self, layout: Layout) -> list[int]:
        if self.draft is None:
            return [0] * len(layout.shares)
        wanted = _layout_of(self.draft, layout)
        own = self.draft.device_bytes(wanted._replace(shares=layout.shares))
        return [device.total - device.context for device in own]

    # On the host ----------------------------------------------------------------------------------

    def host_bytes(self, layout: Layout) -> HostBytes:
        """What the host's memory will hold beside the GPUs of the layout."""
        mapped, _ = self._host_weights(layout)
        if self.draft is not None:
            mapped += self.draft.host_bytes(_layout_of(self.draft, layout)).mapped_bytes
        anonymous = self.host_parts(layout).total - mapped
        return HostBytes(mapped, anonymous, self.options.prompt_cache_bytes_max)

    def host_parts(self, layout: Layout) -> Parts:
        """The same by what it is for."""
        draft = 0
        if self.draft is not None:
            own = self.draft.host_parts(_layout_of(self.draft, layout))
            draft = own.total - PROCESS_BYTES
        on_gpu = layout.shares and self.options.projector_on_gpu
        return Parts(
            weights=sum(self._host_weights(layout)),
            cache=self._on_host(self.cache, layout),
            state=self._on_host(self.state, layout),
            compute=self._host_compute(layout) + output_buffer_bytes(self.shape, self.options, self.run),
            context=PROCESS_BYTES + WORD_BYTES * self.shape.vocabulary,
            projector=0 if on_gpu else self.projector_bytes,
            draft=draft,
        )

    def total_host_bytes(self, layout: Layout) -> int:
        return self.host_bytes(layout).total

    def _host_weights(self, layout: Layout) -> tuple[int, int]:
        """Bytes of the file that stay mapped, and bytes of copies."""
        plain, repacked = self.weights.input_bytes, 0
        for block, place in self._placed_blocks(layout):
            plain += block.host_bytes + (block.bytes if place is None else 0)
            repacked += block.repacked_bytes if place is None else 0
        if layout.shares or not self.options.repack:
            repacked = 0  # beside a GPU weights stay as they are, ready to be lent to it
        elif self.weights.tied_repacked:
            # The output matrix is rearranged, and the token embeddings can't be.
            plain += 0 if self.options.memory_map else self.weights.tied_bytes
            repacked += self.weights.tied_bytes
        return (plain, repacked) if self.options.memory_map else (0, plain)

    def _on_host(self, sizes: Sequence[int], layout: Layout) -> int:
        """These layers' caches or states, as far as they are kept on the host."""
        if not self.options.cache_on_gpu:
            return sum(sizes)
        *places, _ = layout.places(self.layers)
        return sum(size for size, place in zip(sizes, places, strict=True) if place is None)

    def _host_compute(self, layout: Layout) -> int:
        computes = any(place is None or block.host_bytes for block, place in self._placed_blocks(layout))
        size = self.compute.host_layers_bytes if computes else self.compute.host_inputs_bytes
        size += self._pipeline_bytes(layout)
        return size * (2 if self.options.predicts_ahead else 1)


def predict(
    model: Sequence[Gguf],
    options: LaunchOptions,
    *,
    projector: Gguf | None = None,
    draft: Sequence[Gguf] = (),
) -> Prediction:
    """What a model of these files (one, or all shards) will take, with the files that its flags name."""
    file = whole(model)
    shape = read_shape(file)
    weights = read_weights(file, shape, options)
    projector_bytes = projector.size_bytes * PROJECTOR_PERCENT // 100 if projector else 0
    drafting = predict(draft, options.for_draft()) if draft else None
    return _predicted(file, options, shape, weights, projector_bytes, drafting)


def _layout_of(draft: Prediction, layout: Layout) -> Layout:
    """Where a draft model's layers go beside a model that is laid out like this."""
    return wanted_layout(draft.options, draft.layers, len(layout.shares))


def _predicted(
    model: Gguf,
    options: LaunchOptions,
    shape: Shape,
    weights: Weights,
    projector_bytes: int,
    draft: Prediction | None,
) -> Prediction:
    run = plan_run(shape, options)
    return Prediction(
        model=model,
        options=options,
        shape=shape,
        run=run,
        weights=weights,
        cache=cache_bytes(shape, options, run),
        state=state_bytes(shape, options, run),
        compute=compute_bytes(shape, options, run),
        projector_bytes=projector_bytes,
        draft=draft,
    )
