"""The health process under the gateway's eye: started, restarted, and ended with it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from corral import health_process
from corral.drivers.process import spawn
from corral.drivers.reaper import Reaper
from corral.health_process import HealthProcess
from tests.in_a_loop import in_a_loop
from tests.settings.desk import Desk
from tests.support import free_port, listens, processes_naming
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
async def kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watch]:
    monkeypatch.setattr(health_process, "RESTART_S", 0.01)
    port = free_port()
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with kept(tmp_path, monkeypatch) as watch:
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([OSError("no more processes")])

    def spawn_later(*arguments: Any, **options: Any) -> Any:
        for failure in failures:
            raise failure
        return spawn(*arguments, **options)

    monkeypatch.setattr(health_process, "spawn", spawn_later)
    async with kept(tmp_path, monkeypatch) as watch:
        await eventually(lambda: watch.answers, "the health port listens")
    assert "cannot be started (no more processes)" in caplog.text
    assert watch.pid is None
