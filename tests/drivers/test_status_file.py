"""The status file on a real disk: whole or not at all, readable by others, and never trusted."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
from pathlib import Path

import pytest

from corral.drivers import process_facts, status_file
from corral.drivers.status_file import Fault, StatusReader
from corral.formats import status
from corral.formats.status import ModelState, ModelStatus, Phase, StatusDocument

DOCUMENT = StatusDocument(
    instance="box-1",
    pid=os.getpid(),
    pid_started=process_facts.start_ticks(os.getpid()),
    written_at=1_800_000_000.0,
    phase=Phase.SERVING,
    preload_settled=True,
    single_model_failed=False,
    models={"m": ModelStatus(ModelState.READY, port=8085)},
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "corral" / "status.json")


def read(path: str) -> StatusDocument | Fault:
    return StatusReader(path).read()


def mode(path: str) -> int:
    return os.stat(path).st_mode & 0o777


def test_what_is_written_is_read_back(path: str) -> None:
    status_file.write(path, status.to_json(DOCUMENT))
    assert read(path) == DOCUMENT


def test_others_may_read_the_file_and_change_nothing_whatever_the_umask(path: str) -> None:
    before = os.umask(0o077)
    try:
        status_file.write(path, status.to_json(DOCUMENT))
    finally:
        os.umask(before)
    assert mode(path) == 0o644
    assert mode(os.path.dirname(path)) == 0o755


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o700)
    status_file.write(str(tmp_path / "status.json"), b"{}")
    assert mode(str(tmp_path)) == 0o700


def test_a_draft_left_by_a_crash_is_overwritten_and_none_stays(path: str) -> None:
    os.makedirs(os.path.dirname(path))
    Path(f"{path}.new").write_bytes(b"x" * 100_000)
    status_file.write(path, status.to_json(DOCUMENT))
    assert read(path) == DOCUMENT
    assert os.listdir(os.path.dirname(path)) == ["status.json"]


def test_a_link_in_the_drafts_place_is_not_followed(path: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.makedirs(os.path.dirname(path))
    os.symlink(victim, f"{path}.new")
    with pytest.raises(OSError, match="symbolic links"):
        status_file.write(path, b"{}")
    assert victim.read_bytes() == b"precious"


def test_a_reader_never_meets_half_a_document(path: str) -> None:
    documents = [
        dataclasses.replace(DOCUMENT, models={}),
        dataclasses.replace(
            DOCUMENT, models={f"model-{n}": ModelStatus(ModelState.OFF) for n in range(1000)}
        ),
    ]
    payloads = [status.to_json(document) for document in documents]
    status_file.write(path, payloads[0])
    done = threading.Event()

    def keep_writing() -> None:
        for turn in range(200):
            status_file.write(path, payloads[turn % 2])
        done.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    reader = StatusReader(path)
    while not done.is_set():
        assert reader.read() in documents
    writer.join()


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        pytest.param(b"", Fault.GARBAGE, id="empty"),
        pytest.param(b"\x00\xff", Fault.GARBAGE, id="no-text"),
        pytest.param(b'{"pid": 1}', Fault.GARBAGE, id="another-document"),
        pytest.param(b" " * (status.DOCUMENT_BYTES_MAX + 1), Fault.TOO_LARGE, id="too-large"),
    ],
)
def test_a_file_that_is_no_document_says_why(path: str, payload: bytes, fault: Fault) -> None:
    status_file.write(path, payload)
    assert read(path) is fault


def test_no_file_and_no_readable_file_are_told_apart(path: str, tmp_path: Path) -> None:
    assert read(path) is Fault.MISSING
    assert read(str(tmp_path)) is Fault.UNREADABLE


def test_a_reader_sees_every_replacement_however_quick_and_decodes_once(path: str) -> None:
    reader = StatusReader(path)
    assert reader.read() is Fault.MISSING
    for written_at in (1.0, 2.0, 1.0):
        document = dataclasses.replace(DOCUMENT, written_at=written_at)
        status_file.write(path, status.to_json(document))
        assert reader.read() == document
        assert reader.read() is reader.read()
    os.unlink(path)
    assert reader.read() is Fault.MISSING


def test_the_writer_is_alive_until_it_dies_and_only_under_its_own_start_time() -> None:
    with subprocess.Popen(["sleep", "60"]) as writer:
        document = dataclasses.replace(
            DOCUMENT, pid=writer.pid, pid_started=process_facts.start_ticks(writer.pid)
        )
        assert status_file.writer_alive(document)
        assert not status_file.writer_alive(dataclasses.replace(document, pid_started=1))
        writer.kill()
    assert not status_file.writer_alive(document)
