"""Warming the page cache: what the kernel holds in memory is asked of the kernel itself."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from corral.drivers.page_cache import PIECE_BYTES, PageCache
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs mincore and posix_fadvise"
)

# More than any usual read-ahead: read in one go, most of it would be left out.
FILE_BYTES = 24 << 20
NOT_WAITING_S = 0.5


def resident_part(path: Path) -> float:
    """How much of a file lies in memory, from 0 to 1 (mincore(2))."""
    size = path.stat().st_size
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    # A private mapping, because ctypes tells the address of a writable one only. Nothing touches it.
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as area:
        view = (ctypes.c_char * size).from_buffer(area)
        result = libc.mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), pages)
        del view
    assert result == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in pages) / len(pages)


def is_nearly_in_memory(path: Path) -> bool:
    return resident_part(path) > 0.95


def is_in_memory(path: Path) -> bool:
    return resident_part(path) == 1.0


def cold_file(path: Path) -> Path:
    """A file that lies on the disk alone."""
    path.write_bytes(os.urandom(1 << 20) * (FILE_BYTES >> 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_part(path) > 0.01:
        pytest.skip(f"{path.parent} is itself in memory: nothing there is ever cold")
    return path


class Disk:
    """Stands for the kernel: says what it was advised of, and takes its time if it is told to."""

    def __init__(self) -> None:
        self.advised: list[tuple[int, int]] = []  # inode and offset
        self.gate = threading.Event()
        self.gate.set()

    def advise(self, descriptor: int, offset: int, length: int, advice: int) -> None:
        assert (length, advice) == (PIECE_BYTES, os.POSIX_FADV_WILLNEED)
        self.advised.append((os.fstat(descriptor).st_ino, offset))
        assert self.gate.wait(15)

    def pieces_of(self, path: Path) -> list[int]:
        inode = path.stat().st_ino
        return [offset // PIECE_BYTES for number, offset in self.advised if number == inode]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(os, "posix_fadvise", disk.advise)
    yield disk
    disk.gate.set()
    wait_until(lambda: not readers(), "the reader has come to its end")


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "page-cache"]


@pytest.fixture
def pieces(tmp_path: Path) -> Callable[[str, int], Path]:
    """Makes files of so many pieces."""

    def make(name: str, count: int) -> Path:
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(count * PIECE_BYTES)
        return path

    return make


def test_all_files_of_a_model_are_in_memory_after_a_while(tmp_path: Path) -> None:
    files = [cold_file(tmp_path / name) for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")]
    cache = PageCache()
    cache.warm(files)
    for file in files:
        wait_until(partial(is_nearly_in_memory, file), f"nearly all of {file.name} is in memory")

    def all_are() -> bool:
        """It is advice, of which a busy kernel may leave out a piece: then it is asked once more."""
        if all(map(is_in_memory, files)):
            return True
        cache.warm(files)
        return False

    wait_until(all_are, "all of them are in memory")


def test_every_piece_of_every_file_is_read_once_one_file_after_the_other(
    disk: Disk, pieces: Callable[[str, int], Path]
) -> None:
    first, second = pieces("first", 3), pieces("second", 2)
    with second.open("ab") as file:
        file.write(b"and a little more")
    PageCache().warm([first, second])
    wait_until(lambda: len(disk.advised) == 6, "six pieces are read")
    assert disk.advised == [
        *((first.stat().st_ino, number * PIECE_BYTES) for number in range(3)),
        *((second.stat().st_ino, number * PIECE_BYTES) for number in range(3)),
    ]


def test_a_slow_disk_keeps_nobody_waiting(disk: Disk, pieces: Callable[[str, int], Path]) -> None:
    disk.gate.clear()
    cache = PageCache()
    started_at = time.monotonic()
    wishes = [cache.warm([pieces(f"file-{number}", 2)]) for number in range(50)]
    for wish in wishes:
        wish.cancel()
    assert time.monotonic() - started_at < NOT_WAITING_S
    assert len(readers()) == 1


def test_a_file_that_is_wanted_twice_is_read_once(disk: Disk, pieces: Callable[[str, int], Path]) -> None:
    disk.gate.clear()
    cache, path, other = PageCache(), pieces("model", 3), pieces("other", 1)
    cache.warm([path])
    wait_until(lambda: disk.advised, "the first piece is being read")
    cache.warm([path, other])
    cache.warm([other, path])
    disk.gate.set()
    wait_until(lambda: not readers(), "everything is read")
    assert disk.pieces_of(path) == [0, 1, 2]
    assert disk.pieces_of(other) == [0]


def test_what_nobody_wants_any_more_is_not_read_on(disk: Disk, pieces: Callable[[str, int], Path]) -> None:
    disk.gate.clear()
    cache, unwanted, waiting, next_one = (
        PageCache(),
        pieces("unwanted", 9),
        pieces("waiting", 9),
        pieces("n", 2),
    )
    wish = cache.warm([unwanted, waiting])
    wait_until(lambda: disk.advised, "the first piece is being read")
    cache.warm([next_one])
    wish.cancel()
    disk.gate.set()
    wait_until(lambda: not readers(), "everything is read")
    assert disk.pieces_of(unwanted) == [0]
    assert disk.pieces_of(waiting) == []
    assert disk.pieces_of(next_one) == [0, 1]


@pytest.mark.parametrize("leaver", [0, 1], ids=["the-first-leaves", "the-second-leaves"])
def test_a_file_is_read_on_for_whoever_still_wants_it(
    disk: Disk, pieces: Callable[[str, int], Path], leaver: int
) -> None:
    disk.gate.clear()
    cache, shared = PageCache(), pieces("shared", 3)
    wishes = [cache.warm([shared])]
    wait_until(lambda: disk.advised, "the first piece is being read")
    wishes.append(cache.warm([shared]))
    wishes[leaver].cancel()
    disk.gate.set()
    wait_until(lambda: not readers(), "everything is read")
    assert disk.pieces_of(shared) == [0, 1, 2]


def test_cancelling_after_the_end_takes_nothing_from_the_next(
    disk: Disk, pieces: Callable[[str, int], Path]
) -> None:
    cache, path = PageCache(), pieces("model", 2)
    over = cache.warm([path])
    wait_until(lambda: not readers(), "everything is read")
    disk.gate.clear()
    cache.warm([path])
    over.cancel()
    over.cancel()
    disk.gate.set()
    wait_until(lambda: not readers(), "everything is read again")
    assert disk.pieces_of(path) == [0, 1, 0, 1]


def test_what_is_no_file_or_can_not_be_read_is_passed_over(
    disk: Disk, pieces: Callable[[str, int], Path], tmp_path: Path
) -> None:
    pipe, good = tmp_path / "pipe", pieces("good", 1)
    os.mkfifo(pipe)
    PageCache().warm([tmp_path / "missing", tmp_path, pipe, pieces("empty", 0), good])
    wait_until(lambda: disk.advised, "the good one is read")
    assert disk.pieces_of(good) == [0]


def test_a_disk_that_refuses_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, pieces: Callable[[str, int], Path]
) -> None:
    refused = []

    def refuse(*call: int) -> None:
        refused.append(call)
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    PageCache().warm([pieces("one", 5), pieces("two", 5)])
    wait_until(lambda: len(refused) == 2 and not readers(), "both files were tried, and no more")


def test_where_the_kernel_takes_no_advice_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, pieces: Callable[[str, int], Path]
) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    PageCache().warm([pieces("model", 1)]).cancel()
    assert readers() == []


def test_no_files_need_no_thread(disk: Disk) -> None:
    PageCache().warm([])
    assert readers() == []
