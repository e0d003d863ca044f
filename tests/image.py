"""The image without a container engine: `make image` builds it as a plain folder, and runs it there.

A root file system made by debootstrap stands for the base image: Debian's Python instead of Ubuntu's, and
the engine that is found here as /app/llama-server. It is made once and kept. Each stage of the Dockerfile
begins with a copy of it, in which the stage's own instructions are carried out one by one, so what a later
stage has from an earlier one is what it copies. Then its entrypoint is process 1 of a PID namespace, as the
image's user, as root, as a user that nobody has heard of, and on a volume that belongs to somebody else; and
once it is not process 1, as behind an init, where nobody but itself cleans up. It takes root, debootstrap
and some minutes, so no test does it. What remains unproven: the true base image, its layers, and a GPU.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from corral import settings
from corral.formats import demo_models
from tests.support import KEY, ROOT, ask, free_port, ping
from tests.waiting import wait_until

BASE_PACKAGES = "ca-certificates,libgomp1,libstdc++6,procps"
QUESTION = {"model": "demo", "messages": [{"role": "user", "content": "Who are you?"}]}
STRANGER = 54_321
# A network may have an authority of its own, which pip in there knows as little as pip out here did.
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
BUILD_TIME = {"PIP_CERT": "/build-authorities.pem", "DEBIAN_FRONTEND": "noninteractive"}
# What docs/deploying.md says is not in the image.
LEFT_BEHIND = ("pip", "pip3", "cc", "gcc", "g++", "make")
STOP_TIMEOUT_S = 30.0


@dataclass
class Stage:
    """A folder, and what the instructions up to here have said about it. The last one is the image."""

    root: Path
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    )
    cwd: str = "/"
    user: str = "0"
    entrypoint: tuple[str, ...] = ()
    health_check: tuple[str, ...] = ()

    def place(self, path: str) -> Path:
        """Where that is which the stage calls so."""
        return self.root / os.path.join(self.cwd, path).lstrip("/")

    def inside(self, command: tuple[str, ...], user: str) -> list[str]:
        in_cwd = f"cd {shlex.quote(self.cwd)} && exec {shlex.join(command)}"
        return ["chroot", f"--userspec={user}:0", str(self.root), "sh", "-c", in_cwd]

    def returns(self, *command: str, **more: str) -> int:
        """Run that as the image's user, with its environment, to the end."""
        ran = subprocess.run(
            self.inside(command, self.user), env=self.environment | more, stdout=subprocess.DEVNULL
        )
        return ran.returncode


# Building it --------------------------------------------------------------------------------------


def make_base(folder: Path) -> None:
    if (folder / "base").exists():
        return
    print(f"debootstrap in {folder}")
    unfinished = folder / "base.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", str(unfinished)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    unfinished.rename(folder / "base")


