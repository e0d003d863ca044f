from __future__ import annotations

import logging
import os
import stat
import threading
from pathlib import Path

import pytest

from corral.drivers import key_file_store
from corral.drivers.key_file_store import KeyFileStore
from corral.formats import key_file
from corral.formats.key_file import KeyFileError

KEY = "sk-test-abc123def456"
OTHER_KEY = "sk-other-xyz789uvw012"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api_keys.txt"


def write(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text, "utf-8")
    path.chmod(mode)


def key_ids(store: KeyFileStore) -> list[str]:
    return [record.key_id for record in store.records]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Loading ----------------------------------------------------------------------------------------


def test_the_file_is_loaded_at_first_and_then_only_when_it_changes(path: Path) -> None:
    write(path, f"a:{KEY}\n")
    store = KeyFileStore(path)
    assert store.records == ()
    assert store.load() is True
    assert key_ids(store) == ["a"]
    assert store.load() is False
    write(path, f"a:{KEY}\nb:{OTHER_KEY}\n")
    assert store.load() is True
    assert key_ids(store) == ["a", "b"]


def test_a_change_that_keeps_the_size_and_the_time_of_writing_shows_all_the_same(
    path: Path, tmp_path: Path
) -> None:
    write(path, f"a:{KEY}\n")
    store = KeyFileStore(path)
    store.load()
    before, successor = path.stat(), tmp_path / "successor"
    write(successor, f"b:{KEY}\n")
    os.utime(successor, ns=(before.st_atime_ns, before.st_mtime_ns))
    successor.replace(path)
    assert path.stat().st_size == before.st_size
    assert store.load() is True
    assert key_ids(store) == ["b"]


def test_an_unchanged_file_is_not_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, f"a:{KEY}\n")
    store = KeyFileStore(path)
    store.load()
    monkeypatch.setattr(key_file_store, "_read", None)  # calling it would raise
    assert store.load() is False


def test_a_touched_file_is_read_but_its_records_have_not_changed(path: Path) -> None:
    write(path, f"a:{KEY}\n")
    store = KeyFileStore(path)
    store.load()
    write(path, f"# only a comment more\na:{KEY}\n")
    assert store.load() is False
    assert store.reload() is False
    assert key_ids(store) == ["a"]


def test_a_file_that_is_readable_and_empty_takes_every_key_away(path: Path) -> None:
    write(path, f"a:{KEY}\n")
    store = KeyFileStore(path)
    store.load()
    write(path, "# nobody\n")
    assert store.load() is True
    assert store.records == ()


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(Path.unlink, "No such file or directory", id="gone"),
        pytest.param(make_fifo, "it is not a regular file", id="a fifo"),
        pytest.param(make_directory, "Is a directory", id="a directory"),
        pytest.param(
            lambda path: path.write_bytes(b"a:\xff\n"), "it is not UTF-8 text (at byte 2)", id="bytes"
        ),
        pytest.param(
            lambda path: path.write_bytes(b"#" * (key_file.FILE_BYTES_MAX + 1)),
            "it is larger than 4194304 bytes",
            id="too large",
        ),
        pytest.param(
            lambda path: path.write_text("\n" * 10_000), "it has more than 10000 lines", id="too long"
        ),
        pytest.param(
            lambda path: (path.unlink(), path.symlink_to(path.name)),
            "Too many levels of symbolic links",
            id="a link to itself",
        ),
    ],
)
def test_a_file_that_can_not_be_read_leaves_the_loaded_keys_in_force(
    path: Path, spoil: object, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(spoil)
    write(path, f"a:{KEY}\n")
    store = KeyFileStore(path)
    store.load()
    spoil(path)
    caplog.clear()
    assert [store.load(), store.load(), store.reload()] == [False] * 3
    assert key_ids(store) == ["a"]
    assert caplog.messages == [
        f"The keys file {path} can't be read: {reason}. Keys loaded before stay in force: 1."
    ]


def test_a_file_that_comes_back_is_loaded_and_its_next_failure_is_told_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = KeyFileStore(path)
    assert store.load() is False
    write(path, f"a:{KEY}\n")
    assert store.load() is True
    path.unlink()
    caplog.clear()
    store.load()
    assert len(caplog.messages) == 1


def test_a_reading_that_failed_for_a_passing_reason_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, f"a:{KEY}\n")
    store = KeyFileStore(path)

    def fail(path: Path) -> tuple[bytes, int]:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(key_file_store, "_read", fail)
        assert store.load() is False
    assert store.load() is True
    assert key_ids(store) == ["a"]


def test_failures_leave_no_descriptor_open(path: Path) -> None:
    store = KeyFileStore(path)
    path.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        store.reload()
    assert len(os.listdir("/proc/self/fd")) == before


# What is logged ---------------------------------------------------------------------------------


