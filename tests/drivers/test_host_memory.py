from __future__ import annotations

from pathlib import Path

import pytest

from corral.drivers import host_memory
from corral.drivers.host_memory import HostMemory

KIB = 1024
MEMINFO = "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    600 kB\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "meminfo").write_text(MEMINFO)
    monkeypatch.setattr(host_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "CGROUP_2", tmp_path)
    monkeypatch.setattr(host_memory, "CGROUP_1", tmp_path)
    return tmp_path


def test_without_a_cgroup_the_machine_is_the_limit(machine: Path) -> None:
    assert host_memory.read() == HostMemory(1000 * KIB, 600 * KIB)


@pytest.mark.parametrize(
    "names",
    [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")],
    ids=["version 2", "version 1"],
)
def test_a_smaller_cgroup_is_the_limit(machine: Path, names: tuple[str, str]) -> None:
    (machine / names[0]).write_text(f"{500 * KIB}\n")
    (machine / names[1]).write_text(f"{200 * KIB}\n")
    assert host_memory.read() == HostMemory(500 * KIB, 300 * KIB)


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(("memory.max", "memory.current"), ""), (("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_")],
    ids=["version 2", "version 1"],
)
def test_files_that_were_read_can_be_had_back(machine: Path, names: tuple[str, str], prefix: str) -> None:
    (machine / names[0]).write_text(f"{500 * KIB}\n")
    (machine / names[1]).write_text(f"{400 * KIB}\n")
    (machine / "memory.stat").write_text(
        f"anon 5\n{prefix}inactive_file {100 * KIB}\n{prefix}active_file {50 * KIB}\nodd\n"
    )
    assert host_memory.read() == HostMemory(500 * KIB, 250 * KIB)


def test_a_machine_that_has_less_than_the_cgroup_allows_is_the_limit(machine: Path) -> None:
    (machine / "memory.max").write_text(str(900 * KIB))
    (machine / "memory.current").write_text("0")
    assert host_memory.read() == HostMemory(900 * KIB, 600 * KIB)


def test_a_cgroup_over_its_limit_leaves_nothing_and_not_less(machine: Path) -> None:
    (machine / "memory.max").write_text(str(500 * KIB))
    (machine / "memory.current").write_text(str(600 * KIB))
    assert host_memory.read() == HostMemory(500 * KIB, 0)


@pytest.mark.parametrize("unlimited", ["max\n", str(2**63 - 4096)])
def test_a_cgroup_without_a_limit_is_none(machine: Path, unlimited: str) -> None:
    (machine / "memory.max").write_text(unlimited)
    (machine / "memory.current").write_text("5")
    assert host_memory.read() == HostMemory(1000 * KIB, 600 * KIB)


@pytest.mark.parametrize("text", ["", "MemTotal: x kB\nMemAvailable: 1 kB\n", "MemTotal: 5 kB\n", "nonsense"])
def test_a_kernel_that_does_not_say_is_none(machine: Path, text: str) -> None:
    (machine / "meminfo").write_text(text)
    assert host_memory.read() is None


def test_this_machine_says_something_sane() -> None:
    memory = host_memory.read()
    assert memory is not None
    assert 0 < memory.available_bytes <= memory.total_bytes
