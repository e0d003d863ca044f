"""One file on the disk: it grows, it turns, and whatever happens to the disk it never raises."""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from corral.drivers import clock, log_sink
from corral.drivers.log_retention import LogLimits
from corral.drivers.log_sink import Sink, count_lines

MakeSink = Callable[..., Sink]


@pytest.fixture
def make_sink() -> Iterator[MakeSink]:
    """Sinks whose full files are followed by PATH.1, PATH.2, …"""
    sinks: list[Sink] = []

    def make(path: Path, limits: LogLimits | None = None) -> Sink:
        def successor(full: Path) -> Path:
            stem, _, number = full.name.rpartition(".")
            return full.with_name(f"{stem}.{int(number) + 1}")

        sinks.append(Sink(path, successor, limits or LogLimits(), lambda _path: None))
        return sinks[-1]

    yield make
    for sink in sinks:
        sink.close()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass."""
    ahead_s = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal ahead_s
        ahead_s += seconds

    monkeypatch.setattr(clock, "monotonic", lambda: time.monotonic() + ahead_s)
    monkeypatch.setattr(clock, "wall", lambda: time.time() + ahead_s)
    return pass_time


@pytest.mark.parametrize(("data", "lines"), [(b"a\n", 1), (b"a\nb\n", 2), (b"a\nb", 2), (b"a", 1)])
def test_a_line_counts_with_or_without_its_end(data: bytes, lines: int) -> None:
    assert count_lines(data) == lines


def test_lines_are_appended_to_what_is_there(tmp_path: Path, make_sink: MakeSink) -> None:
    path = tmp_path / "new" / "folder" / "log.0"
    assert make_sink(path).append([b"one\n", b"two\n"]) == 0
    assert make_sink(path).append([b"three\n"]) == 0
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert path.stat().st_mode & 0o007 == 0


def test_a_full_file_is_followed_by_the_next_and_no_line_is_lost_or_cut(
    tmp_path: Path, make_sink: MakeSink
) -> None:
    sink = make_sink(tmp_path / "log.0", LogLimits(file_bytes_max=1000))
    lines = [b"%09d\n" % number for number in range(1000)]
    descriptors = len(os.listdir("/proc/self/fd"))
    assert sink.append(lines[:700]) == 0
    assert sink.append(lines[700:]) == 0
    files = sorted(tmp_path.iterdir(), key=lambda path: int(path.suffix[1:]))
    assert [path.stat().st_size for path in files] == [1000] * 10
    assert b"".join(path.read_bytes() for path in files) == b"".join(lines)
    assert sink.path == files[-1]
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1


def test_a_piece_larger_than_a_file_is_written_whole(tmp_path: Path, make_sink: MakeSink) -> None:
    sink = make_sink(tmp_path / "log.0", LogLimits(file_bytes_max=10))
    assert sink.append([b"a" * 50 + b"\n", b"b\n"]) == 0
    assert (tmp_path / "log.0").stat().st_size == 51
    assert (tmp_path / "log.1").read_bytes() == b"b\n"


def test_an_old_file_is_followed_by_the_next(
    tmp_path: Path, make_sink: MakeSink, passes: Callable[[float], None]
) -> None:
    sink = make_sink(tmp_path / "log.0", LogLimits(file_age_max_s=100.0))
    sink.append([b"young\n"])
    passes(99)
    sink.append([b"still young\n"])
    passes(2)
    sink.append([b"too old\n"])
    assert (tmp_path / "log.0").read_bytes() == b"young\nstill young\n"
    assert (tmp_path / "log.1").read_bytes() == b"too old\n"


def test_a_file_that_an_earlier_run_left_long_ago_is_not_continued(
    tmp_path: Path, make_sink: MakeSink
) -> None:
    path = tmp_path / "log.0"
    path.write_bytes(b"old\n")
    os.utime(path, (1, 1))
    make_sink(path).append([b"new\n"])
    assert path.read_bytes() == b"old\n"
    assert (tmp_path / "log.1").read_bytes() == b"new\n"


@pytest.mark.parametrize("moved", [False, True], ids=["removed", "moved"])
def test_a_file_taken_away_is_begun_again_within_a_second(
    moved: bool, tmp_path: Path, make_sink: MakeSink, passes: Callable[[float], None]
) -> None:
    path = tmp_path / "log.0"
    sink = make_sink(path)
    sink.append([b"before\n"])
    if moved:
        path.rename(tmp_path / "elsewhere")
    else:
        path.unlink()
    passes(1.1)
    assert sink.append([b"after\n"]) == 0
    assert path.read_bytes() == b"after\n"


def test_a_full_disk_loses_lines_and_comes_back(
    tmp_path: Path, make_sink: MakeSink, passes: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "corral.logs")
    path = tmp_path / "log.0"
    path.symlink_to("/dev/full")
    sink = make_sink(path)
    assert sink.append([b"a\nb\n", b"c\n"]) == 3
    path.unlink()
    assert sink.append([b"too soon\n"]) == 1
    passes(1.1)
    assert sink.append([b"back\n"]) == 0
    assert path.read_bytes() == b"back\n"
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith(f"cannot write {path} ([Errno 28] No space left on device)")
    assert told[1] == f"{path} is written again; 4 lines of it were lost"


def test_an_outage_is_told_once(
    tmp_path: Path, make_sink: MakeSink, passes: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.0"
    path.symlink_to("/dev/full")
    sink = make_sink(path)
    for _ in range(5):
        assert sink.append([b"a\n"]) == 1
        passes(1.1)
    assert len(caplog.records) == 1


def test_a_disk_that_fills_up_within_a_line_does_not_spoil_the_next_line(
    tmp_path: Path, make_sink: MakeSink, passes: Callable[[float], None]
) -> None:
    path = tmp_path / "log.0"
    sink = make_sink(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        lost = sink.append([b"whole\ncut in two\nnever\n"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lost == 2
    passes(1.1)
    assert sink.append([b"next\n"]) == 0
    assert path.read_bytes() == b"whole\ncut \nnext\n"


def test_a_path_that_cannot_be_is_endured(tmp_path: Path, make_sink: MakeSink) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert make_sink(tmp_path / "file" / "log.0").append([b"a\n"]) == 1


def test_a_closed_one_takes_nothing(tmp_path: Path, make_sink: MakeSink) -> None:
    sink = make_sink(tmp_path / "log.0")
    sink.append([b"a\n"])
    sink.close()
    assert sink.append([b"b\n"]) == 1
    assert (tmp_path / "log.0").read_bytes() == b"a\n"


def test_a_pipe_without_a_reader_costs_lines_and_no_time(
    tmp_path: Path, make_sink: MakeSink, passes: Callable[[float], None]
) -> None:
    pipe = tmp_path / "log.0"
    os.mkfifo(pipe)
    sink = make_sink(pipe)
    assert sink.append([b"unheard\n"]) == 1
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        passes(1.1)
        assert sink.append([b"heard\n"]) == 0
        assert os.read(reader, 100) == b"heard\n"
    finally:
        os.close(reader)


def test_a_pipe_with_a_slow_reader_loses_lines_and_stays_open(
    tmp_path: Path, make_sink: MakeSink, passes: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_sink, "PIPE_PATIENCE_S", 0.01)
    pipe = tmp_path / "log.0"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        sink = make_sink(pipe)
        lines = [b"%099d\n" % number for number in range(10_000)]
        lost = sink.append(lines)
        assert 9_000 < lost < 10_000
        heard = b""
        while (piece := read_some(reader)) is not None:
            assert piece != b"", "the pipe was closed, which tells its reader that this was the end"
            heard += piece
        passes(1.1)
        assert sink.append([b"later\n"]) == 0
        assert read_some(reader) in (b"later\n", b"\nlater\n")
        assert heard == b"".join(lines)[: len(heard)]
    finally:
        os.close(reader)


def read_some(descriptor: int) -> bytes | None:
    try:
        return os.read(descriptor, 1_000_000)
    except BlockingIOError:
        return None
