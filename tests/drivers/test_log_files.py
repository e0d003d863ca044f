"""All the logs together: one thread, a bounded queue, files as promised."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from corral.drivers import log_files
from corral.drivers.log_files import LogFiles
from corral.drivers.log_retention import LogLimits
from corral.drivers.log_sink import Sink
from tests.waiting import wait_until

MakeLogs = Callable[..., LogFiles]


@pytest.fixture
def make_logs(tmp_path: Path) -> Iterator[MakeLogs]:
    made: list[LogFiles] = []

    def make(limits: LogLimits | None = None) -> LogFiles:
        made.append(LogFiles(tmp_path, "gpu/box:1", limits))
        return made[-1]

    yield make
    for logs in made:
        assert logs.stop()


@pytest.mark.parametrize(
    ("folder", "kind", "pattern"),
    [
        ("_boot", "boot", r"_boot/\d{8}_\d{6}_boot_gpu_box_1\.log"),
        ("llama-org/phi:Q4", "server", r"llama-org_phi_Q4/\d{8}_\d{6}_server_gpu_box_1\.log"),
    ],
)
def test_a_log_has_its_folder_its_name_and_its_link(
    folder: str, kind: str, pattern: str, tmp_path: Path, make_logs: MakeLogs
) -> None:
    logs = make_logs()
    log = logs.open(folder, kind)
    log.write(b"one\n")
    log.write(b"two\n")
    assert logs.flush(15)
    assert re.fullmatch(pattern, str(log.path.relative_to(tmp_path)))
    assert log.path.read_bytes() == b"one\ntwo\n"
    assert os.readlink(log.path.with_name("latest.txt")) == log.path.name


def test_starts_within_one_second_have_logs_of_their_own_and_the_last_is_the_latest(
    tmp_path: Path, make_logs: MakeLogs
) -> None:
    logs = make_logs()
    opened = [logs.open("llama-a", "server") for _ in range(5)]
    for number, log in enumerate(opened):
        log.write(b"%d\n" % number)
        assert logs.flush(15)
    assert [log.path.read_bytes() for log in opened] == [b"%d\n" % number for number in range(5)]
    assert [log.path for log in opened] == sorted(log.path for log in opened)
    assert (tmp_path / "llama-a" / "latest.txt").read_bytes() == b"4\n"


def test_nothing_is_on_the_disk_before_the_first_line(tmp_path: Path, make_logs: MakeLogs) -> None:
    logs = make_logs()
    logs.open("_boot", "boot")
    logs.open_access_log()
    assert logs.flush(15)
    assert list(tmp_path.iterdir()) == []


def test_the_access_log_goes_on_after_a_restart(tmp_path: Path, make_logs: MakeLogs) -> None:
    for line in (b"first run\n", b"second run\n"):
        logs = make_logs()
        logs.open_access_log().write(line)
        assert logs.stop()
    assert (tmp_path / "api_access.log").read_bytes() == b"first run\nsecond run\n"
    assert os.listdir(tmp_path) == ["api_access.log"]


def test_a_full_access_log_is_put_aside_under_a_dated_name(tmp_path: Path, make_logs: MakeLogs) -> None:
    logs = make_logs(LogLimits(file_bytes_max=100))
    log = logs.open_access_log()
    lines = [b"request %d\n" % number for number in range(10, 40)]
    for line in lines:
        log.write(line)
    assert logs.flush(15)
    aside = sorted(tmp_path.glob("api_access.*_*_gpu_box_1.log"))
    assert len(aside) == 3
    assert log.path == tmp_path / "api_access.log"
    assert b"".join(path.read_bytes() for path in [*aside, log.path]) == b"".join(lines)


def test_a_full_server_log_is_followed_by_a_new_one_and_the_link_follows(
    tmp_path: Path, make_logs: MakeLogs
) -> None:
    logs = make_logs(LogLimits(file_bytes_max=100))
    log = logs.open("llama-a", "server")
    for number in range(10, 40):
        log.write(b"line of %d\n" % number)
    assert logs.flush(15)
    assert len(list(tmp_path.glob("llama-a/*_server_gpu_box_1.log"))) == 4
    assert os.readlink(tmp_path / "llama-a" / "latest.txt") == log.path.name


def test_all_logs_together_stay_below_the_cap(tmp_path: Path, make_logs: MakeLogs) -> None:
    logs = make_logs(LogLimits(file_bytes_max=1_000, total_bytes_max=5_000))
    log = logs.open("llama-a", "server")
    for _ in range(200):
        log.write(b"x" * 99 + b"\n")
        logs.flush(15)
    assert logs.stop()
    sizes = [path.stat().st_size for path in tmp_path.glob("llama-a/*_server_*.log")]
    assert 4_000 <= sum(sizes) <= 5_000
    assert log.path.exists()


def test_an_open_log_that_grows_makes_the_oldest_go(tmp_path: Path, make_logs: MakeLogs) -> None:
    old = tmp_path / "llama-b" / "20260101_000000_server_gpu.log"
    old.parent.mkdir()
    old.write_bytes(b"x" * 1_000)
    os.utime(old, (1, 1))
    logs = make_logs(LogLimits(file_bytes_max=10_000, total_bytes_max=5_000))
    log = logs.open("llama-a", "server")
    log.write(b"first\n")
    assert logs.flush(15)
    assert old.exists()
    for _ in range(3):
        log.write(b"x" * 2_999 + b"\n")
        assert logs.flush(15)
    assert logs.stop()
    assert not old.exists()
    assert log.path.stat().st_size == 9_006


def test_many_files_stay_below_their_number(tmp_path: Path, make_logs: MakeLogs) -> None:
    logs = make_logs(LogLimits(files_max=3))
    for _ in range(8):
        log = logs.open("llama-a", "server")
        log.write(b"died at once\n")
        log.close()
        assert logs.flush(15)
    assert logs.stop()
    assert len(list(tmp_path.glob("llama-a/*_server_*.log"))) == 3
    assert log.path.exists()


def test_lines_of_many_threads_arrive_whole_and_in_each_threads_order(make_logs: MakeLogs) -> None:
    logs = make_logs()
    log = logs.open_access_log()

    def write(name: str) -> None:
        for number in range(2_000):
            log.write(f"{name} {number:05d}\n".encode())

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logs.flush(15)
    lines = log.path.read_text().splitlines()
    for name in "abcd":
        mine = [line for line in lines if line.startswith(name)]
        assert mine == [f"{name} {number:05d}" for number in range(2_000)]
    assert len(lines) == 8_000
    assert logs.dropped_lines == 0


def test_lines_that_come_together_are_written_with_one_call(
    make_logs: MakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write = os.write

    def counted(descriptor: int, data: bytes) -> int:
        sizes.append(len(data))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", counted)
    logs = make_logs()
    log = logs.open_access_log()
    for _ in range(1_000):
        log.write(b"0123456789abcdef\n")
    assert logs.flush(15)
    assert sum(sizes) == 17_000
    assert len(sizes) < 20


class Jam:
    """A disk that takes nothing until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.let_go = threading.Event()
        append = Sink.append

        def jammed(sink: Sink, pieces: list[bytes]) -> int:
            self.reached.set()
            self.let_go.wait(15)
            return append(sink, pieces)

        monkeypatch.setattr(Sink, "append", jammed)


