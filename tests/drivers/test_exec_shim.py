"""The shim is run as a program: what its target gets, and what becomes of it when we die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from corral.drivers.process import EXEC_SHIM
from tests.waiting import is_running, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="parent death signals are Linux's")
SHIM = [sys.executable, "-I", "-S", str(EXEC_SHIM)]


def run_through_shim(*program: str | bytes, parent: int | None = None) -> subprocess.CompletedProcess[bytes]:
    pid = os.getpid() if parent is None else parent
    return subprocess.run([*SHIM, str(pid), "--", *program], capture_output=True, check=False, timeout=30)


def test_the_program_gets_its_arguments_byte_for_byte() -> None:
    done = run_through_shim("/usr/bin/printf", "%s|", "--", "", "two words", "é", b"\xff\xfe")
    assert done.stdout == b"--||two words|\xc3\xa9|\xff\xfe|"
    assert done.returncode == 0


def test_the_environment_passes_unchanged() -> None:
    env = {"CUDA_VISIBLE_DEVICES": "GPU-1", "LC_ALL": "C.UTF-8", "PYTHONPATH": "/nowhere"}
    argv = [*SHIM, str(os.getpid()), "--", "/usr/bin/env"]
    done = subprocess.run(argv, env=env, capture_output=True, check=True, timeout=30)
    assert dict(line.split("=", 1) for line in done.stdout.decode().splitlines()) == env


def test_the_program_replaces_the_shim_and_keeps_its_pid() -> None:
    argv = [*SHIM, str(os.getpid()), "--", "/bin/sh", "-c", "echo $$"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        printed, _ = process.communicate(timeout=30)
    assert int(printed) == process.pid


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda path: None, "No such file or directory", id="missing"),
        pytest.param(lambda path: path.write_bytes(b""), "Permission denied", id="not executable"),
        pytest.param(lambda path: path.mkdir(), "Permission denied", id="a folder"),
        pytest.param(
            lambda path: (path.write_bytes(b"garbage"), path.chmod(0o755)),
            "Exec format error",
            id="no program",
        ),
    ],
)
def test_a_program_that_cannot_run_is_exit_127_and_one_clear_line(
    make: object, reason: str, tmp_path: Path
) -> None:
    program = tmp_path / "llama-server"
    assert callable(make)
    make(program)
    done = run_through_shim(str(program))
    assert done.returncode == 127
    assert done.stderr.decode() == f"exec_shim: cannot run {str(program)!r}: {reason}\n"


@pytest.mark.parametrize("arguments", [[], ["1"], ["1", "--"], ["x", "--", "/bin/true"], ["1", "-", "a"]])
def test_a_wrong_call_is_refused_with_the_usage(arguments: list[str]) -> None:
    done = subprocess.run([*SHIM, *arguments], capture_output=True, check=False, timeout=30)
    assert done.returncode == 2
    assert done.stderr.startswith(b"exec_shim: usage: ")


def test_nothing_starts_when_the_parent_is_already_gone() -> None:
    # Our own parent stands for a parent that died in between: it is not the shim's.
    done = run_through_shim("/bin/echo", "started", parent=os.getppid())
    assert (done.returncode, done.stdout) == (127, b"")
    assert b"the parent is gone" in done.stderr


def test_ignored_signals_and_the_mask_do_not_reach_the_program() -> None:
    spoilt = f"""
import os, signal, sys
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.executable, [*{SHIM!r}, str(os.getppid()), "--", "/bin/cat", "/proc/self/status"])
"""
    done = subprocess.run([sys.executable, "-c", spoilt], capture_output=True, check=True, timeout=30)
    status = dict(line.split(":\t", 1) for line in done.stdout.decode().splitlines() if ":\t" in line)
    # The C library keeps signals 32 and 33 to itself.
    usable = sum(1 << (number - 1) for number in signal.valid_signals())
    assert int(status["SigIgn"], 16) & usable == 0
    assert int(status["SigBlk"], 16) == 0


def test_the_program_dies_with_a_parent_that_is_killed_outright() -> None:
    parent_code = f"""
import os, subprocess
child = subprocess.Popen([*{SHIM!r}, str(os.getpid()), "--", "/bin/sleep", "1000"])
print(child.pid, flush=True)
child.wait()
"""
    with subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        grandchild = int(parent.stdout.readline())
        name = Path(f"/proc/{grandchild}/comm")
        wait_until(lambda: name.read_text() == "sleep\n", "the shim becomes sleep")
        parent.send_signal(signal.SIGKILL)
        parent.wait(timeout=30)
    wait_until(lambda: not is_running(grandchild), "the kernel kills the grandchild")
