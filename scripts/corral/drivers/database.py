"""The gateway's SQLite file: what shall outlive a restart. Read when we start, written behind our back.

Nobody waits for the disk. A write is handed over, and one thread puts all that has gathered into one
transaction. With the write-ahead log a crash of the machine loses the last of these and damages nothing.

No state of this file stops the gateway. A damaged one is moved aside and begun anew. One that can't be
opened or written, for whatever reason, is complained about once and tried again with every batch; until
it works the batches are lost, and the gateway goes on with what it has in memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

log = logging.getLogger("corral.database")
T = TypeVar("T")

# How the file is made, step by step; `user_version` counts the steps that a file has seen. A step is
# never changed once it was released: a change of the tables is a further step.
SCHEMA: tuple[str, ...] = (
    "CREATE TABLE learned (fingerprint TEXT NOT NULL, flags TEXT NOT NULL, measured_bytes INTEGER NOT NULL,"
    " predicted_bytes INTEGER NOT NULL, learned_at REAL NOT NULL, PRIMARY KEY (fingerprint, flags))",
)

# How long another process's transaction is waited for.
BUSY_S = 2.0
# How long the thread lets writes gather: what a crash of the gateway itself can lose.
GATHER_S = 0.05
QUEUE_MAX = 10_000
CLOSE_TIMEOUT_S = 5.0

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_COMPANIONS = ("", "-wal", "-shm")


class Write(NamedTuple):
    statement: str
    values: tuple[str | int | float, ...]


class NewerSchema(Exception):
    """The file was written by a later version. What it holds is not ours to change."""


# What may go wrong with a file. The last two are about values that SQLite has no place for.
_TROUBLE = (OSError, sqlite3.Error, NewerSchema, OverflowError, ValueError)


class Database:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._queue: list[Write] = []
        self._lost = 0
        self._closing = False
        # Held by whoever deals with the file; the four below are the holder's.
        self._file = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="database", daemon=True)
        self._thread.start()

    def read(self, query: str) -> list[tuple[Any, ...]]:
        """All rows, at once and from the disk: for the start only. None if the file is of no use."""
        with self._file:
            return self._attempt(lambda connection: connection.execute(query).fetchall()) or []

    def write(self, statement: str, *values: str | int | float) -> None:
        """Hand over one change. Never waits, never fails."""
        with self._changed:
            if self._closing or len(self._queue) >= QUEUE_MAX:
                self._lost += 1
                return
            self._queue.append(Write(statement, values))
            self._changed.notify_all()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> bool:
        """Write what is left and close the file. False if the disk takes longer than that."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # What follows runs on the thread, but for `_attempt` and what it needs ---------------------------

    def _run(self) -> None:
        while batch := self._next_batch():
            with self._file:
                self._attempt(partial(_apply, batch))
        with self._file:
            self._let_go()

    def _next_batch(self) -> list[Write]:
        """What has gathered; empty when it is time to stop."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            if not self._closing:
                self._changed.wait_for(lambda: self._closing, GATHER_S)
            batch, self._queue = self._queue, []
            lost, self._lost = self._lost, 0
        if lost:
            log.warning("the disk is too slow for %s: %d entries were lost", self._path, lost)
        return batch

    def _attempt(self, act: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do something with the file, a damaged one having made way. None if that can't be done."""
        for _ in range(2):
            try:
                if self._connection is None:
                    self._connection = _open(self._path)
                result = act(self._connection)
            except _TROUBLE as error:
                self._let_go()
                if not self._is_replaced(error):
                    self._complain(error)
                    break
            else:
                if self._complained:
                    log.warning("%s can be used again", self._path)
                self._complained = False
                return result
        return None

    def _is_replaced(self, error: Exception) -> bool:
        """Move the file aside if it is damaged, over an earlier one: one is enough to look into."""
        # The lower eight bits are the kind of an error, the others its details. Python's own have none.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
            return False
        aside = f"{self._path}.damaged"
        try:
            for ending in _COMPANIONS:
                # Its log must go too: SQLite would play it back into the new file.
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self._path}{ending}", f"{aside}{ending}")
        except OSError:
            return False
        log.warning("%s is damaged (%s): it is now %s, and begun anew", self._path, error, aside)
        return True

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            log.warning(
                "%s can't be used (%s): nothing is kept in it until that is mended", self._path, error
            )
        self._complained = True

    def _let_go(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        # Where a file system has no shared memory SQLite stays with its older journal, slower and as safe.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        if _version(connection) != len(SCHEMA):
            _bring_up_to_date(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    # Looked at again inside: another gateway may do the same at this moment.
    connection.execute("BEGIN IMMEDIATE")
    version = _version(connection)
    if version > len(SCHEMA):
        raise NewerSchema(f"a newer Corral has written it: its version is {version}, ours {len(SCHEMA)}")
    for step in SCHEMA[version:]:
        connection.execute(step)
    connection.execute(f"PRAGMA user_version = {len(SCHEMA)}")
    connection.execute("COMMIT")


def _apply(batch: list[Write], connection: sqlite3.Connection) -> None:
    """All of it or, when this raises and the connection is closed, nothing."""
    connection.execute("BEGIN IMMEDIATE")
    for statement, values in batch:
        connection.execute(statement, values)
    connection.execute("COMMIT")
