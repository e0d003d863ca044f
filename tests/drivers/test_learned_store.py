"""What loads have taken, remembered from one run to the next."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from corral.drivers import clock, learned_store
from corral.drivers.learned_store import LearnedStore
from corral.formats.learned import Learned, LearnedKey

QWEN = LearnedKey("0f" * 32, "gpu_layers=99 context_tokens=4096")
LARGER = QWEN._replace(flags="gpu_layers=99 context_tokens=8192")
TOOK = Learned(measured_bytes=6_000_000_000, predicted_bytes=5_900_000_000)
TOOK_MORE = Learned(measured_bytes=7_000_000_000, predicted_bytes=6_900_000_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "corral.db"


@contextmanager
def opened(path: Path) -> Iterator[LearnedStore]:
    """One run of the gateway."""
    store = LearnedStore(path)
    try:
        yield store
    finally:
        assert store.close()


def test_at_the_very_first_start_nothing_is_known(path: Path) -> None:
    with opened(path) as store:
        assert store.all() == {}
        assert store.recall(QWEN) is None


def test_what_is_remembered_is_known_at_once_and_after_a_restart(path: Path) -> None:
    with opened(path) as store:
        store.remember(QWEN, TOOK)
        store.remember(LARGER, TOOK_MORE)
        assert store.all() == {QWEN: TOOK, LARGER: TOOK_MORE}
    with opened(path) as store:
        assert store.all() == {QWEN: TOOK, LARGER: TOOK_MORE}
        assert store.recall(LARGER) == TOOK_MORE
        assert store.recall(QWEN) is not None
        assert store.recall(QWEN).predicted_bytes == 5_900_000_000  # type: ignore[union-attr]


def test_the_latest_word_counts(path: Path) -> None:
    with opened(path) as store:
        store.remember(QWEN, TOOK_MORE)
        store.remember(QWEN, TOOK)
        assert store.recall(QWEN) == TOOK
    with opened(path) as store:
        assert store.all() == {QWEN: TOOK}


def test_whoever_asks_for_all_can_not_change_what_is_known(path: Path) -> None:
    with opened(path) as store:
        store.all()[QWEN] = TOOK
        assert store.all() == {}


def test_the_oldest_make_way_on_the_disk_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [QWEN._replace(flags=str(number)) for number in range(learned_store.ENTRIES_MAX + 5)]
    now = iter(range(len(keys)))
    monkeypatch.setattr(clock, "wall", lambda: float(next(now)))
    with opened(path) as store:
        for key in keys[:-5]:
            store.remember(key, TOOK)
    with opened(path) as store:
        assert len(store.all()) == learned_store.ENTRIES_MAX
        for key in keys[-5:]:
            store.remember(key, TOOK)
    with opened(path) as store:
        assert store.all() == dict.fromkeys(keys[5:], TOOK)
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT count(*) FROM learned").fetchone() == (learned_store.ENTRIES_MAX,)


@pytest.mark.parametrize(
    "row",
    [
        ("f", "x", "much", 1),
        ("f", "x", 1.5, 1),
        ("f", "x", -1, 1),
        ("f", "x", 1, b"\x00"),
        (b"f", "x", 1, 1),
        ("f", b"x", 1, 1),
    ],
    ids=str,
)
def test_a_row_that_makes_no_sense_is_passed_over(path: Path, row: tuple[object, ...]) -> None:
    with opened(path) as store:
        store.remember(QWEN, TOOK)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("INSERT INTO learned VALUES (?, ?, ?, ?, 0)", row)
    with opened(path) as store:
        assert store.all() == {QWEN: TOOK}


@pytest.mark.parametrize("disk", ["garbage", "a folder"])
def test_no_state_of_the_disk_stops_it(path: Path, disk: str, caplog: pytest.LogCaptureFixture) -> None:
    if disk == "garbage":
        path.write_bytes(b"garbage" * 1_000)
    else:
        path.mkdir()
    with opened(path) as store:
        assert store.all() == {}
        store.remember(QWEN, TOOK)
        assert store.recall(QWEN) == TOOK
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
