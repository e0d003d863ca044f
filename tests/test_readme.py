"""The README's commands do what it says: each is run against a live instance, or says why it is not."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import StartCorral
from tests.support import ROOT, strangers_environment

README = (ROOT / "README.md").read_text(encoding="utf-8")
# A comment right above a block says what is to be seen when it runs, or why it can't run here.
BLOCK = re.compile(r"(?:<!-- (?P<mark>(?:(?!-->).)*?) -->\n)?```sh\n(?P<script>.*?)```", re.DOTALL)
RUNS = re.compile(r"runs, and prints: (.+)")
DOES_NOT_RUN = re.compile(r"not run as it stands: .+")
RUN_TIMEOUT_S = 60


class Block(NamedTuple):
    line: int
    mark: str
    script: str


BLOCKS = [
    Block(README[: found.start()].count("\n") + 1, found["mark"] or "", found["script"])
    for found in BLOCK.finditer(README)
]
TO_RUN = [block for block in BLOCKS if RUNS.fullmatch(block.mark)]


def test_every_block_of_commands_is_run_or_says_why_not() -> None:
    unmarked = [block for block in BLOCKS if block not in TO_RUN and not DOES_NOT_RUN.fullmatch(block.mark)]
    assert not unmarked, f"README.md: no comment says what becomes of the block at line {unmarked[0].line}"
    assert README.count("```sh") == len(BLOCKS)
    assert len(TO_RUN) >= 5


def test_commands_stand_nowhere_but_in_blocks_of_sh() -> None:
    assert set(re.findall(r"^```(\w*)$", README, re.MULTILINE)) <= {"sh", "", "json"}
    assert not re.findall(r"^ {4,}(?:curl|make|python3?) ", README, re.MULTILINE)


@pytest.mark.parametrize("block", TO_RUN, ids=lambda block: f"line-{block.line}")
def test_a_block_runs_and_prints_what_it_promises(
    block: Block, start_corral: StartCorral, tmp_path: Path
) -> None:
    corral = start_corral()
    desk = tmp_path / "desk"  # looks like a clone whose data are this instance's
    desk.mkdir()
    for name in ("Makefile", "scripts", "requirements.txt", ".venv"):
        (desk / name).symlink_to(ROOT / name)
    (desk / "data").symlink_to(corral.data)
    addresses = {"http://localhost:8000": corral.url, "http://localhost:8001": corral.health_url}
    script = re.sub(r"http://localhost:800[01]", lambda default: addresses[default[0]], block.script)
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=desk,
        env=strangers_environment(KEY=corral.key),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    assert ran.returncode == 0, ran.stderr
    promised = RUNS.fullmatch(block.mark)
    assert promised is not None
    assert promised[1] in ran.stdout
