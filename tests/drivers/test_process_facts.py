"""Facts about real processes: living, dead, dead but not buried, and a pid that was given away."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from corral.drivers import process_facts

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@on_linux
def test_a_process_keeps_its_start_time_and_its_child_started_later(child: subprocess.Popen[bytes]) -> None:
    own = process_facts.start_ticks(os.getpid())
    assert own is not None
    assert process_facts.start_ticks(os.getpid()) == own
    its = process_facts.start_ticks(child.pid)
    assert its is not None
    assert its >= own


@on_linux
def test_a_living_process_is_alive_only_under_its_own_start_time(child: subprocess.Popen[bytes]) -> None:
    started = process_facts.start_ticks(child.pid)
    assert started is not None
    assert process_facts.is_alive(child.pid, started)
    assert not process_facts.is_alive(child.pid, started - 1), "a later owner of the pid is somebody else"


@on_linux
def test_a_dead_process_is_dead_even_before_it_is_buried(child: subprocess.Popen[bytes]) -> None:
    started = process_facts.start_ticks(child.pid)
    child.kill()
    # WNOWAIT: wait for the death, but leave the entry in the process table.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert os.path.exists(f"/proc/{child.pid}/stat")
    assert process_facts.start_ticks(child.pid) is None
    assert not process_facts.is_alive(child.pid, started)


def test_without_a_start_time_the_pid_decides(child: subprocess.Popen[bytes]) -> None:
    assert process_facts.is_alive(child.pid, None)
    child.kill()
    child.wait()
    assert not process_facts.is_alive(child.pid, None)


@on_linux
@pytest.mark.parametrize("name", ["a b", "a) R 1", "((("], ids=["space", "forged-state", "parentheses"])
def test_a_process_with_an_odd_name_is_read_right(
    tmp_path: os.PathLike[str], name: str, child: subprocess.Popen[bytes]
) -> None:
    program = os.path.join(tmp_path, name)
    os.symlink("/bin/sleep", program)
    started = process_facts.start_ticks(child.pid)
    with subprocess.Popen([program, "60"]) as odd:
        its = process_facts.start_ticks(odd.pid)
        odd.kill()
    assert its is not None
    assert started is not None
    assert its >= started


def test_own_processor_time_grows_with_work() -> None:
    before = process_facts.own_usage().cpu_s
    deadline = time.monotonic() + 10
    while process_facts.own_usage().cpu_s == before and time.monotonic() < deadline:
        sum(range(10_000))
    assert process_facts.own_usage().cpu_s > before


@on_linux
def test_own_memory_grows_with_what_is_touched() -> None:
    size = 32 * 1024 * 1024
    before = process_facts.own_usage().resident_bytes
    with mmap.mmap(-1, size) as fresh:  # unlike a large object it never lies where a freed one lay
        fresh.write(b"x" * size)
        during = process_facts.own_usage().resident_bytes
    assert before is not None
    assert during is not None
    assert during - before > size // 2


def test_what_the_collector_frees_is_counted() -> None:
    before = process_facts.own_usage().gc_collected
    circle: list[object] = []
    circle.append(circle)
    del circle
    gc.collect()
    assert sum(process_facts.own_usage().gc_collected) > sum(before)
