"""The entry point of the gateway: what it hears before there is a gateway to hear it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import GATEWAY

DEADLINE_S = 20.0
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_that_comes_while_it_is_still_being_read_ends_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "corral").mkdir()
    (tmp_path / "corral" / "app.py").write_text("print('reading', flush=True)\ninput()\n")
    program = shutil.copy(GATEWAY, tmp_path)
    prefix = as_process_1()
    with subprocess.Popen(
        [*prefix, sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        pid = only_child(process.pid) if prefix else process.pid
        try:
            os.kill(pid, number)
            assert process.wait(DEADLINE_S) == 0
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
