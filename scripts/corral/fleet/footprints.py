"""What a model will take, from its files on the disk and the command line that it is started with.

Reading the headers takes up to 50 ms for a large vocabulary (measured). Whoever has requests to serve
meanwhile has it done on another thread.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from corral.catalogue import Model
from corral.drivers import model_files
from corral.formats.gguf import GgufError
from corral.policy.fingerprint import FileFacts, fingerprint
from corral.policy.footprint import AnyFootprint, Memory, PredictedFootprint, UnknownFootprint
from corral.policy.memory import Unpredictable, predict, read_options

log = logging.getLogger("corral.memory")


def measure_out(
    model: Model,
    argv: Sequence[str],
    environment: Mapping[str, str],
    recall: Memory,
    *,
    gpus: bool,
    multiplier: float,
) -> AnyFootprint:
    """`recall` says what loads have really taken; `gpus`, whether the machine has any."""
    try:
        options = read_options(argv, environment)
        shards = model_files.shard_paths(model.path)
        projectors = [Path(options.projector)] if options.projector else []
        drafts = model_files.shard_paths(Path(options.draft)) if options.draft else []
        prediction = predict(
            [model_files.read_header(path) for path in shards],
            options,
            projector=next(map(model_files.read_header, projectors), None),
            draft=[model_files.read_header(path) for path in drafts],
        )
        facts = [file_facts(path) for path in (*shards, *projectors, *drafts)]
    except (OSError, GgufError, Unpredictable) as error:
        log.info("%s can't be predicted, its file's size is taken for it: %s", model.name, error)
        return UnknownFootprint(model.size_bytes, gpus=gpus)
    except Exception:
        # Sums over a stranger's file. A mistake in them must cost a prediction, not a decision half-way.
        log.exception("%s can't be predicted, its file's size is taken for it", model.name)
        return UnknownFootprint(model.size_bytes, gpus=gpus)
    return PredictedFootprint(
        prediction,
        fingerprint(facts),
        recall,
        gpus=gpus,
        layers_fixed="n_gpu_layers" in model.in_flags,
        multiplier=multiplier,
    )


def file_facts(path: Path) -> FileFacts:
    status = path.stat()
    return FileFacts(path.name, status.st_size, status.st_mtime_ns)
