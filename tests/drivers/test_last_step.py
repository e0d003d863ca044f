"""The last step, each time in a process of its own, since there is no way back from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
BEGIN = f"""
import asyncio, os, signal, sys, threading
sys.path.insert(0, {str(SCRIPTS)!r})
from corral.drivers import last_step
"""


def ended(program: str, redirections: str = "") -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, BEGIN + program]
    # With PYTHONUNBUFFERED there would be nothing left to flush.
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env={"PATH": os.defpath})


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name
)
@pytest.mark.parametrize("has_handlers", [True, False], ids=["handled by the loop", "not handled"])
def test_no_signal_changes_the_exit_code_whichever_thread_it_comes_to(
    number: signal.Signals, has_handlers: bool
) -> None:
    # The second thread, which nobody tells of anything, is one that hangs.
    done = ended(f"""
threading.Thread(target=threading.Event().wait, daemon=True).start()
with asyncio.Runner() as runner:
    loop = runner.get_loop()
    if {has_handlers}:
        loop.add_signal_handler({number.value}, print, "heard")
    last_step.heed_no_signal(loop)
    os.kill(os.getpid(), {number.value})
os.kill(os.getpid(), {number.value})
sys.exit(7)
""")
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


@pytest.mark.parametrize("redirections", [">/dev/full", "2>/dev/full", ">&-", "2>&-", ""])
def test_an_output_that_cannot_be_written_does_not_change_it_either(redirections: str) -> None:
    done = ended(
        """
for output in filter(None, (sys.stdout, sys.stderr)):
    output.reconfigure(line_buffering=False)
    output.write("words")
last_step.drop_what_cannot_be_written()
sys.exit(7)
""",
        redirections,
    )
    assert done.returncode == 7
    assert (done.stdout == "words") is not redirections.startswith(">")
    assert (done.stderr == "words") is not redirections.startswith("2>")
