"""What a model is, for all who deal with one.

A model is what the settings say about it, joined with what its file says about itself. Policy makes
command lines and estimates of it, a driver finds it on the disk, the fleet and the handlers know it by
name. Policy and drivers may not import each other, so it stands below both, and above the settings
because it begins with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from corral.settings import ModelSettings


@dataclass(frozen=True)
class Model(ModelSettings):
    """`embedding` is true if the settings ask for it or the file's metadata say so."""

    size_bytes: int  # of all its shards, without the projector
    modified_at: int  # seconds since 1970
    mmproj: Path | None  # its projector for images or sound, to be loaded with it
    architecture: str | None
    context_length: int | None  # what it was trained with, in tokens
    pooling: str | None  # how its file says to make one vector of many: mean, cls, last or rank
    problem: str | None  # why its file can't be used; llama-server will say more when it tries


@dataclass(frozen=True)
class Catalogue:
    """All models by name. An alias never hides a name and means one model only."""

    models: Mapping[str, Model]
    aliases: Mapping[str, str]
    warnings: tuple[str, ...]

    def find(self, name: str) -> Model | None:
        return self.models.get(self.aliases.get(name, name))
