"""A llama-server as a process: its log, its last words, its end. With a stand-in and with the real one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from corral.drivers.llama_process import (
    LINE_BYTES_MAX,
    TAIL_LINES,
    LineSplitter,
    LlamaProcess,
    Output,
    exit_in_words,
)
from corral.drivers.log_files import LogFiles
from corral.drivers.reaper import Reaper
from corral.formats.demo_models import demo
from tests.stand_in_launcher import read_events, write_launcher
from tests.waiting import eventually, is_running

ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


# Lines -------------------------------------------------------------------------------------------

TEXT = b"one\n\ntwo \xff\nthree"
LINES = [b"one", b"", b"two \xff", b"three"]


def split(pieces: list[bytes]) -> list[bytes]:
    splitter = LineSplitter()
    return [line for piece in pieces for line in splitter.feed(piece)] + splitter.finish()


def test_lines_come_out_whole_whatever_the_pieces() -> None:
    assert split([TEXT]) == LINES
    assert split([TEXT[index : index + 1] for index in range(len(TEXT))]) == LINES
    for cut in range(1, len(TEXT)):
        assert split([TEXT[:cut], TEXT[cut:]]) == LINES


@pytest.mark.parametrize("piece_bytes", [1_000, 8_192, 65_536])
@pytest.mark.parametrize(
    ("line_bytes", "sizes"),
    [
        (LINE_BYTES_MAX, [LINE_BYTES_MAX]),
        (LINE_BYTES_MAX + 1, [LINE_BYTES_MAX, 1]),
        (3 * LINE_BYTES_MAX, [LINE_BYTES_MAX] * 3),
    ],
)
def test_a_line_without_end_is_cut(line_bytes: int, sizes: list[int], piece_bytes: int) -> None:
    text = b"short\n" + b"x" * line_bytes + b"\nend\n"
    pieces = [text[start : start + piece_bytes] for start in range(0, len(text), piece_bytes)]
    assert [len(line) for line in split(pieces)] == [5, *sizes, 3]


class Log:
    """What a LogFile is handed."""

    def __init__(self) -> None:
        self.data = b""
        self.closed = 0

    def write(self, data: bytes) -> None:
        self.data += data

    def close(self) -> None:
        self.closed += 1


def heard(*pieces: bytes) -> tuple[Output, Log]:
    log: Any = Log()
    output = Output(log)
    for piece in pieces:
        output.hear(piece)
    return output, log


def test_progress_without_a_lines_end_is_counted_and_logged_at_the_end() -> None:
    output, log = heard(b"loading ", b"....", b"..")
    assert output.size_bytes == 14
    assert log.data == b""
    output.hear(b"")
    assert log.data == b"loading ......\n"
    assert log.closed == 1
    assert output.tail(5) == ["loading ......"]


def test_the_last_lines_are_remembered_and_no_more() -> None:
    output, _log = heard(*(b"line %d\n" % number for number in range(TAIL_LINES + 20)))
    assert output.tail(2) == ["line 118", "line 119"]
    assert len(output.tail(1_000)) == TAIL_LINES
    assert output.tail(0) == []


def test_the_tail_is_fit_for_a_terminal_and_the_log_is_untouched() -> None:
    raw = b"\x1b[31mred\x07\ttab\r \xc2\x9b\xff \xe2\x80\xaeevil \xc3\xa9\n"
    output, log = heard(raw)
    assert output.tail(1) == ["[31mred tab \ufffd evil é"]
    assert log.data == raw


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (0, "exit code 0"),
        (1, "exit code 1"),
        (-9, "killed by SIGKILL"),
        (-6, "killed by SIGABRT"),
        (-63, "killed by signal 63"),
    ],
)
def test_an_exit_code_has_words(exit_code: int, words: str) -> None:
    assert exit_in_words(exit_code) == words


# Processes ---------------------------------------------------------------------------------------


class Herd:
    """Starts stand-ins, or anything else, each with a log."""

    def __init__(self, directory: Path, reaper: Reaper) -> None:
        self.events = directory / "events"
        self.logs = LogFiles(directory / "logs", "host")
        self.reaper = reaper
        self._launcher = write_launcher(directory)
        self._started: list[LlamaProcess] = []

    def start(self, argv: list[str]) -> LlamaProcess:
        env = ENV | {"STAND_IN_LOG": str(self.events)}
        self._started.append(LlamaProcess.start(argv, env, self.logs.open("llama-m", "server"), self.reaper))
        return self._started[-1]

    def stand_in(self, **faults: Any) -> LlamaProcess:
        options = ["--alias", "m", "--port", "0", "--stand-in", json.dumps(faults)]
        return self.start([str(self._launcher), *options])

    async def until_said(self, process: LlamaProcess, words: str) -> None:
        await eventually(lambda: any(words in line for line in process.tail()), f"it says {words!r}")

    async def end(self) -> None:
        for process in self._started:
            process.kill()
            await process.exited
        self.logs.stop()


Run = Callable[[Callable[[Herd], Awaitable[None]]], None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run_scenario(scenario: Callable[[Herd], Awaitable[None]]) -> None:
        async def in_loop() -> None:
            reaper = Reaper()
            reaper.start(asyncio.get_running_loop())
            herd = Herd(tmp_path, reaper)
            try:
                await scenario(herd)
            finally:
                await herd.end()
                reaper.stop()

        asyncio.run(in_loop())

    return run_scenario


def test_what_it_prints_is_in_its_log_and_in_the_tail(run: Run, tmp_path: Path) -> None:
    async def scenario(herd: Herd) -> None:
        process = herd.stand_in()
        await herd.until_said(process, "listening on")
        lines = process.tail()
        assert lines[0] == "srv    load_model: loading model ''"
        await process.stop()
        assert herd.logs.flush(15)
        log = tmp_path / "logs" / "llama-m" / "latest.txt"
        assert log.read_text().splitlines() == process.tail()
        assert process.output_bytes == log.stat().st_size
        assert read_events(herd.events, "start")[0]["pid"] == process.pid

    run(scenario)


def test_an_idle_one_ends_with_zero_on_sigterm(run: Run) -> None:
    async def scenario(herd: Herd) -> None:
        process = herd.stand_in()
        await herd.until_said(process, "listening on")
        assert await process.stop() == 0
        assert not process.alive
        assert process.exit_code == 0
        assert len(read_events(herd.events, "sigterm")) == 1

    run(scenario)


def test_one_that_loads_is_ended_by_sigterm_itself(run: Run) -> None:
    async def scenario(herd: Herd) -> None:
        process = herd.stand_in(never_ready=True)
        await herd.until_said(process, "loading model")
        assert await process.stop() == -15

    run(scenario)


def test_one_that_ignores_sigterm_is_killed(run: Run) -> None:
    async def scenario(herd: Herd) -> None:
        process = herd.stand_in(ignore_sigterm=True)
        await herd.until_said(process, "listening on")
        assert await process.stop(term_timeout_s=0.05, kill_timeout_s=5) == -9
        assert not is_running(process.pid)

    run(scenario)


def test_stops_at_the_same_time_are_one_stop_and_a_waiter_may_leave(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    killpg = os.killpg

    def recorded(group: int, number: int) -> None:
        sent.append(number)
        killpg(group, number)

    async def scenario(herd: Herd) -> None:
        process = herd.stand_in()
        await herd.until_said(process, "listening on")
        monkeypatch.setattr(os, "killpg", recorded)
        stops = [asyncio.ensure_future(process.stop()) for _ in range(5)]
        await asyncio.sleep(0)
        stops.pop().cancel()
        assert await asyncio.gather(*stops) == [0, 0, 0, 0]
        assert sent.count(signal.SIGTERM) == 1

    run(scenario)


def test_stopping_what_has_ended_tells_how_it_ended(run: Run) -> None:
    async def scenario(herd: Herd) -> None:
        process = herd.stand_in(exit_code=7)
        assert await process.exited == 7
        assert await process.stop() == 7
        assert await process.stop() == 7

    run(scenario)


def test_a_kill_ends_a_patient_stop(run: Run) -> None:
    async def scenario(herd: Herd) -> None:
        process = herd.stand_in(ignore_sigterm=True)
        await herd.until_said(process, "listening on")
        stop = asyncio.ensure_future(process.stop(term_timeout_s=1_000))
        await asyncio.sleep(0)
        process.kill()
        assert await stop == -9

    run(scenario)


def test_one_that_cannot_be_reaped_is_given_up_and_still_counts_as_alive(run: Run) -> None:
    async def scenario(herd: Herd) -> None:
        process = herd.stand_in()
        herd.reaper.stop()
        assert await process.stop(term_timeout_s=0.01, kill_timeout_s=0.01) is None
        assert process.alive
        herd.reaper.start(asyncio.get_running_loop())
        assert await process.exited in (-9, -15)

    run(scenario)


def test_stopping_reaches_what_a_wrapper_has_started(run: Run) -> None:
    async def scenario(herd: Herd) -> None:
        process = herd.start(["/bin/sh", "-c", "trap '' TERM; sleep 1000 & echo $!; wait"])
        await eventually(process.tail, "the grandchild's pid")
        grandchild = int(process.tail()[0])
        assert await process.stop(term_timeout_s=0.05) == -9
        await eventually(lambda: not is_running(grandchild), "the grandchild is gone")

    run(scenario)


def test_a_death_out_of_memory_leaves_its_reason_in_the_tail(run: Run) -> None:
    async def scenario(herd: Herd) -> None:
        process = herd.stand_in(out_of_memory=True)
        assert await process.exited == 1
        assert any("cudaMalloc failed: out of memory" in line for line in process.tail(5))

    run(scenario)


def test_a_missing_program_leaves_its_reason_in_the_tail(run: Run) -> None:
    async def scenario(herd: Herd) -> None:
        process = herd.start(["/nowhere/llama-server"])
        assert await process.exited == 127
        assert process.tail(1) == ["exec_shim: cannot run '/nowhere/llama-server': No such file or directory"]

    run(scenario)


def test_no_process_to_be_had_closes_the_log_and_says_so(run: Run) -> None:
    async def scenario(herd: Herd) -> None:
        log: Any = Log()
        with pytest.raises(OSError, match="Argument list too long"):
            LlamaProcess.start(["/bin/true", "x" * 10_000_000], ENV, log, herd.reaper)
        assert log.closed == 1

    run(scenario)


def test_fifty_starts_and_stops_leave_nothing_behind(run: Run) -> None:
    async def scenario(herd: Herd) -> None:
        sleeper = [sys.executable, "-IS", "-c", "import time; print('up', flush=True); time.sleep(1000)"]
        await herd.start(sleeper).stop()
        assert herd.logs.flush(15)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            process = herd.start(sleeper)
            assert await process.stop() == -15
        assert herd.logs.flush(15)
        assert len(os.listdir("/proc/self/fd")) == before

    run(scenario)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


# The real one ------------------------------------------------------------------------------------


def test_the_real_one_with_a_missing_model_exits_1_and_says_which(run: Run, llama_server: Path) -> None:
    async def scenario(herd: Herd) -> None:
        process = herd.start([str(llama_server), "-m", "/nowhere/m.gguf", "--port", "0"])
        assert await process.exited == 1
        assert any("'/nowhere/m.gguf'" in line for line in process.tail(5))

    run(scenario)


def test_the_real_one_loads_answers_and_leaves_on_sigterm(
    run: Run, llama_server: Path, tmp_path: Path
) -> None:
    async def scenario(herd: Herd) -> None:
        model = tmp_path / "demo.gguf"
        model.write_bytes(demo())
        process = herd.start([str(llama_server), "-m", str(model), "-c", "512", "--port", "0"])
        await herd.until_said(process, "listening on")
        port = int(process.tail(1)[0].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=15) as client:
            client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
        assert await process.stop() == 0

    run(scenario)
