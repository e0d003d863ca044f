"""Where a llama-server listens beside its port: a socket in the file system, in a folder that is ours alone.

Bytes through it cost both sides less than bytes through a port, which pass the whole of TCP and are
acknowledged one by one (measured: a third of the gate's work for a chunk is reading it, and that halves).
A socket whose server was killed stays behind and would keep the next one from listening (measured), so
it is removed before and after. Of two gateways that are told the same folder, and choose the same port at the
same moment, one may so lose its socket: then its port serves.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

# Its folder, in the directory for what exists only while we run.
FOLDER_NAME = "engines"
# What an address holds, less the zero at its end, on the systems that have least (unix(7): 108 on Linux).
PATH_BYTES_MAX = 103


def free_path(folder: Path, port: int) -> str:
    """Where the server of this port may listen too; empty if there is no safe place."""
    path = str(folder / f"{port}.sock")
    # llama-server takes a list of addresses, with commas.
    if "," in path or len(os.fsencode(path)) > PATH_BYTES_MAX:
        return ""
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        if not _is_ours_alone(folder):
            return ""
        remove(path)
    except OSError:
        return ""
    return path


def remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _is_ours_alone(folder: Path) -> bool:
    """Whether nobody else can put a socket of his own there, or another folder in its place."""
    own, above = os.lstat(folder), os.stat(folder.parent)
    if not stat.S_ISDIR(own.st_mode) or own.st_uid != os.geteuid() or own.st_mode & 0o077:
        return False
    may_others_write = above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX
    return above.st_uid in (0, os.geteuid()) and not may_others_write