def build(folder: Path, engine: Path) -> Stage:
    """Carry out the Dockerfile. What ARG, LABEL and EXPOSE say is nothing that runs."""
    stages: dict[str, Stage] = {}
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for line in filter(None, re.sub(r"\\\n", " ", text).splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            name = rest.partition(" AS ")[2] or "image"
            stages[name] = stage = begin(folder, name, engine)
        elif stages:
            carry_out(word, rest, stage, stages)
    return stages["image"]


def begin(folder: Path, name: str, engine: Path) -> Stage:
    root = folder / name
    if root.exists():
        shutil.rmtree(root)
    subprocess.run(["cp", "--archive", "--reflink=auto", str(folder / "base"), str(root)], check=True)
    (root / "app").mkdir()
    shutil.copy2(engine, root / "app" / "llama-server")
    shutil.copy2(AUTHORITIES, root / BUILD_TIME["PIP_CERT"].lstrip("/"))
    return Stage(root)


def carry_out(word: str, rest: str, stage: Stage, stages: dict[str, Stage]) -> None:
    match word:
        case "RUN":
            print(f"  RUN {rest[:90]}")
            command = stage.inside(("sh", "-c", rest), stage.user)
            environment = stage.environment | BUILD_TIME
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        case "WORKDIR":
            stage.cwd = rest
            stage.place(".").mkdir(parents=True, exist_ok=True)
        case "COPY":
            copy(rest.split(), stage, stages)
        case "ENV":
            for name, value in (pair.split("=", 1) for pair in shlex.split(rest)):
                stage.environment[name] = value.replace("$PATH", stage.environment["PATH"])
        case "USER":
            stage.user = rest
        case "ENTRYPOINT":
            stage.entrypoint = tuple(json.loads(rest))
        case "HEALTHCHECK":
            stage.health_check = tuple(json.loads(rest.partition("CMD ")[2]))


def copy(words: list[str], stage: Stage, stages: dict[str, Stage]) -> None:
    *sources, target = words
    earlier = stages[sources.pop(0).removeprefix("--from=")] if sources[0].startswith("--from=") else None
    origin = earlier.root if earlier else ROOT
    ignore = None if earlier else shutil.ignore_patterns("__pycache__")  # as .dockerignore says
    for name in sources:
        source, place = origin / name.lstrip("/"), stage.place(target)
        if source.is_dir():
            shutil.copytree(source, place, symlinks=True, ignore=ignore, dirs_exist_ok=True)
        else:
            shutil.copy2(source, place / source.name if place.is_dir() else place)


# Running it ---------------------------------------------------------------------------------------


class Running(NamedTuple):
    """What was started, and the gateway: its child, if that is process 1 of a namespace."""

    started: subprocess.Popen[bytes]
    gateway: int


@contextmanager
def running(image: Stage, user: str, own: dict[str, str], *, first: bool) -> Iterator[Running]:
    """The entrypoint, as process 1 or as any other. However this ends, no process of the image is left."""
    proc = str(image.root / "proc")
    inside = image.inside((*image.entrypoint, "serve"), user)
    if first:
        command = ["unshare", "--pid", "--fork", f"--mount-proc={proc}", *inside]
    else:
        command = ["unshare", "--mount", "sh", "-c", 'mount --rbind /proc "$0" && exec "$@"', proc, *inside]
    with (image.root / "output.log").open("wb") as output:
        started = subprocess.Popen(command, env=image.environment | own, stdout=output, stderr=output)
    try:
        if first:
            wait_until(lambda: children(started.pid), "the namespace has a process")
        [gateway] = children(started.pid) if first else {started.pid}
        yield Running(started, gateway)
    finally:
        for pid in processes_of(image):
            os.kill(pid, signal.SIGKILL)
        started.wait(STOP_TIMEOUT_S)


def processes_of(image: Stage) -> set[int]:
    """Those whose root directory is the image's, in whichever namespace they are."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "root").samefile(image.root):
                found.add(int(entry.name))
        except OSError:
            continue  # it has ended just now
    return found


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def check(image: Stage, user: str, *, first: bool = True) -> None:
    """Start it, ask it, leave it an orphan, stop it, and see its exit code and that it leaves nobody."""
    port, health_port = free_port(), free_port()
    own = {"GATEWAY_PORT": str(port), "PORT_HEALTH": str(health_port), "API_KEY": KEY, "THREADS": "1"}
    with running(image, user, own, first=first) as it:
        wait_until(lambda: ping(f"http://127.0.0.1:{health_port}") == 200, "/ping says 200")
        assert image.returns(*image.health_check, **own) == 0
        assert image.returns("sh", "-c", f"cd / && {shlex.join(image.health_check)}", **own) == 0
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        answer = ask(url, QUESTION, headers={"X-API-Key": KEY})
        assert answer.status == 200, answer.body
        if first:
            reaps_an_orphan(it.gateway)
        assert it.gateway in processes_of(image)
        os.kill(it.gateway, signal.SIGTERM)
        assert it.started.wait(STOP_TIMEOUT_S) == 0
        assert not (left := processes_of(image)), f"still running: {left}"
        assert image.returns(*image.health_check, **own) == 1
    place = "process 1" if first else "any process"
    print(f"  user {user}, {place}: healthy, answers, ends with 0 and leaves no process")


def reaps_an_orphan(gateway: int) -> None:
    # The shell ends at once, and its sleep is process 1's to care for.
    inside = ["nsenter", "--target", str(gateway), "--pid", "sh", "-c", "sleep 1000 >/dev/null 2>&1 &"]
    before = children(gateway)
    subprocess.run(inside, check=True)
    [adopted] = children(gateway) - before
    os.kill(adopted, signal.SIGKILL)
    wait_until(lambda: adopted not in children(gateway), "the orphan is reaped")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("/var/tmp/corral-image")
    engine = settings.load().paths.llama_server
    if engine is None or os.getuid() != 0 or shutil.which("debootstrap") is None:
        sys.exit("it takes root, debootstrap and an engine (`make engine`)")
    folder.mkdir(parents=True, exist_ok=True)
    make_base(folder)
    print("the Dockerfile's instructions")
    image = build(folder, engine)
    for command in LEFT_BEHIND:
        assert image.returns("sh", "-c", f"command -v {command}") != 0, f"{command} is in the image"
    assert image.returns("python3", "-c", "import pynvml") == 0
    for python in ("python3", "/usr/bin/python3"):
        found = image.returns(python, "-c", "import importlib.util as u; assert u.find_spec('pip') is None")
        assert found == 0, f"{python} has pip"
    print("  the one package is there, and neither pip nor a compiler")
    (image.root / "data" / "models" / "demo.gguf").write_bytes(demo_models.demo())
    print("the entrypoint as process 1, and as one that an init has started")
    for user in (image.user, "0", str(STRANGER)):
        check(image, user)
    check(image, image.user, first=False)
    print("the same on a volume of somebody else's")
    for path in (image.root / "data", *(image.root / "data").rglob("*")):
        os.chown(path, STRANGER + 1, STRANGER + 1, follow_symlinks=False)
    check(image, image.user)


if __name__ == "__main__":
    main()
