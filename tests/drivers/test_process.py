"""Children are real processes here: how they start, what they say, how they end, what they leave."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from corral.drivers.process import Child, spawn
from corral.drivers.reaper import Reaper
from tests.waiting import eventually, is_running

ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


class Heard:
    """What a child has said, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def __call__(self, data: bytes) -> None:
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return b"".join(self.pieces).decode()


@asynccontextmanager
async def reaping() -> AsyncIterator[Reaper]:
    reaper = Reaper()
    reaper.start(asyncio.get_running_loop())
    try:
        yield reaper
    finally:
        reaper.stop()


def in_loop(scenario: Callable[[Reaper], Awaitable[None]]) -> None:
    async def run() -> None:
        async with reaping() as reaper:
            await scenario(reaper)

    asyncio.run(run())


def shell(reaper: Reaper, command: str, heard: Callable[[bytes], None] = lambda _data: None) -> Child:
    return spawn(["/bin/sh", "-c", command], env=ENV, reaper=reaper, on_output=heard)


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", -9), ("kill -TERM $$", -15), ("kill -ABRT $$", -6)],
)
def test_the_exit_code_is_true(command: str, exit_code: int) -> None:
    async def scenario(reaper: Reaper) -> None:
        child = shell(reaper, command)
        assert child.alive
        assert child.exit_code is None
        assert await child.exited == exit_code
        assert child.exit_code == exit_code
        assert not child.alive

    in_loop(scenario)


def test_both_outputs_are_delivered_before_the_end_and_closed_once() -> None:
    async def scenario(reaper: Reaper) -> None:
        heard = Heard()
        child = shell(reaper, "echo out; echo err >&2; printf unfinished", heard)
        await child.exited
        assert heard.text == "out\nerr\nunfinished"
        assert heard.pieces.count(b"") == 1
        assert heard.pieces[-1] == b""

    in_loop(scenario)


def test_an_output_closed_early_is_told_once_and_the_child_lives_on() -> None:
    async def scenario(reaper: Reaper) -> None:
        heard = Heard()
        child = shell(reaper, "exec >&- 2>&-; exec sleep 1000", heard)
        await eventually(lambda: heard.pieces == [b""], "the end of the output")
        assert child.alive
        child.signal_group(signal.SIGKILL)
        assert await child.exited == -9
        assert heard.pieces == [b""]

    in_loop(scenario)


def test_a_child_reads_nothing_and_has_none_of_our_descriptors() -> None:
    async def scenario(reaper: Reaper) -> None:
        inherited = os.open("/dev/null", os.O_RDONLY)
        os.set_inheritable(inherited, True)
        heard = Heard()
        await shell(reaper, "cat; readlink /proc/self/fd/0; ls /proc/$$/fd", heard).exited
        os.close(inherited)
        # The shell itself may hold one more for its script, never a number of ours.
        assert heard.text.splitlines()[:4] == ["/dev/null", "0", "1", "2"]
        assert str(inherited) not in heard.text.splitlines()[4:]

    in_loop(scenario)


def test_the_environment_and_the_folder_are_the_given_ones(tmp_path: Path) -> None:
    async def scenario(reaper: Reaper) -> None:
        heard = Heard()
        env = {"CUDA_VISIBLE_DEVICES": "GPU-1", "LC_ALL": "C.UTF-8"}
        program = ["/bin/sh", "-c", "/bin/pwd; /usr/bin/env"]
        await spawn(program, env=env, cwd=tmp_path, reaper=reaper, on_output=heard).exited
        folder, *variables = heard.text.splitlines()
        assert folder == str(tmp_path)
        assert env.items() <= dict(line.split("=", 1) for line in variables).items()
        assert not any(line.startswith("HOME=") for line in variables)

    in_loop(scenario)


def test_a_program_that_is_missing_ends_with_127_and_says_why() -> None:
    async def scenario(reaper: Reaper) -> None:
        heard = Heard()
        child = spawn(["/nowhere/llama-server"], env=ENV, reaper=reaper, on_output=heard)
        assert await child.exited == 127
        assert heard.text == "exec_shim: cannot run '/nowhere/llama-server': No such file or directory\n"

    in_loop(scenario)


def test_a_signal_reaches_the_whole_group_and_nobody_else() -> None:
    async def scenario(reaper: Reaper) -> None:
        heard, bystander_heard = Heard(), Heard()
        bystander = shell(reaper, "echo up; exec sleep 1000", bystander_heard)
        child = shell(reaper, "sleep 1000 & echo $!; wait", heard)
        await eventually(lambda: heard.text and bystander_heard.text, "both are up")
        grandchild = int(heard.text)
        assert os.getpgid(grandchild) == child.pid
        child.signal_group(signal.SIGTERM)
        assert await child.exited == -15
        await eventually(lambda: not is_running(grandchild), "the grandchild is gone")
        assert bystander.alive
        bystander.signal_group(signal.SIGKILL)
        await bystander.exited

    in_loop(scenario)


