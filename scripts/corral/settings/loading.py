"""Puts the settings together: finds the files, reads every declared row, and settles what hangs together.

What follows from several settings at once is decided here: the smaller of two limits, a switch that
turns a time-out off, names that must be models, defaults that lie below DATA_DIR.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corral.errors import SettingsError
from corral.settings import places
from corral.settings.children import inheritable
from corral.settings.declarations import BELOW_DATA, DECLARATIONS, UNSUPPORTED_VARIABLES
from corral.settings.devices import visible_devices
from corral.settings.models import Models, read_models, read_single_model
from corral.settings.reading import Found, Given, check_keys
from corral.settings.sources import read_config, read_dotenv
from corral.settings.values import Access, Herd, Logs, Paths, Server, Settings

# Attribute ("server.port") to value, until all of them are right and become Settings.
Values = dict[str, Any]

_ROWS = {row.attribute: row for row in DECLARATIONS if not row.attribute.startswith("model.")}


def load_from(environ: Mapping[str, str], cwd: Path, config_path: Path | None) -> Settings:
    """The settings that this environment, `.env` in `cwd` and the config file give."""
    given = _gather(environ, cwd, config_path)
    values = {attribute: _value(given, attribute) for attribute in _ROWS}
    _settle_paths(given, values)
    _settle_herd(values)
    if values["server.tls_key_file"] is not None and values["server.tls_cert_file"] is None:
        raise SettingsError(
            "TLS_KEY_FILE is set and TLS_CERT_FILE is not; it must name the key's certificate"
        )
    warnings = _warnings(given, values)
    models = read_models(given, values["paths.models"], values["herd.gpu_layers"])
    warnings += models.warnings
    single = read_single_model(given, values, values["paths.models"])
    if single is None:
        _settle_names(given, values, models)
    else:
        if models.known:
            warnings.append(
                f"the models of {given.config_file} are left out: the environment names the only one"
            )
        models = Models({}, frozenset(), ())
        values |= {"herd.scan_models": False, "herd.preload": ("*",), "default_model": None}
    return Settings(
        server=Server(**_group(values, "server")),
        access=Access(**_group(values, "access")),
        logs=Logs(**_group(values, "logs")),
        paths=Paths(**_group(values, "paths")),
        herd=Herd(**_group(values, "herd")),
        instance_id=values["instance_id"],
        default_model=values["default_model"],
        single_model=single,
        models=models.known,
        visible_devices=visible_devices(values["visible.cuda"], values["visible.nvidia"]),
        warnings=tuple(warnings),
        inherited_environment=inheritable({**given.dotenv, **environ}),
    )


def _gather(environ: Mapping[str, str], cwd: Path, config_path: Path | None) -> Given:
    """Both files, read. The config file is -c, else CONFIG_PATH, else the first one found, else none."""
    dotenv_file = cwd / ".env"
    given = Given(environ, read_dotenv(dotenv_file), dotenv_file, cwd, {}, None)
    named = given.find(_ROWS["paths.config_file"])
    if config_path is not None:
        named = Found(cwd / config_path, "-c/--config")
    path = places.config_file(cwd, _data_directory(given)) if named is None else named.value
    if path is None:
        return given
    if named is not None and not places.is_file(path):
        raise SettingsError(f"{named.where} is {path}, which is not a file; it must be a config file in JSON")
    return dataclasses.replace(given, config=read_config(path), config_file=path)


def _data_directory(given: Given) -> Path:
    found = given.find(_ROWS["paths.data"])
    return found.value if found is not None else places.data_directory(given.cwd)


def _value(given: Given, attribute: str) -> Any:
    row = _ROWS[attribute]
    found = given.find(row)
    if found is not None:
        return found.value
    if isinstance(row.default, str) and row.default.startswith(BELOW_DATA):
        return _data_directory(given) / row.default.removeprefix(BELOW_DATA)
    return row.default


def _settle_paths(given: Given, values: Values) -> None:
    environ, data = given.environ, _data_directory(given)
    values["instance_id"] = values["instance_id"] or places.host_name()
    values["paths.data"] = data
    values["paths.config_file"] = given.config_file
    values["paths.state"] = data / "state" / values["instance_id"]
    values["paths.cache"] = places.cache_directory(environ)
    if values["paths.models"] is None:
        values["paths.models"] = places.models_directory(data)
    if values["paths.runtime"] is None:
        own = values["instance_id"], values["server.port"]
        values["paths.runtime"] = places.runtime_directory(environ, *own)
    named = given.find(_ROWS["paths.llama_server"])
    values["paths.llama_server"] = (
        places.check_llama_server(named.value, named.where)
        if named is not None
        else places.find_llama_server(environ.get("PATH", ""), values["paths.cache"])
    )


def _settle_herd(values: Values) -> None:
    values["herd.models_max"] = min(values["herd.models_max"], values["pool.size"])
    values["herd.gpu_layers"] = max(0, values["herd.gpu_layers"])
    if not values["idle.enabled"]:
        values["herd.idle_timeout_s"] = None
    # One address for binding and connecting, whatever the machine takes localhost for.
    if values["herd.backend_host"] == "localhost":
        values["herd.backend_host"] = "127.0.0.1"


def _settle_names(given: Given, values: Values, models: Models) -> None:
    """Names in settings become canonical names; those of models that are left out go."""
    if values["herd.scan_models"] is None:
        # A config file that only moves a port should not hide the models on the disk.
        values["herd.scan_models"] = "models" not in given.config
    scan = values["herd.scan_models"]

    def canonical(key: str, name: str) -> str | None:
        return models.canonical(name, given.in_config(key), more_to_come=scan)

    if values["default_model"] is not None:
        values["default_model"] = canonical("default_model", values["default_model"])
    preload = values["herd.preload"]
    if "*" in preload:
        values["herd.preload"] = ("*",)
    else:
        names = [canonical("system.preload_models", name) for name in preload]
        values["herd.preload"] = tuple(dict.fromkeys(name for name in names if name is not None))


def _warnings(given: Given, values: Values) -> list[str]:
    warnings = check_keys(given, given.config)
    unsupported = [given.variable(name) for name in UNSUPPORTED_VARIABLES]
    warnings += [
        f"{found.where} is not supported yet by this version: ignored" for found in unsupported if found
    ]
    port, host = values["herd.port_start"], values["herd.backend_host"]
    if port in (values["server.port"], values["server.health_port"]):
        warnings.append(f"server_pool.port_start is {port}, which Corral listens on itself: skipped")
    if not places.is_loopback(host):
        warnings.append(
            f"server_pool.host is {host}: llama-servers ask for no key, and others can reach them there"
        )
    return warnings


def _group(values: Values, name: str) -> Values:
    prefix = name + "."
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
