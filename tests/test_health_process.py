"""The health process under the gateway's eye: started, restarted, and ended with it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from corral import health_process
from corral.drivers.process import spawn
from corral.drivers.reaper import Reaper
from corral.health_process import HealthProcess
from corral.policy import lifecycle
from tests.in_a_loop import in_a_loop
from tests.settings.desk import Desk
from tests.support import listens, processes_naming
from tests.waiting import eventually


class Watch:
    """A health process that is being kept, and what one sees of it from outside."""

    def __init__(self, root: Path, port: int) -> None:
        self.root = root
        self.url = f"http://127.0.0.1:{port}"

    @property
    def answers(self) -> bool:
        return listens(self.url)

    @property
    def pid(self) -> int | None:
        return next(iter(processes_naming(self.root)), None)


@asynccontextmanager
async def kept(root: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> AsyncIterator[Watch]:
    monkeypatch.setattr(lifecycle, "PAUSE_FIRST_S", 0.01)
    settings = Desk(root).load(environ={"PORT_HEALTH": str(port)})
    reaper = Reaper()
    health = HealthProcess(settings, str(root / "status.json"), reaper)
    reaper.start(asyncio.get_running_loop())
    health.start()
    try:
        yield Watch(root, port)
    finally:
        await health.stop()
        reaper.stop()


@in_a_loop
async def test_one_that_is_killed_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free_port: int
) -> None:
    async with kept(tmp_path, monkeypatch, free_port) as watch:
        await eventually(lambda: watch.answers, "the health port listens")
        first = watch.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: watch.pid not in (None, first), "there is another")
        await eventually(lambda: watch.answers, "the health port listens again")
    assert "health server ended (-9) and is started again" in caplog.text
    assert watch.pid is None


@in_a_loop
async def test_one_that_cannot_be_started_just_now_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free_port: int
) -> None:
    failures = iter([OSError("no more processes")])

    def spawn_later(*arguments: Any, **options: Any) -> Any:
        for failure in failures:
            raise failure
        return spawn(*arguments, **options)

    monkeypatch.setattr(health_process, "spawn", spawn_later)
    async with kept(tmp_path, monkeypatch, free_port) as watch:
        await eventually(lambda: watch.answers, "the health port listens")
    assert "cannot be started (no more processes)" in caplog.text
    assert watch.pid is None


@in_a_loop
async def test_a_port_that_stays_taken_is_tried_with_growing_pauses_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free_port: int
) -> None:
    caplog.set_level(logging.INFO)
    tries, pauses = 0, []

    def counting_spawn(*arguments: Any, **options: Any) -> Any:
        nonlocal tries
        tries += 1
        return spawn(*arguments, **options)

    def noting_pause(deaths: lifecycle.Deaths, luck: float) -> float:
        pauses.append(pause_s(deaths, luck))
        return pauses[-1]

    pause_s = lifecycle.Deaths.pause_s
    monkeypatch.setattr(lifecycle.Deaths, "pause_s", noting_pause)
    monkeypatch.setattr(health_process, "spawn", counting_spawn)
    with socket.create_server(("0.0.0.0", free_port)) as other:
        async with kept(tmp_path, monkeypatch, free_port) as watch:
            await eventually(lambda: tries == 4, "it is tried again and again")
            other.close()
            await eventually(lambda: watch.answers, "it has its port at last")
    assert pauses[:3] == [0.01, 0.02, 0.04]
    assert caplog.text.count("the port is taken") == 1
    assert caplog.text.count("health server ended (1) and is started again") == 1


@in_a_loop
async def test_after_a_good_spell_an_end_is_news_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free_port: int
) -> None:
    monkeypatch.setattr(lifecycle, "GOOD_SPELL_S", 0.0)

    def told(times: int) -> bool:
        return caplog.text.count("ended (-9)") == times

    async with kept(tmp_path, monkeypatch, free_port) as watch:
        for times in (1, 2):
            await eventually(lambda: watch.answers, "the health port listens")
            assert watch.pid is not None
            os.kill(watch.pid, signal.SIGKILL)
            await eventually(partial(told, times), "it is told each time")
