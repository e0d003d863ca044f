"""Where things lie when nobody says: data, models, the config file, the cache and llama-server.

The order of each search suits a checkout on a desk first, then the container image (`/app`) and the
volumes that serverless GPU platforms mount. This module looks at the file system and changes nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

from corral.errors import SettingsError

VOLUMES = (Path("/data"), Path("/runpod-volume"), Path("/workspace"), Path("/repository"))
IMAGE = Path("/app")


def home(environ: Mapping[str, str]) -> Path:
    found = Path(environ.get("HOME") or os.path.expanduser("~"))
    # A container's user may have no entry in the password file, and then no home.
    return found if found.is_absolute() else Path(tempfile.gettempdir())


def absolute(path: Path, base: Path, home_directory: Path) -> Path:
    """`path` seen from `base`. A leading ~ is the home directory: no shell expands it in a file."""
    if path.parts[:1] == ("~",):
        path = home_directory.joinpath(*path.parts[1:])
    return base / path


def data_directory(cwd: Path) -> Path:
    here = cwd / "data"
    there = [place for place in (here, *VOLUMES) if os.path.isdir(place)]
    if here in there or not there:
        return here
    # The image brings a /data that is empty. A volume that somebody has mounted elsewhere is meant instead.
    return next((place for place in there if os.path.ismount(place)), there[0])


def models_directory(data: Path) -> Path:
    usual, mounted = data / "models", IMAGE / "models"
    return mounted if _holds_something(mounted) and not _holds_something(usual) else usual


def config_file(cwd: Path, data: Path) -> Path | None:
    candidates = (cwd / "config.json", data / "config.json", IMAGE / "config.json")
    return next((place for place in candidates if is_file(place)), None)


def runtime_directory(environ: Mapping[str, str], instance_id: str, port: int) -> Path:
    """Of this user, this instance and its port alone, and on memory or a local disk."""
    per_user = environ.get("XDG_RUNTIME_DIR", "")
    # It is often set and not there: after `su`, or in a container.
    usable = os.path.isabs(per_user) and os.access(per_user, os.W_OK | os.X_OK)
    base = Path(per_user if usable else tempfile.gettempdir())
    return base / f"corral-{os.getuid()}-{instance_id}-{port}"


def cache_directory(environ: Mapping[str, str]) -> Path:
    given = environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    return (Path(given) if os.path.isabs(given) else home(environ) / ".cache") / "corral"


def is_file(path: Path) -> bool:
    """As Path.is_file, which raises for names too long or not allowed to be looked at."""
    return os.path.isfile(path)


def is_loopback(host: str) -> bool:
    return host.startswith("127.") or host == "::1"


def host_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]|^[^A-Za-z0-9]+", "", socket.gethostname())[:100] or "localhost"


def find_llama_server(search_path: str, cache: Path) -> Path | None:
    """The llama-server to run when no setting names one: from PATH, the image, or the cache of builds."""
    on_path = shutil.which("llama-server", path=search_path)
    if on_path is not None:
        return Path(on_path).absolute()
    engines = [cache / name / "llama-server" for name in _names(cache) if name.startswith("engine-")]
    built = sorted(engines, key=_preference, reverse=True)
    return next((place for place in (IMAGE / "llama-server", *built) if _executable(place)), None)


def check_llama_server(path: Path, where: str) -> Path:
    if os.path.isdir(path):
        raise SettingsError(f"{where} is {path}, a directory; it must be the llama-server program itself")
    if not is_file(path):
        raise SettingsError(f"{where} is {path}, which does not exist; it must be a llama-server to run")
    if not _executable(path):
        raise SettingsError(f"{where} is {path}, which is not executable; chmod +x it, or name another one")
    return path


def _preference(build: Path) -> tuple[bool, float]:
    """A build for the GPU first, then the newest."""
    try:
        return build.parent.name.endswith("-cuda"), build.stat().st_mtime
    except (OSError, ValueError):
        return False, 0.0


def _executable(path: Path) -> bool:
    return is_file(path) and os.access(path, os.X_OK)


def _holds_something(directory: Path) -> bool:
    return any(not name.startswith(".") for name in _names(directory))


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (OSError, ValueError):
        return []
