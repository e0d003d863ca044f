"""Who is waited for, who is left alone, and who is buried."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest

from corral.drivers import reaper as reaper_module
from corral.drivers.reaper import UNKNOWN_EXIT_CODE, Reaper
from tests.waiting import eventually, is_running, wait_until

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's process rules")


def started(command: str) -> int:
    return os.posix_spawn("/bin/sh", ["/bin/sh", "-c", command], {"PATH": "/usr/bin:/bin"}, setsid=True)


def in_loop(scenario: Callable[[Reaper], Awaitable[None]]) -> None:
    async def run() -> None:
        reaper = Reaper()
        reaper.start(asyncio.get_running_loop())
        try:
            await scenario(reaper)
        finally:
            reaper.stop()

    asyncio.run(run())


def promise_of(reaper: Reaper, pid: int) -> asyncio.Future[int]:
    promise = asyncio.get_running_loop().create_future()
    reaper.watch(pid, promise.set_result)
    return promise


def test_each_child_is_announced_once_with_its_own_code() -> None:
    async def scenario(reaper: Reaper) -> None:
        codes = [await promise_of(reaper, started(f"exit {code}")) for code in (0, 7)]
        both = [promise_of(reaper, started(f"exit {code}")) for code in range(20)]
        assert codes == [0, 7]
        assert [await one for one in both] == list(range(20))

    in_loop(scenario)


def test_a_child_that_died_before_it_was_watched_is_announced() -> None:
    async def scenario(reaper: Reaper) -> None:
        pid = started("exit 3")
        # Let SIGCHLD come and go while nobody watches that pid.
        await eventually(lambda: not is_running(pid), "it is dead")
        await asyncio.sleep(0)
        promise = promise_of(reaper, pid)
        reaper.look()
        assert await promise == 3

    in_loop(scenario)


def test_a_child_that_somebody_else_waited_for_ends_as_unknown() -> None:
    reaper = Reaper()
    seen: list[int] = []
    pid = started("exit 3")
    reaper.watch(pid, seen.append)
    os.waitpid(pid, 0)
    reaper.look()
    assert seen == [UNKNOWN_EXIT_CODE]


def test_a_death_is_noticed_without_its_signal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper_module, "POLL_S", 0.02)

    async def scenario(reaper: Reaper) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        assert await asyncio.wait_for(promise_of(reaper, started("exit 2")), 15) == 2

    in_loop(scenario)


def test_nothing_is_announced_after_the_stop() -> None:
    async def scenario(reaper: Reaper) -> None:
        promise = promise_of(reaper, started("exit 0"))
        reaper.stop()
        await asyncio.sleep(0.05)
        assert not promise.done()
        reaper.look()
        assert await promise == 0

    in_loop(scenario)


# An orphan comes to the nearest ancestor that is PID 1 or has declared itself a subreaper. The program
# starts children whose own children become orphans that die, and reports what it has seen.
ADOPTING = """
import asyncio, ctypes, json, os, sys
sys.path[:0] = json.loads(sys.argv[1])
from corral.drivers.reaper import Reaper

PR_SET_CHILD_SUBREAPER = 36
is_first = os.getpid() == 1
if not is_first:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

def children():
    found = []
    for name in os.listdir("/proc"):
        try:
            stat = open(f"/proc/{name}/stat").read().rpartition(")")[2].split()
        except OSError:
            continue
        if name.isdigit() and int(stat[1]) == os.getpid():
            found.append(int(name))
    return found

async def main():
    loop = asyncio.get_running_loop()
    reaper = Reaper() if is_first else Reaper(buries_strays=True)
    reaper.start(loop)
    promises = []
    for code in range(20):
        orphan = "setsid sh -c 'exit 9' & " * 10
        argv = ["/bin/sh", "-c", orphan + f"exit {code}"]
        pid = os.posix_spawn("/bin/sh", argv, {"PATH": "/usr/bin:/bin"}, setsid=True)
        promises.append(loop.create_future())
        reaper.watch(pid, promises[-1].set_result)
    codes = [await promise for promise in promises]
    deadline = loop.time() + 15
    while children() and loop.time() < deadline:
        await asyncio.sleep(0.005)
    reaper.stop()
    print(json.dumps({"codes": codes, "children": children(), "pid": os.getpid()}))

asyncio.run(main())
"""
UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc"]


def may_unshare() -> bool:
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


@on_linux
@pytest.mark.parametrize("prefix", [pytest.param([], id="subreaper"), pytest.param(UNSHARE, id="PID 1")])
def test_orphans_are_buried_and_our_own_children_keep_their_codes(prefix: list[str]) -> None:
    if prefix and not may_unshare():
        pytest.skip("needs the right to make a PID namespace")
    program = [*prefix, sys.executable, "-c", ADOPTING, json.dumps(sys.path)]
    done = subprocess.run(program, capture_output=True, check=False, timeout=60)
    assert done.stderr == b""
    seen = json.loads(done.stdout)
    assert seen["codes"] == list(range(20))
    assert seen["children"] == []
    assert (seen["pid"] == 1) == bool(prefix)


@on_linux
def test_a_child_of_ours_that_dies_while_strays_are_buried_keeps_its_code() -> None:
    reaper = Reaper(buries_strays=True)
    seen: list[int] = []
    # The second one's end brings about the first one's, after the first was found alive.
    first, second = started("exec sleep 1000"), started("exit 2")

    def end_the_first(exit_code: int) -> None:
        seen.append(exit_code)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not is_running(first), "the first is dead too")

    reaper.watch(first, seen.append)
    reaper.watch(second, end_the_first)
    wait_until(lambda: not is_running(second), "the second is dead")
    reaper.look()
    assert seen == [2, -9]


@on_linux
def test_somebody_elses_child_is_left_to_them() -> None:
    # The tests don't run as PID 1, so it does not bury.
    reaper = Reaper()
    with subprocess.Popen(["/bin/sh", "-c", "exit 6"]) as theirs:
        wait_until(lambda: not is_running(theirs.pid), "it is dead")
        reaper.look()
        assert theirs.wait() == 6
