"""Where a llama-server listens beside its port, and where it must not."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from corral.drivers.socket_files import PATH_BYTES_MAX, free_path, remove


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "engines"


def test_the_folder_is_made_and_nobody_else_may_enter(folder: Path) -> None:
    assert free_path(folder, 8085) == str(folder / "8085.sock")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_a_killed_server_left_behind_is_removed(folder: Path) -> None:
    path = free_path(folder, 8085)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(path)
    assert os.path.exists(path)
    with socket.socket(socket.AF_UNIX) as following:
        following.bind(free_path(folder, 8085))


def test_what_is_not_there_is_removed_all_the_same(folder: Path) -> None:
    remove(str(folder / "8085.sock"))


def test_a_path_must_fit_an_address_whole(tmp_path: Path) -> None:
    room = PATH_BYTES_MAX - len(os.fsencode(tmp_path)) - len("//8085.sock")
    assert len(free_path(tmp_path / ("x" * room), 8085)) == PATH_BYTES_MAX
    assert free_path(tmp_path / ("x" * (room + 1)), 8085) == ""
    assert free_path(tmp_path / ("é" * (room // 2 + 1)), 8085) == ""


def test_a_path_must_not_look_like_a_list(tmp_path: Path) -> None:
    assert free_path(tmp_path / "a,b", 8085) == ""


def test_a_folder_that_others_may_enter_is_none(folder: Path) -> None:
    folder.mkdir()
    for mode in (0o750, 0o701, 0o777):
        folder.chmod(mode)
        assert free_path(folder, 8085) == ""
    folder.chmod(0o700)
    assert free_path(folder, 8085)


def test_nor_is_one_that_others_could_put_another_in_place_of(folder: Path) -> None:
    folder.parent.chmod(0o777)
    assert free_path(folder, 8085) == ""
    folder.parent.chmod(0o1777)  # as /tmp is: there everybody moves his own files alone
    assert free_path(folder, 8085)


def test_another_users_folder_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_path(folder, 8085)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert free_path(folder, 8085) == ""


def test_a_link_or_a_file_in_its_place_is_none(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert free_path(folder, 8085) == ""
    folder.unlink()
    folder.write_text("")
    assert free_path(folder, 8085) == ""