def test_problems_are_logged_by_line_and_without_any_key(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, f"a:{KEY}:rpm=SECRET\nSECRETSECRET\nb:shortkey\n")
    with caplog.at_level(logging.INFO):
        KeyFileStore(path).load()
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "WARNING", "INFO"]
    assert caplog.messages == [
        f"{path}, line 1 rejected: the option rpm must be a whole number from 0 to 1000000.",
        f"{path}, line 2 rejected: a line must read key_id:api_key or key_id:api_key:options.",
        f"{path}, line 3 accepted, but: the key has fewer than 16 characters: make a longer one.",
        f"1 keys loaded from {path}.",
    ]
    assert KEY not in caplog.text


def test_a_file_full_of_problems_does_not_flood_the_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(path, "broken\n" * 1000)
    KeyFileStore(path).load()
    assert len(caplog.messages) == key_file_store.LOGGED_PROBLEMS_MAX + 1
    assert caplog.messages[-1] == f"{path}: 980 more lines rejected."


@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o400, 0), (0o640, 1), (0o604, 1), (0o644, 1)])
def test_a_file_open_to_others_is_warned_about(
    path: Path, mode: int, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, f"a:{KEY}\n", mode)
    KeyFileStore(path).load()
    assert (
        caplog.messages
        == [f"Other users can open the keys file {path} (mode {mode:o}): chmod 600 it."] * warned
    )


# Editing ----------------------------------------------------------------------------------------


def test_an_edit_replaces_the_text_and_closes_the_file_to_others(path: Path) -> None:
    write(path, "old\n", 0o644)
    assert key_file_store.edit(path, lambda text: text + "new\n") is True
    assert path.read_text() == "old\nnew\n"
    assert mode_of(path) == 0o600


def test_a_missing_file_is_created_with_its_folder_whatever_the_umask(tmp_path: Path) -> None:
    path, umask = tmp_path / "data" / "keys" / "api_keys.txt", os.umask(0)
    try:
        key_file_store.edit(path, lambda text: text + "first\n")
    finally:
        os.umask(umask)
    assert path.read_text() == "first\n"
    assert mode_of(path) == 0o600


def test_an_edit_that_changes_nothing_writes_nothing(path: Path) -> None:
    write(path, "same\n")
    before = path.stat()
    assert key_file_store.edit(path, lambda text: text) is False
    assert path.stat().st_ino == before.st_ino
    assert not key_file_store.edit(path.with_name("other"), lambda text: text)
    assert not path.with_name("other").exists()


def test_a_refused_edit_leaves_the_file_and_its_folder_as_they_were(path: Path) -> None:
    write(path, f"a:{KEY}\n")
    with pytest.raises(KeyFileError):
        key_file_store.edit(path, lambda text: key_file.remove_key(text, "b"))
    assert path.read_text() == f"a:{KEY}\n"
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".api_keys.txt.lock", "api_keys.txt"]


def test_an_edit_that_can_not_be_written_leaves_the_old_file_and_no_rest(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, "old\n")

    def fail(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        key_file_store.edit(path, lambda text: "new\n")
    assert path.read_text() == "old\n"
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".api_keys.txt.lock", "api_keys.txt"]


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "keys"
    target.parent.mkdir()
    write(target, "old\n")
    path.symlink_to(target)
    key_file_store.edit(path, lambda text: "new\n")
    assert path.is_symlink()
    assert target.read_text() == "new\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_root_edits_stays_with_the_user_it_belongs_to(path: Path) -> None:
    write(path, "old\n")
    os.chown(path, 12345, 12346)
    key_file_store.edit(path, lambda text: "new\n")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)
    # A first file belongs to whoever owns the folder.
    os.chown(path.parent, 12345, 12346)
    path.unlink()
    key_file_store.edit(path, lambda text: "new\n")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)


def test_edits_at_the_same_time_happen_one_after_the_other(path: Path) -> None:
    all_are_there = threading.Barrier(8)

    def add(number: int) -> None:
        all_are_there.wait(timeout=10)
        for _ in range(5):
            key_file_store.edit(path, lambda text: f"{text}{number}\n")

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(path.read_text().split()) == sorted("01234567" * 5)


def test_a_reader_sees_the_old_file_or_the_new_one(path: Path) -> None:
    texts = {"a" * 100_000, "b" * 200_000}
    write(path, "a" * 100_000)
    done = threading.Event()

    def edit_back_and_forth() -> None:
        for _ in range(20):
            key_file_store.edit(path, lambda text: next(iter(texts - {text})))
        done.set()

    writer = threading.Thread(target=edit_back_and_forth)
    writer.start()
    seen = {path.read_text()}
    while not done.is_set():
        seen.add(path.read_text())
    writer.join(timeout=30)
    assert seen == texts


def test_new_keys_are_long_and_differ_and_load() -> None:
    keys = [key_file_store.new_key() for _ in range(100)]
    assert len(set(keys)) == 100
    contents = key_file.parse("\n".join(f"k{number}:{key}" for number, key in enumerate(keys)))
    assert len(contents.keys) == 100
    assert contents.warnings == ()
    assert {len(key) for key in keys} == {67}
