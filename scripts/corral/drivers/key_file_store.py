"""The keys file on disk: read when it changes, edited without ever being half written.

A file that can't be read (gone, unreadable, too large, not text, not a file at all) leaves the keys in
force that were loaded before it: an editor's slip must not lock everybody out. What is wrong is logged
by line number and never with a line's contents.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from corral.formats import key_file
from corral.formats.key_file import KeyFile, KeyFileError, KeyRecord, Problem

logger = logging.getLogger(__name__)

# A file of 10,000 broken lines is one mistake, not 10,000 lines of log.
LOGGED_PROBLEMS_MAX = 20

# Device, inode, size, and the times of the last write and of the last change to owner or mode.
Signature = tuple[int, int, int, int, int]


def new_key() -> str:
    """A key with 256 bits of chance in it, in characters that any shell and header takes as they are."""
    return "sk-" + secrets.token_hex(32)


class KeyFileStore:
    """The records of one keys file, as of its last good reading."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: tuple[KeyRecord, ...] = ()
        self._signature: Signature | None = None
        self._failure: str | None = None

    @property
    def records(self) -> tuple[KeyRecord, ...]:
        return self._records

    def load(self) -> bool:
        """Read the file if it is not the one last read: cheap enough for a tick. True: other records."""
        signature = _signature(self._path)
        if signature is not None and signature == self._signature:
            return False
        return self.reload()

    def reload(self) -> bool:
        """Read the file whatever it looks like from outside. True: other records."""
        # Taken before reading: a change in between shows at the next look instead of never.
        self._signature = _signature(self._path)
        try:
            raw, mode = _read(self._path)
            contents = key_file.parse(key_file.decode(raw))
        except KeyFileError as error:
            self._fail(str(error))
            return False
        except OSError as error:
            # This may pass without the file changing, so the next look tries again.
            self._signature = None
            self._fail(error.strerror or type(error).__name__)
            return False
        self._failure = None
        changed = contents.keys != self._records
        self._records = contents.keys
        self._report(contents, mode)
        return changed

    def _fail(self, reason: str) -> None:
        if reason == self._failure:
            return
        self._failure = reason
        logger.warning(
            "The keys file %s can't be read: %s. Keys loaded before stay in force: %d.",
            self._path,
            reason,
            len(self._records),
        )

    def _report(self, contents: KeyFile, mode: int) -> None:
        if mode & 0o077:
            logger.warning("Other users can open the keys file %s (mode %o): chmod 600 it.", self._path, mode)
        self._report_lines("rejected", contents.problems)
        self._report_lines("accepted, but", contents.warnings)
        logger.info("%d keys loaded from %s.", len(contents.keys), self._path)

    def _report_lines(self, verdict: str, problems: tuple[Problem, ...]) -> None:
        for line_number, message in problems[:LOGGED_PROBLEMS_MAX]:
            logger.warning("%s, line %d %s: %s.", self._path, line_number, verdict, message)
        surplus = len(problems) - LOGGED_PROBLEMS_MAX
        if surplus > 0:
            logger.warning("%s: %d more lines %s.", self._path, surplus, verdict)


# Reading ----------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """The text of the keys file; a file that does not exist yet is an empty one."""
    try:
        raw, _ = _read(path)
    except FileNotFoundError:
        return ""
    return key_file.decode(raw)


def _read(path: Path) -> tuple[bytes, int]:
    """The file's bytes, as far as they may be read, and its mode."""
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError("it is not a regular file")
        # One byte more than allowed, so that decoding can tell that there is more.
        return file.read(key_file.FILE_BYTES_MAX + 1), stat.S_IMODE(status.st_mode)


def _open_without_waiting(path: str, flags: int) -> int:
    """Opening a FIFO that nobody writes to would hang the gateway."""
    return os.open(path, flags | os.O_NONBLOCK)


def _signature(path: Path) -> Signature | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


# Editing ----------------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[str], str]) -> bool:
    """Replace the file's text by `change(text)`. True: it was another text, and was written.

    Edits of several processes happen one after the other. Readers see the old file or the new one.
    """
    # A link stays a link: what it points to is replaced.
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        before = read_text(path)
        after = change(before)
        if after == before:
            return False
        _replace(path, after)
        return True


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Beside the file and not on it, because the file that one waited for is replaced by another."""
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _hand_over(descriptor, path.parent)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    # mkstemp creates with mode 600: at no moment can others read the new keys.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            _hand_over(descriptor, path if path.exists() else path.parent)
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync_directory(path.parent)


def _hand_over(descriptor: int, like: Path) -> None:
    """What root makes must stay open to the user that the gateway runs as; others make only their own."""
    owner = like.stat()
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _sync_directory(path: Path) -> None:
    """A new name is safe on the disk only when its directory is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
