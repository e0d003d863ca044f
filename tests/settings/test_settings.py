"""The front door: the real environment is read when none is given, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral import settings
from tests.settings.desk import Desk


def test_without_arguments_the_process_environment_and_directory_are_read(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "9009")
    monkeypatch.setenv("LLAMA_ARG_NUMA", "isolate")
    monkeypatch.chdir(desk.cwd)
    desk.file(".env", "PORT_HEALTH=9010")
    loaded = settings.load()
    assert (loaded.server.port, loaded.server.health_port) == (9009, 9010)
    assert loaded.paths.data == desk.cwd / "data"
    assert settings.children_environment(loaded)["LLAMA_ARG_NUMA"] == "isolate"


def test_a_given_environment_is_the_only_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "9009")
    assert desk.load().server.port == 8000


def test_a_relative_directory_is_made_absolute(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk.cwd.parent)
    loaded = settings.load({"HOME": str(desk.home)}, cwd=Path("cwd"))
    assert loaded.paths.data == desk.cwd / "data"


def test_every_public_name_is_there() -> None:
    assert [name for name in settings.__all__ if not hasattr(settings, name)] == []
