"""The program as a whole: its exit code, and what it says where nobody can be told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral import program, surroundings
from tests.drivers.serving import RawClient
from tests.handlers.gatehouse import CHAT
from tests.in_a_loop import in_a_loop
from tests.site import Site, Slow, log_text, refused, site_with
from tests.waiting import eventually


@pytest.fixture
def site(tmp_path: Path, demo_files: Path) -> Iterator[Site]:
    with site_with(tmp_path, demo_files) as made:
        yield made


@in_a_loop
async def test_a_start_that_fails_tells_those_who_wait_for_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = Slow(lambda _config: 1 // 0)
    monkeypatch.setattr(surroundings, "catalogue", fails)
    serving = asyncio.ensure_future(program.serve(site.load()))
    try:
        await eventually(lambda: not refused(site.port), "it listens")
        early = asyncio.ensure_future(site.ask("/v1/chat/completions", CHAT))
        log = site.root / "data" / "logs" / "api_access.log"
        assert (await site.ask("/ping")).status == 204
        fails.goes_on()
        reply = await early
        assert (reply.status, reply.error["code"]) == (503, "shutting_down")
        assert await serving == 1
        assert "| POST /v1/chat/completions | 503 |" in log.read_text()
        assert "ZeroDivisionError" in log_text(site)
        assert capsys.readouterr().err.splitlines()[-1].startswith("corral: the start failed: ZeroDivision")
        assert site.health_pid() is None
    finally:
        fails.goes_on()
        await RawClient.close_all()


@in_a_loop
async def test_a_start_that_fails_says_why_in_one_line_and_leaves_nothing(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("0.0.0.0", site.port)):
        assert await program.serve(site.load()) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    reason = f"cannot listen on all interfaces, port {site.port}: the port is taken"
    assert line.startswith(f"corral: {reason}")
    assert f" CRITICAL {reason}" in log_text(site), "whoever comes later finds it in the boot log"
    assert site.health_pid() is None


def test_settings_that_cannot_be_stop_the_start_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"api": {"port": "many"}}')
    monkeypatch.chdir(tmp_path)
    assert program.main(config) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("corral: api.port in ")
    assert "many" in line
