"""llama-fit-params as a child: the real one with a real model, and scripts that behave badly in its place."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from corral.drivers import fit_params
from corral.drivers.fit_params import OUTPUT_BYTES_MAX, FitParams, NoAnswer, beside
from corral.drivers.reaper import Reaper
from corral.formats.fit_print import parse
from tests.waiting import eventually, is_running

ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


def in_loop(scenario: Callable[[Reaper], Awaitable[None]]) -> None:
    async def run() -> None:
        reaper = Reaper()
        reaper.start(asyncio.get_running_loop())
        try:
            await asyncio.wait_for(scenario(reaper), 20)
        finally:
            reaper.stop()

    asyncio.run(run())


def script(reaper: Reaper, command: str) -> FitParams:
    return FitParams(["/bin/sh", "-c", command], ENV, reaper)


# The real one -------------------------------------------------------------------------------------


def test_the_real_one_says_what_the_demo_model_takes(llama_server: Path, demo_files: Path) -> None:
    async def scenario(reaper: Reaper) -> None:
        program = beside(llama_server)
        assert program is not None, "no llama-fit-params is beside the llama-server: run `make engine`"
        model = str(demo_files / "demo.gguf")
        argv = [str(program), "--fit-print", "on", "-m", model, "-c", "65536", "-np", "1"]
        said = parse(await FitParams(argv, ENV, reaper).answer())
        assert said.devices == ()
        assert said.host.context_bytes > 0
        assert 0 < said.host.total_bytes < 1 << 30

    in_loop(scenario)


def test_the_real_one_ends_badly_without_a_model(llama_server: Path, tmp_path: Path) -> None:
    async def scenario(reaper: Reaper) -> None:
        program = beside(llama_server)
        assert program is not None
        asked = FitParams([program, "--fit-print", "on", "-m", tmp_path / "none.gguf"], ENV, reaper)
        with pytest.raises(NoAnswer, match=r"killed by SIGABRT|exit code"):
            await asked.answer()

    in_loop(scenario)


def test_it_is_looked_for_beside_llama_server(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    assert beside(None) is None
    assert beside(server) is None
    program = tmp_path / "llama-fit-params"
    program.touch(mode=0o644)
    assert beside(server) is None
    program.chmod(0o755)
    assert beside(server) == program
    program.unlink()
    program.mkdir()
    assert beside(server) is None


# Others -------------------------------------------------------------------------------------------


def test_both_outputs_are_brought_back_once_it_has_ended() -> None:
    async def scenario(reaper: Reaper) -> None:
        asked = script(reaper, "echo a log line >&2; echo 'Host 1 2 3'")
        assert asked.alive
        assert sorted((await asked.answer()).splitlines()) == ["Host 1 2 3", "a log line"]
        assert not asked.alive

    in_loop(scenario)


def test_bytes_that_are_no_text_are_no_trouble() -> None:
    async def scenario(reaper: Reaper) -> None:
        assert "Host 1 2 3" in await script(reaper, r"printf '\377\376\n'; echo Host 1 2 3").answer()

    in_loop(scenario)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo 'Host 1 2 3'; exit 1", "exit code 1"),
        ("echo 'Host 1 2 3'; kill -ABRT $$", "killed by SIGABRT"),
    ],
)
def test_a_failure_is_no_answer_whatever_it_says(command: str, reason: str) -> None:
    async def scenario(reaper: Reaper) -> None:
        with pytest.raises(NoAnswer, match=reason):
            await script(reaper, command).answer()

    in_loop(scenario)


def test_a_program_that_cannot_be_run_is_no_answer(tmp_path: Path) -> None:
    async def scenario(reaper: Reaper) -> None:
        with pytest.raises(NoAnswer, match="exit code 127"):
            await FitParams([tmp_path / "absent"], ENV, reaper).answer()

    in_loop(scenario)


def test_one_that_hangs_is_killed_with_all_that_it_has_started() -> None:
    async def scenario(reaper: Reaper) -> None:
        asked = script(reaper, "trap '' TERM; sleep 60 & wait; sleep 60")
        with pytest.raises(NoAnswer, match=r"had not ended after 0\.2 s"):
            await asked.answer(timeout_s=0.2)
        assert not asked.alive
        assert not is_running(asked.pid)

    in_loop(scenario)


def test_one_that_floods_is_killed_at_once() -> None:
    async def scenario(reaper: Reaper) -> None:
        asked = script(reaper, "exec yes Host 1 2 3")
        with pytest.raises(NoAnswer, match=f"more than {OUTPUT_BYTES_MAX} bytes"):
            await asked.answer()
        assert not asked.alive

    in_loop(scenario)


def test_a_flood_in_its_last_words_is_no_answer_either() -> None:
    async def scenario(reaper: Reaper) -> None:
        lines = OUTPUT_BYTES_MAX // 8
        with pytest.raises(NoAnswer, match="bytes"):
            await script(reaper, f"yes 'Host 1 2 3' | head -n {lines}").answer()

    in_loop(scenario)


def test_it_can_be_called_off() -> None:
    async def scenario(reaper: Reaper) -> None:
        asked = script(reaper, "sleep 60")
        answer = asyncio.ensure_future(asked.answer())
        await asyncio.sleep(0)
        began = time.monotonic()
        asked.call_off()
        await asked.gone()
        assert not asked.alive
        with pytest.raises(NoAnswer, match="called off"):
            await answer
        assert time.monotonic() - began < 5

    in_loop(scenario)


def test_one_that_cannot_be_ended_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a driver that hangs: for the kernel it is still there."""
    monkeypatch.setattr(fit_params, "KILL_TIMEOUT_S", 0.1)

    async def scenario(reaper: Reaper) -> None:
        asked = script(reaper, "sleep 60")
        with monkeypatch.context() as patch:
            patch.setattr(FitParams, "_kill", lambda _self: None)
            with pytest.raises(NoAnswer, match="had not ended"):
                await asked.answer(timeout_s=0.1)
            assert asked.alive
        asked.call_off()
        await eventually(lambda: not asked.alive, "it is gone")

    in_loop(scenario)


def test_it_dies_with_us(tmp_path: Path) -> None:
    """Another process asks, and is killed while it waits."""
    program = f"""
import asyncio, os, sys
sys.path.insert(0, {str(Path(fit_params.__file__).parents[2])!r})
from corral.drivers.fit_params import FitParams
from corral.drivers.reaper import Reaper
async def main():
    reaper = Reaper()
    reaper.start(asyncio.get_running_loop())
    asked = FitParams(["/bin/sh", "-c", "echo ready > {tmp_path}/ready; exec sleep 60"], {ENV!r}, reaper)
    print(asked.pid, flush=True)
    await asked.answer()
asyncio.run(main())
"""

    async def scenario(_reaper: Reaper) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        pid = int(await process.stdout.readline())
        await eventually((tmp_path / "ready").exists, "it runs")
        process.kill()
        await eventually(lambda: not is_running(pid), "it has gone with its parent")
        await process.wait()

    asyncio.run(asyncio.wait_for(scenario(Reaper()), 20))
