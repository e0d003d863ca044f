from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import ROOT


def find(cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it with no more of an environment than a test gives it."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "find_engine.py")],
        cwd=cwd,
        env={"PATH": str(cwd), "HOME": str(cwd), **environment},
        capture_output=True,
        text=True,
    )


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_it_prints_the_path_of_the_engine_that_a_setting_names(tmp_path: Path) -> None:
    engine = program(tmp_path / "engines" / "my-server")
    found = find(tmp_path, LLAMA_SERVER_PATH=str(engine))
    assert (found.returncode, found.stdout, found.stderr) == (0, f"{engine}\n", "")


def test_it_finds_an_engine_in_the_cache_of_builds(tmp_path: Path) -> None:
    engine = program(tmp_path / ".cache" / "corral" / "engine-0123456789ab-cpu" / "llama-server")
    assert find(tmp_path).stdout == f"{engine}\n"


def test_no_engine_is_told_from_a_wrong_setting(tmp_path: Path) -> None:
    nothing = find(tmp_path)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (3, "", "")
    wrong = find(tmp_path, LLAMA_SERVER_PATH="/nowhere/llama-server")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "/nowhere/llama-server, which does not exist" in wrong.stderr
