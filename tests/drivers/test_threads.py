"""Work on another thread: what comes of it, and that nobody waits for it who has no time."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import textwrap
import threading

import pytest

from corral.drivers.threads import in_thread
from tests.in_a_loop import in_a_loop, turns
from tests.support import ROOT

DEADLINE_S = 20.0


@in_a_loop
async def test_it_is_done_elsewhere_and_its_result_comes_back() -> None:
    assert await in_thread(threading.get_ident, "somewhere") != threading.get_ident()


@in_a_loop
async def test_what_it_raises_is_raised_where_it_is_waited_for() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0, "a mistake")


@in_a_loop
async def test_whoever_calls_it_off_need_not_hear_of_it_again() -> None:
    may_go_on, done = threading.Event(), threading.Event()

    def work() -> None:
        may_go_on.wait(DEADLINE_S)
        done.set()

    waiting = in_thread(work, "slow")
    waiting.cancel()
    may_go_on.set()
    assert done.wait(DEADLINE_S)
    await turns()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert waiting.cancelled()


HANGING = """
    import asyncio
    import threading
    from corral.drivers.threads import in_thread

    async def main():
        in_thread(threading.Event().wait, "hangs")
        in_thread(too_late.wait, "comes too late")

    too_late = threading.Event()
    asyncio.run(main())
    too_late.set()
    [each.join() for each in threading.enumerate() if each.name == "comes too late"]
    print("through")
"""


def test_a_program_ends_although_it_hangs_or_comes_too_late() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HANGING)],
        env={"PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "through\n", "")
