"""A working directory of its own for every test of the settings, with nothing around it.

The machine that runs the tests may have a /data, an XDG directory or a llama-server: none of them may
decide what a test sees, so the places that are looked at by default are moved below the desk.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from corral import settings
from corral.errors import SettingsError
from corral.settings import Settings


class Desk:
    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.cwd = root / "cwd"
        self.image = root / "app"
        self.volumes = (root / "volume-1", root / "volume-2")
        self.home.mkdir()
        self.cwd.mkdir()

    def file(self, name: str, content: str = "") -> Path:
        """A file below the working directory, its directories made."""
        path = self.cwd / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return path

    def program(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return path

    def load(
        self,
        config: dict[str, Any] | None = None,
        environ: dict[str, str] | None = None,
        *,
        dotenv: str | None = None,
        config_path: Path | None = None,
    ) -> Settings:
        if config is not None:
            self.file("config.json", json.dumps(config))
        if dotenv is not None:
            self.file(".env", dotenv)
        surroundings = {"HOME": str(self.home), "PATH": ""} | (environ or {})
        return settings.load(surroundings, cwd=self.cwd, config_path=config_path)

    def refusal(
        self,
        config: dict[str, Any] | None = None,
        environ: dict[str, str] | None = None,
        *,
        dotenv: str | None = None,
        config_path: Path | None = None,
    ) -> str:
        """The message with which these settings are refused: always a single line."""
        with pytest.raises(SettingsError) as caught:
            self.load(config, environ, dotenv=dotenv, config_path=config_path)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        return message
