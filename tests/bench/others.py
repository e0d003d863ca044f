"""Other proxies, each the small program that its users would write, where what it needs is installed.

`make bench RIVALS=1` puts the Python ones into a virtual environment of their own in the user's cache.
None is ever required: who is missing is named and left out.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.bench.contestants import Contestant, Ring, Target, program
from tests.bench.programs import cache, stand_in
from tests.support import free_port

HERE = Path(__file__).resolve().parent / "rivals"
REQUIREMENTS = HERE / "requirements.txt"


def environment() -> Path:
    return cache() / "rivals"


def python() -> Path:
    return environment() / "bin" / "python"


def install() -> None:
    """The Python ones, into an environment of their own."""
    if not python().exists():
        subprocess.run([sys.executable, "-m", "venv", environment()], check=True)
    command: list[str | Path] = [python(), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "-r", REQUIREMENTS], check=True)


@contextmanager
def _python_app(name: str, ring: Ring) -> Iterator[Target]:
    with stand_in(ring.programs, ring.load_core) as backend:
        port = free_port()
        command: list[str | Path] = [python(), HERE / f"{name}.py", str(port), str(backend)]
        with program(ring, port, command) as target:
            yield target


APPS = {"aiohttp": "aiohttp_proxy", "FastAPI + httpx": "fastapi_httpx"}


def installed(say: Callable[[str], None]) -> list[Contestant]:
    if not python().exists():
        say("no rivals: nothing is installed for them")
        return []
    found = []
    for name, module in APPS.items():
        tried = subprocess.run([python(), HERE / f"{module}.py"], capture_output=True)
        if tried.returncode == 0:
            found.append(Contestant(name, partial(_python_app, module)))
        else:
            say(f"without {name}: it is not installed")
    return found


def versions() -> dict[str, str]:
    """Of those that are installed, as their own package index has them."""
    if not python().exists():
        return {}
    listed = subprocess.run(
        [python(), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
    )
    pairs = (line.partition("==") for line in listed.stdout.splitlines())
    wanted = {"aiohttp", "fastapi", "httpx", "uvicorn", "uvloop", "litellm"}
    return {name: version for name, _, version in pairs if name in wanted}


if __name__ == "__main__":
    install()
