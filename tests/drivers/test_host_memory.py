from __future__ import annotations

from pathlib import Path

import pytest

from corral.drivers import host_memory
from corral.drivers.host_memory import VERSION_1, VERSION_2, Files, HostMemory

KIB = 1024
MEMINFO = "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    600 kB\n"
OWN = {VERSION_2: "0::/app.slice/gate\n", VERSION_1: "5:cpu,memory:/app.slice/gate\n4:pids:/x\n"}
BOTH = pytest.mark.parametrize("files", [VERSION_2, VERSION_1], ids=["version 2", "version 1"])


class Machine:
    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "meminfo").write_text(MEMINFO)

    def is_in(self, files: Files) -> None:
        (self.root / "own").write_text(OWN[files])

    def limits(self, files: Files, limit: str, usage_kib: int, where: str = "", stat: str = "") -> None:
        folder = self.root / ("memory" if files is VERSION_1 else "") / where
        folder.mkdir(parents=True, exist_ok=True)
        (folder / files.limit).write_text(limit + "\n")
        (folder / files.usage).write_text(f"{usage_kib * KIB}\n")
        (folder / "memory.stat").write_text(stat)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(host_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(host_memory, "CGROUPS", tmp_path)
    return Machine(tmp_path)


def kib(count: int) -> str:
    return str(count * KIB)


def test_without_a_cgroup_the_machine_is_the_limit(machine: Machine) -> None:
    assert host_memory.read() == HostMemory(1000 * KIB, 600 * KIB)


@BOTH
@pytest.mark.parametrize("where", ["", "app.slice", "app.slice/gate"], ids=["root", "above", "own"])
def test_a_smaller_limit_of_its_own_cgroup_or_one_above_holds(
    machine: Machine, files: Files, where: str
) -> None:
    machine.is_in(files)
    machine.limits(files, kib(500), 200, where)
    assert host_memory.read() == HostMemory(500 * KIB, 300 * KIB)


@BOTH
def test_of_several_limits_the_tightest_holds(machine: Machine, files: Files) -> None:
    machine.is_in(files)
    machine.limits(files, kib(700), 100)
    machine.limits(files, kib(400), 50, "app.slice")
    machine.limits(files, kib(600), 20, "app.slice/gate")
    assert host_memory.read() == HostMemory(400 * KIB, 350 * KIB)


@BOTH
def test_a_cgroup_of_somebody_else_does_not_matter(machine: Machine, files: Files) -> None:
    machine.is_in(files)
    machine.limits(files, kib(100), 50, "other.slice")
    assert host_memory.read() == HostMemory(1000 * KIB, 600 * KIB)


@BOTH
def test_files_that_were_read_can_be_had_back(machine: Machine, files: Files) -> None:
    machine.is_in(files)
    prefix = files.file_prefix
    stat = f"anon 5\n{prefix}inactive_file {kib(100)}\n{prefix}active_file {kib(50)}\nodd\n"
    machine.limits(files, kib(500), 400, stat=stat)
    assert host_memory.read() == HostMemory(500 * KIB, 250 * KIB)


@pytest.mark.parametrize(
    ("limit", "usage_kib", "expected"),
    [
        (kib(900), 0, HostMemory(900 * KIB, 600 * KIB)),
        (kib(500), 600, HostMemory(500 * KIB, 0)),
        ("max", 5, HostMemory(1000 * KIB, 600 * KIB)),
        (str(2**63 - 4096), 5, HostMemory(1000 * KIB, 600 * KIB)),
        ("nonsense", 5, HostMemory(1000 * KIB, 600 * KIB)),
    ],
    ids=["the machine has less", "over its limit", "no limit", "no limit in version 1's words", "nonsense"],
)
def test_a_limit_means_what_it_says(
    machine: Machine, limit: str, usage_kib: int, expected: HostMemory
) -> None:
    machine.is_in(VERSION_2)
    machine.limits(VERSION_2, limit, usage_kib)
    assert host_memory.read() == expected


@pytest.mark.parametrize("own", ["0::/../../strange\n", "nonsense\n", "", "0::" + "/deep" * 500 + "\n"])
def test_a_path_that_is_not_there_leaves_the_root(machine: Machine, own: str) -> None:
    (machine.root / "own").write_text(own)
    machine.limits(VERSION_2, kib(500), 200)
    expected = (500, 300) if own.startswith("0::") else (1000, 600)
    assert host_memory.read() == HostMemory(*(size * KIB for size in expected))


@pytest.mark.parametrize("text", ["", "MemTotal: x kB\nMemAvailable: 1 kB\n", "MemTotal: 5 kB\n", "nonsense"])
def test_a_kernel_that_does_not_say_is_none(machine: Machine, text: str) -> None:
    (machine.root / "meminfo").write_text(text)
    assert host_memory.read() is None


def test_this_machine_says_something_sane() -> None:
    memory = host_memory.read()
    assert memory is not None
    assert 0 < memory.available_bytes <= memory.total_bytes
