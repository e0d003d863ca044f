"""What llama.cpp's own planner is asked about a model, and what its answer adds to our prediction.

`llama-fit-params` lays a model out without loading it, and so knows of whatever our sums may miss: an
architecture that came after them, a buffer of a new kind. But it sees less of the start: no image half,
no draft model, no CUDA context, no slots that share a cache. And it takes more for granted: that all
tokens of a batch want an output, which with a vocabulary of 150,000 words is 300 MiB that a server never
allocates. So its answer is held against our own sums for the same question, and only what it finds
beyond those is added. It can raise a prediction, never lower it.
"""

from __future__ import annotations

from dataclasses import replace

from corral.formats.fit_print import FitPrint
from corral.formats.learned import Learned
from corral.policy.memory.compute import compute_bytes, output_buffer_bytes
from corral.policy.memory.layout import HOST_ONLY, Layout
from corral.policy.memory.prediction import Parts, Prediction

# Two ways to count the same buffers differ by a few per cent. Beyond this one of them is broken, and
# ours has been measured.
SCALE_MAX = 4.0


class Unbelievable(ValueError):
    """An answer that nothing can be learnt from: says why."""


def question(prediction: Prediction, path: str, gpu_layers: int) -> tuple[str, ...]:
    """The arguments for the model at `path`, with so many layers on one GPU.

    Only what changes the answer: of a flag that it doesn't know, it says nothing but that (measured for
    --metrics, --alias, --cache-ram, --embedding, --kv-unified and --mmproj).
    """
    options = prediction.options
    words = ["--fit-print", "on", "-m", path, "-ngl", str(gpu_layers)]
    words += ["-c", str(options.context_tokens), "-np", str(options.sequences)]
    words += ["-b", str(options.batch_tokens), "-ub", str(options.ubatch_tokens)]
    words += ["-ctk", options.cache_type_k, "-ctv", options.cache_type_v]
    words += ["-fa", "auto" if options.flash_attention else "off"]
    words += [] if options.cache_on_gpu else ["--no-kv-offload"]
    words += [] if options.repack else ["--no-repack"]
    words += [] if options.offload_operations else ["--no-op-offload"]
    words += ["--swa-full"] if options.full_window_cache else []
    if options.overrides:
        words += ["-ot", ",".join(f"{rule.pattern}={rule.buffer}" for rule in options.overrides)]
    return tuple(words)


def judge(prediction: Prediction, gpu_layers: int, said: FitPrint) -> Learned:
    """The prediction for this layout beside what it should have been. Raises Unbelievable."""
    asked = _as_asked(prediction)
    if gpu_layers:
        layout = Layout(gpu_layers, (1.0,))
        if len(said.devices) != 1:
            raise Unbelievable(f"it was given one GPU and sees {len(said.devices)}")
        theirs, ours = said.devices[0].total_bytes, _listed(*asked.device_bytes(layout))
        predicted = prediction.total_device_bytes(layout)
    else:
        outputs = output_buffer_bytes(asked.shape, asked.options, asked.run)
        theirs, ours = said.host.total_bytes, _listed(asked.host_parts(HOST_ONLY)) - outputs
        predicted = prediction.total_host_bytes(HOST_ONLY)
    total = predicted + max(0, theirs - ours)
    if total > SCALE_MAX * predicted:
        raise Unbelievable(f"it says {theirs >> 20} MiB where our sum is {ours >> 20} MiB")
    return Learned(total, predicted)


def scale(learned: Learned | None) -> float:
    """What a prediction is to be multiplied by, given what was once made of an answer."""
    if learned is None or not learned.predicted_bytes:
        return 1.0
    ratio = learned.measured_bytes / learned.predicted_bytes
    return ratio if 1.0 < ratio <= SCALE_MAX else 1.0


def _as_asked(prediction: Prediction) -> Prediction:
    """Our sums for what llama-fit-params understands by the question."""
    options = replace(
        prediction.options,
        slots=prediction.options.sequences,
        unified_cache=False,
        embedding=False,
        memory_map=True,
        drafting=frozenset(),
    )
    asked = prediction.with_options(options)
    run = asked.run._replace(outputs=asked.run.ubatch)
    return replace(asked, compute=compute_bytes(asked.shape, options, run))


def _listed(parts: Parts) -> int:
    """What it lists of these."""
    return parts.weights + parts.cache + parts.state + parts.compute
