"""What log files are called, and which ones go first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corral.drivers.log_retention import (
    LogLimits,
    name_on_disk,
    point_latest_at,
    remove_oldest,
    stamp,
)


@pytest.mark.parametrize(
    ("name", "on_disk"),
    [
        ("llama-qwen-7b", "llama-qwen-7b"),
        ("llama-org/phi:Q4", "llama-org_phi_Q4"),
        ("a b\x00\n\u202e|é", "a_b_____"),
        ("../../etc", ".._.._etc"),
        ("x" * 500, "x" * 120),
    ],
)
def test_odd_characters_become_underscores(name: str, on_disk: str) -> None:
    assert name_on_disk(name) == on_disk


def test_stamps_are_in_utc() -> None:
    assert stamp(0) == "19700101_000000"
    assert stamp(1_795_252_260) == "20261121_091100"


def test_latest_is_a_relative_link_and_is_replaced(tmp_path: Path) -> None:
    for name in ("first.log", "second.log"):
        (tmp_path / name).write_text(name)
        point_latest_at(tmp_path / name)
        assert os.readlink(tmp_path / "latest.txt") == name
    assert sorted(os.listdir(tmp_path)) == ["first.log", "latest.txt", "second.log"]


def test_a_disk_without_links_is_no_error(tmp_path: Path) -> None:
    point_latest_at(tmp_path / "missing" / "a.log")
    assert list(tmp_path.iterdir()) == []


def log_file(directory: Path, name: str, age_s: int, size_bytes: int = 100) -> Path:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size_bytes)
    os.utime(path, (1_000_000 - age_s, 1_000_000 - age_s))
    return path


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*.*"))


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    log_file(tmp_path, "llama-a/20260101_000000_server_h.log", age_s=50)
    log_file(tmp_path, "llama-b/20260102_000000_server_h.log", age_s=40)
    log_file(tmp_path, "api_access.20260103_000000_h.log", age_s=30)
    log_file(tmp_path, "_boot/20260104_000000_boot_h.log", age_s=20)
    return tmp_path


def test_within_the_limits_nothing_goes(logs: Path) -> None:
    remove_oldest(logs, (), LogLimits(total_bytes_max=400, files_max=4))
    assert len(names(logs)) == 4


@pytest.mark.parametrize(
    "limits", [LogLimits(total_bytes_max=250), LogLimits(files_max=2)], ids=["bytes", "files"]
)
def test_the_oldest_go_first_wherever_they_lie(logs: Path, limits: LogLimits) -> None:
    remove_oldest(logs, (), limits)
    assert names(logs) == ["_boot/20260104_000000_boot_h.log", "api_access.20260103_000000_h.log"]


def test_an_open_one_stays_however_old(logs: Path) -> None:
    oldest = logs / "llama-a/20260101_000000_server_h.log"
    remove_oldest(logs, {oldest}, LogLimits(total_bytes_max=100))
    assert names(logs) == ["llama-a/20260101_000000_server_h.log"]


def test_a_removed_file_takes_the_link_to_it_along_and_no_other(logs: Path) -> None:
    log_file(logs, "llama-b/20260105_000000_server_h.log", age_s=10)
    point_latest_at(logs / "llama-a/20260101_000000_server_h.log")
    point_latest_at(logs / "llama-b/20260105_000000_server_h.log")
    remove_oldest(logs, (), LogLimits(total_bytes_max=300))
    assert not (logs / "llama-a/latest.txt").is_symlink()
    assert os.readlink(logs / "llama-b/latest.txt") == "20260105_000000_server_h.log"


@pytest.mark.parametrize(
    "name",
    [
        "notes.log",
        "api_access.log",
        "20260101.log",
        "llama-a/20260101_000000_server_h.txt",
        "llama-a/x/y.log",
    ],
)
def test_what_we_did_not_name_is_never_removed(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 1000)
    remove_oldest(tmp_path, (), LogLimits(total_bytes_max=0, files_max=0))
    assert path.exists()


def test_a_directory_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove_oldest(tmp_path / "missing", (), LogLimits(total_bytes_max=0))
