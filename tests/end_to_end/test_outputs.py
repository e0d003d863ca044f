"""Outputs that can't be written: a disk that is full is no reason not to serve, nor to end badly."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.conftest import StartCorral
from tests.end_to_end.talk import CHAT, chat
from tests.support import ROOT, ask

ENTRYPOINT = ROOT / "entrypoint.sh"


@pytest.mark.parametrize(
    "outputs",
    [">/dev/full", "2>/dev/full", ">/dev/full 2>&1", ">&- 2>&-"],
    ids=["stdout", "stderr", "both", "closed"],
)
def test_a_gateway_whose_outputs_take_nothing_serves_and_ends_well(
    start_corral: StartCorral, stand_in: Path, tmp_path: Path, outputs: str
) -> None:
    program = tmp_path / "start"
    program.write_text(f"#!/bin/sh\nexec {shlex.quote(str(ENTRYPOINT))} {outputs}\n")
    program.chmod(0o755)
    corral = start_corral(engine=stand_in, program=program)
    assert ask(f"{corral.url}/ping").status == 200
    assert corral.ask(CHAT, chat()).status == 200
    assert corral.stop() == 0
