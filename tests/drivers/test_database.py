"""The SQLite file behind our back: what survives a restart, and what no state of the disk may stop."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from corral.drivers import database
from corral.drivers.database import SCHEMA, Database
from tests.waiting import wait_until

INSERT = "INSERT INTO learned VALUES (?, '', ?, 0, 0)"
QUERY = "SELECT fingerprint, measured_bytes FROM learned ORDER BY measured_bytes"
NOT_WAITING_S = 0.5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "corral.db"


@contextmanager
def opened(path: Path) -> Iterator[Database]:
    """One run of the gateway, with all that it wrote on the disk at its end."""
    opened = Database(path)
    try:
        yield opened
    finally:
        assert opened.close()


def filled(path: Path, rows: int = 1) -> list[tuple[str, int]]:
    """Make a file with rows in it, as an earlier run would have."""
    expected = [(f"model-{number}", number) for number in range(rows)]
    with opened(path) as earlier:
        assert earlier.read(QUERY) == []
        for row in expected:
            earlier.write(INSERT, *row)
    return expected


def rows_of(path: Path) -> list[Any]:
    with opened(path) as later:
        return later.read(QUERY)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process is in the middle of a transaction."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_was_written_is_there_after_a_restart(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = filled(path, rows=3)
    assert rows_of(path) == expected
    assert warnings(caplog) == []


def test_what_was_written_is_on_the_disk_soon_and_not_only_at_the_end(path: Path) -> None:
    filled(path, rows=0)
    with opened(path) as running, closing(sqlite3.connect(path)) as other:
        running.write(INSERT, "model-0", 0)
        wait_until(lambda: other.execute(QUERY).fetchall() == [("model-0", 0)], "the row is on the disk")


def test_a_file_that_is_in_use_keeps_nobody_waiting(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path, rows=0)
    monkeypatch.setattr(database, "BUSY_S", 15.0)
    with opened(path) as running, locked(path):
        started_at = time.monotonic()
        for number in range(1_000):
            running.write(INSERT, f"model-{number}", number)
        assert time.monotonic() - started_at < NOT_WAITING_S
    assert len(rows_of(path)) == 1_000


def test_what_gathers_is_written_in_one_transaction(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []
    connect = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.set_trace_callback(statements.append)
        return connection

    filled(path, rows=0)
    monkeypatch.setattr(sqlite3, "connect", traced)
    monkeypatch.setattr(database, "GATHER_S", 15.0)
    with opened(path) as running:
        for number in range(100):
            running.write(INSERT, f"model-{number}", number)
    assert statements.count("COMMIT") == 1
    assert len([statement for statement in statements if statement.startswith("INSERT")]) == 100


@pytest.mark.parametrize("content", [b"This is no database. " * 200, b"\x00" * 5000], ids=["text", "zeros"])
def test_a_file_that_is_no_database_is_moved_aside(
    path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    expected = filled(path)
    aside = path.with_name("corral.db.damaged")
    assert aside.read_bytes() == content
    assert rows_of(path) == expected
    assert warnings(caplog) == [
        f"{path} is damaged (file is not a database): it is now {aside}, and begun anew"
    ]


def spoil(path: Path) -> bytes:
    """Overwrite every page but the first: the tables are still known, and can't be read."""
    content = path.read_bytes()
    content = content[:4096] + b"\xee" * (len(content) - 4096)
    path.write_bytes(content)
    return content


