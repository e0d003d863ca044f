"""The status file on disk: replaced whole by one writer, read by anybody.

It must lie on local disk or in memory: a rename is atomic there, so a reader finds the old document or
the new one and never half of one. Nothing is synced, because nobody needs the status of a gateway that
a power cut ended. The file is for everyone to read, by way of its folder too: it says what the health port
tells anybody, and a health server that runs alone may be another user's.
"""

from __future__ import annotations

import enum
import os

from corral.drivers import process_facts
from corral.formats.status import DOCUMENT_BYTES_MAX, StatusDocument, from_json

# Its name in the directory for what exists only while we run.
FILE_NAME = "status.json"


class Fault(enum.Enum):
    """Why there is no document."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    TOO_LARGE = "too large"
    GARBAGE = "garbage"


def write(path: str, payload: bytes) -> None:
    """Replace the file. The folder is made if it is not there; the modes are these under any umask."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        os.makedirs(folder)
        os.chmod(folder, 0o755)
    # One writer, so one fixed name: what a crash leaves behind is overwritten, not collected.
    draft = f"{path}.new"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o644)
        file.write(payload)
    os.replace(draft, path)


class StatusReader:
    """Reads the file as often as it is asked to, and decodes it only when its bytes have changed.

    The time of the last change would be cheaper to look at, but its clock ticks only every few
    milliseconds: two replacements within one tick look like none.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._payload: bytes | None = None
        self._decoded: StatusDocument | Fault = Fault.MISSING

    def read(self) -> StatusDocument | Fault:
        try:
            with open(self._path, "rb") as file:
                payload = file.read(DOCUMENT_BYTES_MAX + 1)
        except FileNotFoundError:
            return Fault.MISSING
        except OSError:
            return Fault.UNREADABLE
        if payload != self._payload:
            self._decoded = _decode(payload)
            self._payload = payload
        return self._decoded


def _decode(payload: bytes) -> StatusDocument | Fault:
    if len(payload) > DOCUMENT_BYTES_MAX:
        return Fault.TOO_LARGE
    try:
        return from_json(payload)
    except ValueError:
        return Fault.GARBAGE


def writer_alive(document: StatusDocument) -> bool:
    return process_facts.is_alive(document.pid, document.pid_started)
