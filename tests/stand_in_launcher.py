"""For tests: an executable stand-in llama-server at a path of one's own, and what it has recorded."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("stand_in_llama_server.py")


def write_launcher(directory: Path) -> Path:
    """An executable `llama-server` in `directory`, run by this very Python, whatever PATH says."""
    launcher = directory / "llama-server"
    command = shlex.join([sys.executable, "-IS", str(PROGRAM)])
    launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    launcher.chmod(0o755)
    return launcher


def read_events(path: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The events in the file that STAND_IN_LOG names: all, or those of one kind."""
    if not path.exists():
        return []
    # A line may be half written at this moment.
    lines = path.read_bytes().split(b"\n")[:-1]
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [each for each in events if event in (None, each["event"])]
