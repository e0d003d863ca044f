"""The command that writes the demo models: into an empty place, whole, and never beside other models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from corral.drivers import model_store
from corral.formats import demo_models
from tests.support import ROOT


def run(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(ROOT / "scripts" / "demo_models.py"), *arguments]
    environ = {"HOME": str(cwd), "PATH": ""} | environ
    return subprocess.run(argv, cwd=cwd, env=environ, capture_output=True, text=True, check=False)


def test_both_models_are_written_into_a_new_directory(tmp_path: Path) -> None:
    done = run(str(tmp_path / "new" / "models"), cwd=tmp_path)
    directory = tmp_path / "new" / "models"
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition(" (")[0] for line in done.stdout.splitlines()] == [
        f"wrote {directory / 'demo.gguf'}",
        f"wrote {directory / 'demo-embed.gguf'}",
    ]
    assert sorted(path.name for path in directory.iterdir()) == ["demo-embed.gguf", "demo.gguf"]
    assert (directory / "demo.gguf").read_bytes() == demo_models.demo()
    found, warnings = model_store.scan(directory)
    assert [(model.name, model.embedding, model.problem) for model in found] == [
        ("demo", False, None),
        ("demo-embed", True, None),
    ]
    assert warnings == ()


def test_without_a_directory_they_go_where_the_gateway_looks(tmp_path: Path) -> None:
    assert run(cwd=tmp_path, DATA_DIR=str(tmp_path / "d")).returncode == 0
    assert (tmp_path / "d" / "models" / "demo.gguf").is_file()


def test_nothing_is_written_where_models_are(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "own.gguf").write_bytes(b"")
    done = run(str(tmp_path), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path} has models already: no demo models written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["below"]


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(str(tmp_path / "file" / "models"), cwd=tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith("demo_models.py: ")
