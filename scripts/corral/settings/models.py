"""The models that settings name, in the config file or as the one model of the environment.

Each comes out whole: defaults filled in, its path absolute, and what its flags say already in its
fields, so that nobody after this has to ask where a number came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corral.errors import SettingsError
from corral.settings import places
from corral.settings.declarations import DECLARATIONS, UNSUPPORTED_KEYS
from corral.settings.flags import managed_flag, set_by_flags
from corral.settings.names import model_name_from_file, model_name_problem
from corral.settings.reading import Given, check_keys, did_you_mean, fit, look_up, shown
from corral.settings.values import ModelSettings, SingleModel

# How many names an error message lists.
LISTED_MAX = 20
# The rows of one model, by field, and the key of each within the model's entry.
_ROWS = {
    row.attribute.removeprefix("model."): row for row in DECLARATIONS if row.attribute.startswith("model.")
}
_KEYS = {field: row.keys[0].removeprefix("models.*.") for field, row in _ROWS.items()}


@dataclass(frozen=True)
class Models:
    """The config file's models, and the names of those that this version leaves out."""

    known: Mapping[str, ModelSettings]
    left_out: frozenset[str]
    warnings: tuple[str, ...]

    def canonical(self, name: str, where: str, *, more_to_come: bool) -> str | None:
        """The model that `name` means, itself or by an alias; None for one that is left out.

        With `more_to_come`, files on the disk may be models too, and an unknown name stays as it is.
        """
        if name in self.known:
            return name
        for model in self.known.values():
            if name in model.aliases:
                return model.name
        if name in self.left_out:
            return None
        if more_to_come:
            return name
        names = ", ".join(list(self.known)[:LISTED_MAX])
        right = f"one of {names}" if names else "a model of the config file, which has none"
        raise SettingsError(f"{where} is {shown(name)}; it must be {right}{did_you_mean(name, self.known)}")


def make_model(
    name: str, path: Path, *, gpu_layers: int, flags: Sequence[str] = (), **fields: Any
) -> ModelSettings:
    """A model with the declared defaults, then `fields`, then what `flags` say."""
    in_flags, from_flags = set_by_flags(flags)
    values = {field: row.default for field, row in _ROWS.items()}
    values |= {"parallel": None, "n_gpu_layers": gpu_layers}
    values |= fields
    values |= from_flags
    values |= {"name": name, "path": path, "flags": tuple(flags), "in_flags": in_flags}
    # -1 means the CPU here, as 0 does; to llama-server it would mean the opposite.
    values["n_gpu_layers"] = max(0, values["n_gpu_layers"])
    return ModelSettings(**values)


def read_models(given: Given, base: Path, gpu_layers: int) -> Models:
    """The `models` section. A relative model_path lies below `base`."""
    known: dict[str, ModelSettings] = {}
    left_out: set[str] = set()
    warnings: list[str] = []
    for name, entry in given.config.get("models", {}).items():
        key = f"models.{name}"
        where = given.in_config(key)
        problem = model_name_problem(name)
        if problem is not None:
            raise SettingsError(f"{where}: a model's name {problem}")
        if not isinstance(entry, dict):
            raise SettingsError(f"{where} is {shown(entry)}; it must be an object with a model_path")
        unsupported = [word for word in entry if f"models.*.{word}" in UNSUPPORTED_KEYS]
        if unsupported:
            warnings.append(f"{where} has {unsupported[0]}, not supported yet by this version: left out")
            left_out.add(name)
            continue
        warnings += check_keys(given, entry, "models.*", key)
        known[name] = _read_model(given, name, entry, base, gpu_layers)
        warnings += _overruled(known[name], entry, where)
    _check_aliases(given, known)
    return Models(known, frozenset(left_out), tuple(warnings))


def _read_model(
    given: Given, name: str, entry: Mapping[str, Any], base: Path, gpu_layers: int
) -> ModelSettings:
    fields: dict[str, Any] = {}
    for field, row in _ROWS.items():
        present, value = look_up(entry, _KEYS[field])
        if present:
            fields[field] = fit(row.kind, value, given.in_config(f"models.{name}.{_KEYS[field]}"))
    if "path" not in fields:
        missing = given.in_config(f"models.{name}.model_path")
        raise SettingsError(f"{missing} is missing; it must be the path of the model's file")
    path = places.absolute(fields.pop("path"), base, given.home())
    flags = fields.pop("flags", ())
    _refuse_managed(flags, given.in_config(f"models.{name}.flags"))
    return make_model(name, path, gpu_layers=gpu_layers, flags=flags, **fields)


def _overruled(model: ModelSettings, entry: Mapping[str, Any], where: str) -> list[str]:
    """One warning if flags and params say the same thing, since only one of them can be meant."""
    twice = sorted(model.in_flags & entry.get("params", {}).keys())
    return [f"{where}: flags and params both set {', '.join(twice)}; the flags win"] if twice else []


def _refuse_managed(flags: Sequence[str], where: str) -> None:
    flag = managed_flag(flags)
    if flag is not None:
        raise SettingsError(f"{where} has {flag}, which the gateway manages itself; it must be left out")


def _check_aliases(given: Given, models: Mapping[str, ModelSettings]) -> None:
    """A name means one model: it is nobody else's alias and nobody else's name."""
    owners = {name: name for name in models}
    for model in models.values():
        for alias in model.aliases:
            owner = owners.setdefault(alias, model.name)
            if owner != model.name:
                where = given.in_config(f"models.{model.name}.aliases")
                raise SettingsError(f"{where} has {shown(alias)}, which means {owner}; it must be unique")


def read_single_model(given: Given, values: Mapping[str, Any], models_directory: Path) -> SingleModel | None:
    """The one model that the environment names, if it names one. MODEL_PATH beats MODEL_NAME."""
    path = values["single.path"]
    if path is None and values["single.file"] is not None:
        file: str = values["single.file"]
        file += "" if file.endswith(".gguf") else ".gguf"
        path = (values["single.directory"] or models_directory) / file
    if path is None:
        return None
    _refuse_managed(values["single.flags"], "EXTRA_ARGS")
    model = make_model(
        model_name_from_file(path.name.removesuffix(".gguf")),
        path,
        gpu_layers=values["single.n_gpu_layers"],
        flags=values["single.flags"],
        n_ctx=values["single.n_ctx"],
    )
    return SingleModel(model, values["single.port"])
