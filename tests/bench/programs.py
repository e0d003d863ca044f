"""The two C programs: compiled once into the user's cache, and run on the core that is not the proxy's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench import kernel
from tests.support import free_port
from tests.waiting import wait_until

HERE = Path(__file__).resolve().parent
COMPILE = ("-O2", "-Wall", "-Wextra", "-Werror")


# What the image runs Corral by, and the fastest build that most machines have.
DISTRIBUTIONS_PYTHON = Path("/usr/bin/python3")


class Programs(NamedTuple):
    """Where the compiled programs are."""

    load: Path
    stand_in: Path


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "corral" / "bench"


def python() -> Path:
    """The Python that contestants are run by: the distribution's, where it is new enough, else this one."""
    question = "import sys; sys.exit(sys.version_info < (3, 11))"
    theirs = DISTRIBUTIONS_PYTHON
    new_enough = theirs.exists() and subprocess.run([theirs, "-c", question]).returncode == 0
    return theirs if new_enough else Path(sys.executable)


def python_version() -> str:
    question = "import platform; print(platform.python_version())"
    return subprocess.check_output([python(), "-c", question], text=True).strip()


def compiled() -> Programs:
    return Programs(_compiled("load"), _compiled("stand_in"))


def _compiled(name: str) -> Path:
    """The program, made anew when its source has changed."""
    source = HERE / f"{name}.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    program = cache() / f"{name}-{digest}"
    if not program.exists():
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise SystemExit("the benchmark needs a C compiler: apt-get install gcc libc6-dev")
        program.parent.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *COMPILE, "-o", unfinished, source], check=True)
        unfinished.rename(program)
    return program


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def stand_in(programs: Programs, core: int, socket_path: Path | None = None) -> Iterator[int]:
    """A stand-in llama-server of one's own; its port. It may listen at a socket too."""
    port = free_port()
    host = "127.0.0.1" if socket_path is None else f"127.0.0.1,{socket_path}"
    command: list[str | Path] = [programs.stand_in, "--host", host, "--port", str(port), "--alias", "bench"]
    with kernel.on_core(core):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listens(port), "the stand-in listens")
        yield port
    finally:
        process.kill()
        process.wait()


def launcher(programs: Programs, core: int, directory: Path) -> Path:
    """A `llama-server` for Corral to start, which leaves Corral's core at once."""
    path = directory / "llama-server"
    path.write_text(f'#!/bin/sh\nexec taskset -c {core} {programs.stand_in} "$@"\n')
    path.chmod(0o755)
    return path


class Load(NamedTuple):
    """A load to put on somebody: what load.c is told."""

    kind: str  # requests or streams
    port: int
    requests: tuple[bytes, ...]  # sent in turn
    connections: int
    warm_up_s: float
    seconds: float


def run_load(
    programs: Programs,
    core: int,
    load: Load,
    reading: Callable[[], int] = lambda: 0,
    meanwhile: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run it to its end. `readings` are two, taken when it begins to count and when it has counted.

    `meanwhile` runs in a thread of its own, from the moment at which the load begins to count.
    """
    until, ours = os.pipe()
    arguments = [load.kind, load.port, load.connections, load.warm_up_s, load.seconds, until]
    with kernel.on_core(core):
        process = subprocess.Popen(
            [programs.load, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[until],
        )
    os.close(until)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"\0".join(load.requests))
        process.stdin.close()
        process.stdout.readline()
        first = reading()
        busy = threading.Thread(target=meanwhile)
        busy.start()
        line = process.stdout.readline()
        last = reading()
        busy.join()
    finally:
        os.close(ours)
        process.wait()
        process.stdout.close()
    result: dict[str, Any] = json.loads(line)
    if result["errors"]:
        raise SystemExit(f"the load generator met {result['errors']} errors: {load.kind} on {load.port}")
    return result | {"readings": (first, last)}
