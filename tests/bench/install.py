"""Get the rivals: `python -m tests.bench.install`, which `make bench RIVALS=1` runs first.

All of it goes to the user's cache: the Python ones into a virtual environment for each list in rivals/,
for what they need would quarrel in one, and llama-swap beside them if there is a Go to build it with.
What can't be had is named in one line, and the benchmark goes without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.programs import cache, python

RIVALS = Path(__file__).resolve().parent / "rivals"
# A list's name is its environment's.
APPS, LITELLM = "rivals", "litellm"
REQUIREMENTS = {APPS: RIVALS / "requirements.txt", LITELLM: RIVALS / "litellm.txt"}
LLAMA_SWAP = "github.com/mostlygeek/llama-swap"


def command_in(environment: str, name: str) -> Path:
    return cache() / environment / "bin" / name


def python_in(environment: str) -> Path:
    return command_in(environment, "python")


def llama_swap() -> Path:
    return cache() / "bin" / "llama-swap"


def packages(environment: str, wanted: Sequence[str]) -> dict[str, str]:
    """The versions of these, as their own package index has them."""
    listed = subprocess.run(
        [python_in(environment), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
    )
    pairs = (line.partition("==") for line in listed.stdout.splitlines())
    return {name: version for name, _, version in pairs if name in wanted}


def install() -> None:
    for environment, requirements in REQUIREMENTS.items():
        _install_packages(environment, requirements)
    install_llama_swap()


def _install_packages(environment: str, requirements: Path) -> None:
    its_python = python_in(environment)
    if not its_python.exists():
        subprocess.run([python(), "-m", "venv", cache() / environment], check=True)
    command: list[str | Path] = [its_python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*command, "-r", requirements]).returncode:
        _say(f"not installed: what {requirements.name} lists (pip says why above)")


def install_llama_swap() -> None:
    go = shutil.which("go")
    if go is None:
        _say("not built: llama-swap, for there is no Go here")
        return
    environment = {**os.environ, "GOBIN": str(llama_swap().parent)}
    built = subprocess.run(
        [go, "install", f"{LLAMA_SWAP}@latest"], env=environment, capture_output=True, text=True
    )
    if built.returncode:
        _say(f"not built: llama-swap ({' '.join(built.stderr.split())})")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    install()