def test_damage_found_while_reading_costs_what_was_in_the_file_and_no_more(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(path)
    spoiled = spoil(path)
    with opened(path) as running:
        assert running.read(QUERY) == []
        running.write(INSERT, "new", 1)
    assert rows_of(path) == [("new", 1)]
    assert path.with_name("corral.db.damaged").read_bytes() == spoiled
    assert len(warnings(caplog)) == 1


def test_damage_found_while_writing_does_not_cost_what_is_being_written(path: Path) -> None:
    filled(path)
    spoil(path)
    with opened(path) as running:
        running.write(INSERT, "new", 1)
    assert rows_of(path) == [("new", 1)]


def test_the_log_of_a_damaged_file_goes_with_it(path: Path) -> None:
    filled(path)
    # While another process has the file open, its log is neither played back nor removed.
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (name TEXT)")
        log = path.with_name("corral.db-wal").read_bytes()
        assert len(log) > 4096
        spoil(path)
        with opened(path) as running:
            assert running.read(QUERY) == []
            assert running.read("SELECT name FROM sqlite_schema WHERE name = 'theirs'") == []
            running.write(INSERT, "new", 1)
        assert path.with_name("corral.db.damaged-wal").read_bytes() == log
    assert rows_of(path) == [("new", 1)]


def test_only_the_latest_damaged_file_is_kept(path: Path) -> None:
    for number in range(3):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no database: %d" % number + b"." * 4096)
        filled(path)
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["corral.db", "corral.db.damaged"]
    assert b"no database: 2" in path.with_name("corral.db.damaged").read_bytes()


@pytest.mark.parametrize("obstacle", ["a file for a folder", "a folder for a file"])
def test_a_place_that_can_not_be_written_is_complained_about_once(
    path: Path, obstacle: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "GATHER_S", 0.0)
    if obstacle == "a file for a folder":
        path.parent.write_text("in the way")
    else:
        path.mkdir(parents=True)
    with opened(path) as running:
        assert running.read(QUERY) == []
        for number in range(20):
            running.write(INSERT, f"model-{number}", number)
    [warning] = warnings(caplog)
    assert warning.startswith(f"{path} can't be used (")
    assert warning.endswith("): nothing is kept in it until that is mended")


def test_a_place_that_is_mended_is_used_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.write_text("in the way")
    with opened(path) as running:
        assert running.read(QUERY) == []
        path.parent.unlink()
        running.write(INSERT, "new", 1)
    assert rows_of(path) == [("new", 1)]
    assert warnings(caplog)[1:] == [f"{path} can be used again"]


def test_a_file_that_stays_locked_loses_that_batch_and_no_later_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    filled(path, rows=0)
    monkeypatch.setattr(database, "BUSY_S", 0.01)
    with opened(path) as running:
        with locked(path):
            running.write(INSERT, "lost", 1)
            wait_until(lambda: warnings(caplog), "it complains")
        running.write(INSERT, "kept", 2)
    assert rows_of(path) == [("kept", 2)]
    assert warnings(caplog) == [
        f"{path} can't be used (database is locked): nothing is kept in it until that is mended",
        f"{path} can be used again",
    ]


@pytest.mark.parametrize("value", [1 << 63, "\udcff"], ids=["too-large", "no-text"])
def test_a_value_that_fits_in_no_column_loses_its_batch_whole_and_no_later_one(
    path: Path, value: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(path) as running:
        running.write(INSERT, "before", 0)
        running.write(INSERT, "unfit", value)
        wait_until(lambda: warnings(caplog), "it complains")
        running.write(INSERT, "after", 2)
    assert ("after", 2) in rows_of(path)
    assert "unfit" not in dict(rows_of(path))


def test_a_file_of_a_newer_version_is_left_as_it_is(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(path)
    with closing(sqlite3.connect(path)) as newer:
        newer.execute(f"PRAGMA user_version = {len(SCHEMA) + 1}")
    with opened(path) as running:
        assert running.read(QUERY) == []
        running.write(INSERT, "new", 1)
    with closing(sqlite3.connect(path)) as newer:
        assert newer.execute("PRAGMA user_version").fetchone() == (len(SCHEMA) + 1,)
        assert newer.execute(QUERY).fetchall() == [("model-0", 0)]
    [warning] = warnings(caplog)
    assert "a newer Corral has written it" in warning


def test_a_file_of_an_older_version_is_brought_up_to_date(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = filled(path)
    monkeypatch.setattr(database, "SCHEMA", (*SCHEMA, "CREATE TABLE later (name TEXT)"))
    with opened(path) as running:
        assert running.read(QUERY) == expected
        assert running.read("SELECT name FROM later") == []
        assert running.read("PRAGMA user_version") == [(len(SCHEMA) + 1,)]


def test_a_change_that_fails_half_way_is_not_made_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = filled(path)
    monkeypatch.setattr(database, "SCHEMA", (*SCHEMA, "CREATE TABLE later (name TEXT)", "CREATE NONSENSE"))
    with opened(path) as running:
        assert running.read(QUERY) == []
    monkeypatch.setattr(database, "SCHEMA", SCHEMA)
    assert rows_of(path) == expected


def test_the_queue_is_bounded_and_what_was_lost_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "QUEUE_MAX", 5)
    monkeypatch.setattr(database, "GATHER_S", 15.0)
    with opened(path) as running:
        for number in range(8):
            running.write(INSERT, f"model-{number}", number)
    assert len(rows_of(path)) == 5
    assert warnings(caplog) == [f"the disk is too slow for {path}: 3 entries were lost"]


def test_after_the_end_writing_does_nothing(path: Path) -> None:
    with opened(path) as running:
        pass
    running.write(INSERT, "late", 1)
    assert running.close()
    assert rows_of(path) == []


def test_a_clean_end_leaves_one_file(path: Path) -> None:
    filled(path)
    assert [file.name for file in path.parent.iterdir()] == ["corral.db"]
