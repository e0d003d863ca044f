"""The entry point of the gateway: what it hears before there is a gateway to hear it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import GATEWAY, ROOT

DEADLINE_S = 20.0
RAN_TO_ITS_END = 7
# As process 1 of a container it would not even notice a signal that it has no handler for.
NAMESPACE = ["unshare", "--pid", "--fork"]


def as_process_1() -> list[str]:
    """What to begin a command with so that it becomes process 1; nothing where we may not do that."""
    able = (
        shutil.which(NAMESPACE[0])
        and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    )
    return NAMESPACE if able else []


def only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


each = pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name
)


def after(number: signal.Signals) -> int:
    """The exit code. SIGHUP is no wish to stop, and there are no keys yet to read again."""
    return RAN_TO_ITS_END if number is signal.SIGHUP else 0


PROGRAM = f"""
import sys
print('reading', flush=True)
sys.stdin.readline()
main = lambda _path: {RAN_TO_ITS_END}
"""
LAST_STEP = "heed_no_signal = drop_what_cannot_be_written = lambda: None"


class Place:
    """A folder that is started like the image's, with a program that waits while it is being read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("scripts/corral/program.py", PROGRAM)
        self.write("scripts/corral/drivers/last_step.py", LAST_STEP)
        shutil.copy(GATEWAY, folder / "scripts")
        shutil.copy(ROOT / "entrypoint.sh", folder)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def exit_code(self, command: list[str], number: signal.Signals, when: str) -> int:
        """Of a program that is sent a signal as soon as it says `when`, and may then go on."""
        prefix = as_process_1()
        with subprocess.Popen(
            [*prefix, *command],
            env={"PATH": f"{self.folder}/bin:{os.environ['PATH']}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"{when}\n"
            pid = only_child(process.pid) if prefix else process.pid
            try:
                os.kill(pid, number)
                said, _nothing = process.communicate("\n", DEADLINE_S)
                if number is signal.SIGHUP and when != "reading":
                    assert said.endswith("reading\n")
                else:
                    assert said == ""
            except BaseException:
                os.kill(pid, signal.SIGKILL)
                raise
        return process.returncode


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@each
def test_a_signal_that_comes_while_it_is_still_being_read_is_heard(
    place: Place, number: signal.Signals
) -> None:
    command = [sys.executable, str(place.folder / "scripts" / "gateway.py")]
    assert place.exit_code(command, number, "reading") == after(number)


# Each of these waits for a line before it does what it is there for.


@each
def test_a_signal_that_comes_while_python_starts_is_heard(place: Place, number: signal.Signals) -> None:
    place.write(".venv/bin/python", f'#!/bin/sh\necho starting\nread _\nexec {sys.executable} "$@"\n')
    assert place.exit_code([str(place.folder / "entrypoint.sh")], number, "starting") == after(number)


@each
def test_a_signal_that_comes_while_the_entrypoint_runs_is_heard(place: Place, number: signal.Signals) -> None:
    readlink = shutil.which("readlink")
    place.write("bin/readlink", f'#!/bin/sh\necho looking >&2\nread _\nexec {readlink} "$@"\n')
    assert place.exit_code([str(place.folder / "entrypoint.sh")], number, "looking") == after(number)
