"""Which models there are: what lies on the disk, joined with what the settings say.

Names follow from file names and places alone, so that the same files always give the same models. A
file that can't be used is listed all the same, with its problem: whoever asks for it should hear why it
doesn't work, not that it doesn't exist. Reading takes some milliseconds a model, for the vocabularies,
so this is done at a start and when files have changed, never for a request.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from corral.catalogue import Catalogue, Model
from corral.drivers import model_files
from corral.drivers.model_files import ModelFile
from corral.formats.gguf import Kind, Pooling
from corral.settings import ModelSettings, Settings, make_model, model_name_from_file

# What the name of a projector says beside the name of its model.
_PROJECTOR_WORDS = re.compile(r"(?:^|[-_.])(?:mmproj|model|bf16|f16|fp16|f32|fp32|q8_0)(?=[-_.]|$)")


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """A model's file, or the first of its shards, and what it says about itself."""

    name: str
    path: Path
    size_bytes: int
    modified_at: int
    mmproj: Path | None
    architecture: str | None
    context_length: int | None
    pooling: str | None
    embedding: bool
    problem: str | None


class Scan(NamedTuple):
    models: tuple[FoundModel, ...]
    warnings: tuple[str, ...]


def catalogue(settings: Settings) -> Catalogue:
    """The models that the settings name, and those found on the disk if the settings say so."""
    single = settings.single_model
    entries = list(settings.models.values()) if single is None else [single.model]
    models = {entry.name: _joined(entry, inspect(entry.path)) for entry in entries}
    warnings: list[str] = []
    if settings.herd.scan_models:
        found = scan(settings.paths.models)
        warnings += found.warnings
        for file in _unnamed(found.models, models, warnings):
            entry = make_model(file.name, file.path, gpu_layers=settings.herd.gpu_layers)
            models[file.name] = _joined(entry, file)
    aliases = _aliases(models, warnings)
    return Catalogue(MappingProxyType(models), MappingProxyType(aliases), tuple(warnings))


def scan(directory: Path) -> Scan:
    """Every model below `directory`, the nearest first, each with a name of its own."""
    warnings: list[str] = []
    files = [model_files.look_at(path) for path in model_files.find(directory, warnings)]
    neighbours: dict[Path, list[Path]] = defaultdict(list)
    projectors: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        if file.is_model:
            neighbours[file.path.parent].append(file.path)
        elif file.is_projector:
            projectors[file.path.parent].append(file.path)
    models = []
    for name, file in _named((file for file in files if file.is_model), directory, warnings):
        home = file.path.parent
        models.append(_found(name, file, _projector_of(file.path, neighbours[home], projectors[home])))
    attached = {model.mmproj for model in models}
    warnings += [
        f"{path} fits none or several of the models beside it: attached to none. "
        "Give it a folder with its model, or name it in the model's flags with --mmproj"
        for home, paths in projectors.items()
        if neighbours[home]
        for path in paths
        if path not in attached
    ]
    return Scan(tuple(models), tuple(warnings))


def inspect(path: Path) -> FoundModel:
    """What the file says that somebody has named as a model."""
    file = model_files.look_at(path)
    around = model_files.beside(path)
    projectors = [other for other in around if "mmproj" in other.name.lower()]
    neighbours = [
        other for other in around if other not in projectors and not model_files.is_further_shard(other)
    ]
    mmproj = _projector_of(path, neighbours, projectors)
    return _found(model_name_from_file(model_files.stem(path)), file, mmproj)


def _found(name: str, file: ModelFile, mmproj: Path | None) -> FoundModel:
    header, problem = file.header, file.problem
    if header is not None and header.kind is not Kind.MODEL:
        problem = f"{file.path} is a {header.kind.name.lower()} file, not a model"
    pooling = header.pooling_type if header else None
    return FoundModel(
        name=name,
        path=file.path,
        size_bytes=file.size_bytes,
        modified_at=file.modified_at,
        mmproj=mmproj,
        architecture=header.architecture if header else None,
        context_length=header.context_length if header else None,
        pooling=None if pooling in (None, Pooling.NONE) else pooling.name.lower(),
        embedding=header is not None and header.is_embedding,
        problem=problem,
    )


def _named(files: Iterable[ModelFile], root: Path, warnings: list[str]) -> Iterator[tuple[str, ModelFile]]:
    """Names for files: the first of a name has it, the second is called by its directories as well."""
    owners: dict[str, Path] = {}
    for file in files:
        stem = model_files.stem(file.path)
        plain = model_name_from_file(stem)
        longer = model_name_from_file("/".join((*file.path.parent.relative_to(root).parts, stem)))
        name = longer if plain in owners else plain
        if name in owners:
            warnings.append(f"{file.path} would be called {name} like {owners[name]}: left out. Rename one")
            continue
        owners[name] = file.path
        yield name, file


def _projector_of(model: Path, neighbours: Sequence[Path], projectors: Sequence[Path]) -> Path | None:
    """The projector that lies beside a model, if there is no doubt that it is this model's."""
    if len(neighbours) == 1 and len(projectors) == 1:
        return projectors[0]
    name = model.name.lower()
    fitting = [path for path in projectors if _projects_for(path) and name.startswith(_projects_for(path))]
    return fitting[0] if len(fitting) == 1 else None


def _projects_for(projector: Path) -> str:
    """How the name of its model begins: mmproj-gemma-3-4b-it-f16 → gemma-3-4b-it; often nothing."""
    return _PROJECTOR_WORDS.sub("", projector.stem.lower()).strip("-_.")


def _unnamed(
    found: Sequence[FoundModel], models: dict[str, Model], warnings: list[str]
) -> Iterator[FoundModel]:
    """Those of the found models that the settings have not named already."""
    named = {os.path.realpath(model.path) for model in models.values()}
    for file in found:
        if os.path.realpath(file.path) in named:
            continue
        if file.name in models:
            warnings.append(f"{file.path} is left out: the config file has another model named {file.name}")
            continue
        yield file


def _joined(entry: ModelSettings, file: FoundModel) -> Model:
    own = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    return Model(
        **own | {"embedding": entry.embedding or file.embedding},
        size_bytes=file.size_bytes,
        modified_at=file.modified_at,
        mmproj=file.mmproj,
        architecture=file.architecture,
        context_length=file.context_length,
        pooling=file.pooling,
        problem=file.problem,
    )


def _aliases(models: dict[str, Model], warnings: list[str]) -> dict[str, str]:
    """What each alias means. One that is also a model's name goes, from its model too."""
    aliases: dict[str, str] = {}
    for model in list(models.values()):
        for alias in model.aliases:
            if alias in models or alias in aliases:
                owner = aliases.get(alias, alias)
                warnings.append(f"{alias} is no alias of {model.name} any more: it means the model {owner}")
            else:
                aliases[alias] = model.name
        kept = tuple(alias for alias in model.aliases if aliases.get(alias) == model.name)
        models[model.name] = dataclasses.replace(model, aliases=kept)
    return aliases
