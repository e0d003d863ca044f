"""Models for tests: as the settings make them by default, with whatever a test wants to differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corral.catalogue import Model
from corral.settings import make_model


def a_model(name: str = "tiny", *, flags: Sequence[str] = (), gpu_layers: int = 99, **facts: Any) -> Model:
    """`facts` are fields of the model, or of its settings."""
    own = {field.name for field in dataclasses.fields(Model)}
    entry = make_model(name, Path(f"/models/{name}.gguf"), gpu_layers=gpu_layers, flags=flags)
    values = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    defaults: dict[str, Any] = {
        "size_bytes": 1 << 20,
        "modified_at": 1_700_000_000,
        "mmproj": None,
        "architecture": "llama",
        "context_length": 8192,
        "pooling": None,
        "problem": None,
    }
    assert facts.keys() <= own, f"no such field: {facts.keys() - own}"
    return Model(**values | defaults | facts)