def test_a_disk_that_hangs_costs_lines_beyond_the_bound_and_nothing_else(
    make_logs: MakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    jam = Jam(monkeypatch)
    monkeypatch.setattr(log_files, "QUEUE_BYTES_MAX", 1_000)
    logs = make_logs()
    log = logs.open_access_log()
    log.write(b"first\n")
    assert jam.reached.wait(15)
    for number in range(200):
        log.write(b"%08d\n" % number)
    # What the disk is chewing on counts too: 6 bytes and 110 lines of 9 are 996.
    assert logs.dropped_lines == 90
    assert not logs.flush(0.01)
    jam.let_go.set()
    assert logs.flush(15)
    log.write(b"after\n")
    assert logs.flush(15)
    kept = b"first\n" + b"".join(b"%08d\n" % number for number in range(110)) + b"after\n"
    assert log.path.read_bytes() == kept
    assert logs.dropped_lines == 90


def test_the_number_of_waiting_lines_is_bounded_too(
    make_logs: MakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    jam = Jam(monkeypatch)
    monkeypatch.setattr(log_files, "QUEUE_PIECES_MAX", 10)
    logs = make_logs()
    log = logs.open_access_log()
    log.write(b"first\n")
    assert jam.reached.wait(15)
    for _ in range(25):
        log.write(b"x\n")
    assert logs.dropped_lines == 15
    jam.let_go.set()


def test_a_full_disk_stops_one_log_and_is_counted(tmp_path: Path, make_logs: MakeLogs) -> None:
    (tmp_path / "api_access.log").symlink_to("/dev/full")
    logs = make_logs()
    access, server = logs.open_access_log(), logs.open("llama-a", "server")
    access.write(b"one\ntwo\n")
    server.write(b"fine\n")
    assert logs.flush(15)
    assert logs.dropped_lines == 2
    assert server.path.read_bytes() == b"fine\n"
    (tmp_path / "api_access.log").unlink()

    def comes_back() -> bool:
        access.write(b"again\n")
        logs.flush(15)
        return access.path.exists()

    wait_until(comes_back, "the access log is written again")
    assert access.path.read_bytes() == b"again\n"


def test_a_pipe_that_nobody_reads_does_not_hold_up_the_others(tmp_path: Path, make_logs: MakeLogs) -> None:
    os.mkfifo(tmp_path / "api_access.log")
    reader = os.open(tmp_path / "api_access.log", os.O_RDONLY | os.O_NONBLOCK)
    logs = make_logs()
    access, server = logs.open_access_log(), logs.open("llama-a", "server")
    for _ in range(2_000):
        access.write(b"x" * 99 + b"\n")
    server.write(b"fine\n")
    assert logs.flush(15)
    assert server.path.read_bytes() == b"fine\n"
    assert logs.dropped_lines > 0
    os.close(reader)


def test_closing_gives_the_descriptor_back_and_drops_what_comes_later(make_logs: MakeLogs) -> None:
    logs = make_logs()
    before = len(os.listdir("/proc/self/fd"))
    log = logs.open("llama-a", "server")
    log.write(b"last words\n")
    log.close()
    log.close()
    log.write(b"too late\n")
    assert logs.flush(15)
    log.write(b"far too late\n")
    assert logs.flush(15)
    assert log.path.read_bytes() == b"last words\n"
    assert logs.dropped_lines == 2
    assert len(os.listdir("/proc/self/fd")) == before


def test_stopping_writes_what_is_left_and_drops_what_comes_later(make_logs: MakeLogs) -> None:
    logs = make_logs()
    log = logs.open_access_log()
    for _ in range(100):
        log.write(b"line\n")
    assert logs.stop()
    log.write(b"later\n")
    log.close()
    assert logs.stop()
    assert log.path.read_bytes() == b"line\n" * 100
    assert logs.dropped_lines == 1
