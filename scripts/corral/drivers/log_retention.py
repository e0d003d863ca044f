"""The log directory as a whole: what files are called, which one is the latest, and what has to go.

Everything here touches the disk and is called by the log writer's thread alone. Only files whose names
we give are ever removed, so that a directory shared with other things is safe.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

LATEST = "latest.txt"
NAME_LENGTH_MAX = 120
_ODD = re.compile(r"[^A-Za-z0-9._@+-]")
_OURS = re.compile(r"(?:[a-z_]+\.)?\d{8}_\d{6}(?:_.+)?\.log")


class LogLimits(NamedTuple):
    """How large a log may grow. A file past its size or age is closed and a new one begun."""

    file_bytes_max: int = 50 * 1024 * 1024
    file_age_max_s: float = 7 * 86_400.0
    total_bytes_max: int = 2 * 1024 * 1024 * 1024
    # A model that dies at every start writes a small file each time.
    files_max: int = 1_000


class _Aged(NamedTuple):
    modified_at: float
    size_bytes: int
    path: Path


def name_on_disk(name: str) -> str:
    """A model's, host's or worker's name as part of a file name: '/' and ':' become '_', as all odd ones."""
    return _ODD.sub("_", name)[:NAME_LENGTH_MAX]


def stamp(wall_s: int) -> str:
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y%m%d_%H%M%S")


def point_latest_at(path: Path) -> None:
    """Make `latest.txt` beside it a relative link to it, replaced in one step.

    File systems without links exist (object storage mounted as a disk); there the logs do without.
    """
    temporary = path.with_name(f".{LATEST}.{os.getpid()}")
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(path.name)
        temporary.replace(path.with_name(LATEST))


def remove_oldest(directory: Path, keep: Collection[Path], limits: LogLimits) -> None:
    """Remove the oldest files until the rest is within the limits; never one of `keep`."""
    files = sorted(_our_files(directory))
    total_bytes = sum(file.size_bytes for file in files)
    count = len(files)
    for file in files:
        if total_bytes <= limits.total_bytes_max and count <= limits.files_max:
            return
        if file.path in keep:
            continue
        with contextlib.suppress(OSError):
            file.path.unlink()
            total_bytes -= file.size_bytes
            count -= 1
            _drop_dangling_latest(file.path)


def _our_files(directory: Path) -> Iterator[_Aged]:
    """The stamped log files in the directory and in the folders directly below it."""
    for path in (*directory.glob("*.log"), *directory.glob("*/*.log")):
        if _OURS.fullmatch(path.name):
            with contextlib.suppress(OSError):
                status = path.lstat()
                if S_ISREG(status.st_mode):
                    yield _Aged(status.st_mtime, status.st_size, path)


def _drop_dangling_latest(removed: Path) -> None:
    latest = removed.with_name(LATEST)
    with contextlib.suppress(OSError):
        if os.readlink(latest) == removed.name:
            latest.unlink()
