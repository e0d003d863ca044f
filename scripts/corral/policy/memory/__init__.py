"""How much memory a llama-server will take: predicted from the model file and the command line.

`options` reads the command line, `shape` the file; `run` says what the server makes of both. `cache`,
`compute` and `weights` are the three sums, `layout` says which layer lies where, and `prediction` puts
it together. It serves the guard before every start, so that it never has to try what can't work.
`second_opinion` holds it against what llama.cpp's own planner says.

    options = read_options(argv, environment)
    prediction = predict([gguf], options)
    layout = prediction.layout(devices=1)
    prediction.total_device_bytes(layout), prediction.total_host_bytes(layout)
"""

from __future__ import annotations

from corral.policy.memory.layout import HOST_ONLY, Layout, wanted_layout
from corral.policy.memory.options import CACHE_TYPES, LaunchOptions, Override, read_options
from corral.policy.memory.prediction import CONTEXT_BYTES, HostBytes, Parts, Prediction, predict
from corral.policy.memory.shape import Unpredictable

__all__ = [
    "CACHE_TYPES",
    "CONTEXT_BYTES",
    "HOST_ONLY",
    "HostBytes",
    "LaunchOptions",
    "Layout",
    "Override",
    "Parts",
    "Prediction",
    "Unpredictable",
    "predict",
    "read_options",
    "wanted_layout",
]