def test_whoever_a_child_leaves_behind_in_its_group_is_killed() -> None:
    async def scenario(reaper: Reaper) -> None:
        heard = Heard()
        # The grandchild ignores SIGTERM and holds the pipe; the child ends by itself.
        child = shell(reaper, "(trap '' TERM; exec sleep 1000) & echo $!; exit 4", heard)
        assert await child.exited == 4
        grandchild = int(heard.text)
        await eventually(lambda: not is_running(grandchild), "the grandchild is gone")

    in_loop(scenario)


def test_a_stranger_that_holds_the_pipe_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async def scenario(reaper: Reaper) -> None:
        heard = Heard()
        up = tmp_path / "up"
        stranger = f"setsid sh -c 'echo $$; echo > {up}; exec sleep 1000'"
        child = shell(reaper, f"{stranger} & until [ -e {up} ]; do sleep 0.01; done; exit 5", heard)
        assert await child.exited == 5
        os.kill(int(heard.text), signal.SIGKILL)

    in_loop(scenario)


def test_a_signal_after_the_end_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(reaper: Reaper) -> None:
        child = shell(reaper, "exit 0")
        await child.exited
        sent: list[int] = []
        monkeypatch.setattr(os, "killpg", lambda pid, _number: sent.append(pid))
        child.signal_group(signal.SIGKILL)
        assert sent == []

    in_loop(scenario)


def test_a_waiter_that_gives_up_does_not_disturb_another() -> None:
    async def scenario(reaper: Reaper) -> None:
        child = shell(reaper, "sleep 1000")
        impatient, patient = child.exited, child.exited
        impatient.cancel()
        child.signal_group(signal.SIGKILL)
        assert await patient == -9
        assert await child.exited == -9

    in_loop(scenario)


def test_only_the_main_thread_may_spawn() -> None:
    async def scenario(reaper: Reaper) -> None:
        failures: list[str] = []

        def elsewhere() -> None:
            try:
                shell(reaper, "exit 0")
            except RuntimeError as error:
                failures.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert failures == ["children may be spawned from the main thread only: they die with their thread"]

    in_loop(scenario)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_flood_neither_starves_the_loop_nor_fills_the_memory() -> None:
    flood_bytes = 100_000_000

    async def scenario(reaper: Reaper) -> None:
        total = 0

        def count(data: bytes) -> None:
            nonlocal total
            total += len(data)

        before_bytes = resident_bytes()
        child = shell(reaper, f"yes 'a line of a log' | head -c {flood_bytes}", count)
        finished = child.exited
        turns, longest_s, last = 0, 0.0, time.monotonic()
        while not finished.done():
            await asyncio.sleep(0)
            now = time.monotonic()
            turns, longest_s, last = turns + 1, max(longest_s, now - last), now
        assert total == flood_bytes
        # A turn reads 64 KiB at most, so the flood takes at least 1,526 of them.
        assert turns > flood_bytes // 65_536
        assert longest_s < 0.5
        assert resident_bytes() - before_bytes < 20_000_000

    in_loop(scenario)


def test_fifty_children_leave_no_descriptor_and_no_zombie() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def scenario(reaper: Reaper) -> None:
        await shell(reaper, "exit 0").exited
        before = descriptors()
        for number in range(50):
            child = shell(reaper, "echo up; exec sleep 1000" if number % 2 else "exit 1")
            child.signal_group(signal.SIGKILL)
            await child.exited
        assert descriptors() == before

    in_loop(scenario)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.skipif(sys.platform != "linux", reason="parent death signals are Linux's")
def test_a_child_dies_with_us_when_we_are_killed_outright(tmp_path: Path) -> None:
    ours = f"""
import asyncio, os, signal, sys
sys.path[:0] = {sys.path!r}
from corral.drivers.process import spawn
from corral.drivers.reaper import Reaper

async def main():
    child = spawn(["/bin/sleep", "1000"], env={{}}, reaper=Reaper(), on_output=print)
    while open(f"/proc/{{child.pid}}/comm").read() != "sleep\\n":
        await asyncio.sleep(0.005)
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""

    async def scenario(reaper: Reaper) -> None:
        heard = Heard()
        gateway = spawn([sys.executable, "-c", ours], env=ENV, reaper=reaper, on_output=heard)
        assert await gateway.exited == -9
        grandchild = int(heard.text)
        await eventually(lambda: not is_running(grandchild), "the kernel kills the grandchild")

    in_loop(scenario)
