"""What real processes hold: memory of each kind, taken by a child when it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from corral.drivers import process_memory
from corral.drivers.process_memory import ProcessMemory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

MIB = 1 << 20
# An interpreter takes and gives back some pages with every step it does.
TOLERANCE_BYTES = 1 * MIB
# Takes memory line by line: `anonymous N`, `shared N` or `file PATH`, and says when it is done.
TAKER = """
import mmap, sys
kept = []
for line in sys.stdin:
    kind, what = line.split(maxsplit=1)
    if kind == "file":
        with open(what.strip(), "rb") as file:
            area = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for at in range(0, len(area), mmap.PAGESIZE):
            area[at]
    else:
        flags = mmap.MAP_SHARED if kind == "shared" else mmap.MAP_PRIVATE
        area = mmap.mmap(-1, int(what), flags=flags | mmap.MAP_ANONYMOUS)
        for at in range(0, len(area), mmap.PAGESIZE):
            area[at] = 1
    kept.append(area)
    print("done", flush=True)
"""

# A shell gives its place to its last command, so there is one more.
INNER = '"$0" -c "$1"; true'
IN_TWO_SHELLS = ["sh", "-c", f'sh -c \'{INNER}\' "$0" "$1"; true', sys.executable, TAKER]


class Taker:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self._process = process
        self.take("anonymous", 4096)  # and with it everything that its first step needs

    def take(self, kind: str, what: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(kind, what, file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "done\n"

    def memory(self) -> ProcessMemory:
        held = process_memory.read(self.pid)
        assert held is not None
        return held


@contextmanager
def started(argv: list[str]) -> Iterator[Taker]:
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Taker(process)
        finally:
            process.kill()


@pytest.fixture
def taker() -> Iterator[Taker]:
    with started([sys.executable, "-c", TAKER]) as process:
        yield process


def gained(before: ProcessMemory, after: ProcessMemory) -> list[int]:
    return [int(now - then) for then, now in zip(before, after, strict=True)]


@pytest.fixture
def file_of_16_mib(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"w" * 16 * MIB)
    return path


def test_memory_of_its_own_is_anonymous(taker: Taker) -> None:
    before = taker.memory()
    taker.take("anonymous", 64 * MIB)
    assert gained(before, taker.memory()) == pytest.approx([64 * MIB, 0, 0], abs=TOLERANCE_BYTES)


def test_pages_of_a_mapped_file_are_the_files(taker: Taker, file_of_16_mib: Path) -> None:
    before = taker.memory()
    taker.take("file", file_of_16_mib)
    assert gained(before, taker.memory()) == pytest.approx([0, 16 * MIB, 0], abs=TOLERANCE_BYTES)


def test_shared_memory_is_shared(taker: Taker) -> None:
    before = taker.memory()
    taker.take("shared", 8 * MIB)
    assert gained(before, taker.memory()) == pytest.approx([0, 0, 8 * MIB], abs=TOLERANCE_BYTES)


def test_what_children_of_children_hold_is_added(file_of_16_mib: Path) -> None:
    with started(IN_TWO_SHELLS) as shell:
        before = shell.memory()
        shell.take("anonymous", 64 * MIB)
        shell.take("file", file_of_16_mib)
        assert gained(before, shell.memory()) == pytest.approx([64 * MIB, 16 * MIB, 0], abs=TOLERANCE_BYTES)


def test_the_number_of_processes_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory, "PROCESSES_MAX", 2)
    with started(IN_TWO_SHELLS) as shell:
        before = shell.memory()
        shell.take("anonymous", 64 * MIB)
        assert gained(before, shell.memory()) == pytest.approx([0, 0, 0], abs=TOLERANCE_BYTES)


def test_the_dead_hold_nothing() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert process_memory.read(process.pid) is not None
        process.kill()
        # WNOWAIT: wait for the death, but leave the entry in the process table.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert os.path.exists(f"/proc/{process.pid}/status")
        assert process_memory.read(process.pid) is None
    assert process_memory.read(process.pid) is None
