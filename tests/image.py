"""The image without a container engine: `make image` builds it as a plain folder, and runs it there.

A root file system made by debootstrap stands for the base image: Debian's Python instead of Ubuntu's, and
the engine that is found here as /app/llama-server. In it the Dockerfile's own instructions are carried out
one by one, and then its entrypoint is process 1 of a PID namespace, as the image's user, as root, as a user
that nobody has heard of, and on a volume that belongs to somebody else. It takes root, debootstrap and some
minutes, so no test does it. What remains unproven: the true base image, its layers, and a GPU.
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


class Image(NamedTuple):
    root: Path
    environment: dict[str, str]
    user: str
    entrypoint: list[str]


def chroot(root: Path, command: list[str], environment: dict[str, str], cwd: str = "/") -> None:
    inside = ["chroot", str(root), "sh", "-c", f"cd {shlex.quote(cwd)} && exec {shlex.join(command)}"]
    subprocess.run(inside, env=environment, check=True, stdout=subprocess.DEVNULL)


def build(root: Path, engine: Path) -> Image:
    """The Dockerfile's instructions, both stages in the one folder: what they copy lies there already."""
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    build_time = {"PIP_CERT": "/build-authorities.pem", "DEBIAN_FRONTEND": "noninteractive"}
    cwd, user, entrypoint = "/", "0", [""]
    (root / "app").mkdir(exist_ok=True)
    shutil.copy2(engine, root / "app" / "llama-server")
    shutil.copy2(AUTHORITIES, root / "build-authorities.pem")
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for line in filter(None, re.sub(r"\\\n", " ", text).splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "RUN":
            print(f"  RUN {rest[:90]}")
            chroot(root, ["sh", "-c", rest], environment | build_time, cwd)
        elif word == "WORKDIR":
            cwd = rest
            (root / cwd.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                copy(ROOT / source, root / cwd.lstrip("/") / target, into=len(sources) > 1 or target == ".")
        elif word == "ENV":
            pairs = dict(pair.split("=", 1) for pair in shlex.split(rest))
            environment |= {
                name: value.replace("$PATH", environment["PATH"]) for name, value in pairs.items()
            }
        elif word == "USER":
            user = rest
        elif word == "ENTRYPOINT":
            entrypoint = json.loads(rest)
    return Image(root, environment, user, entrypoint)


def copy(source: Path, target: Path, *, into: bool) -> None:
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target / source.name if into else target)


def run(image: Image, user: str) -> None:
    """Start it as process 1, ask it, leave it an orphan, stop it, and see its exit code."""
    port, health_port = free_port(), free_port()
    own = {"GATEWAY_PORT": str(port), "PORT_HEALTH": str(health_port), "API_KEY": KEY, "THREADS": "1"}
    namespace = ["unshare", "--pid", "--fork", f"--mount-proc={image.root / 'proc'}"]
    command = [*namespace, "chroot", f"--userspec={user}:0", str(image.root), *image.entrypoint, "serve"]
    with (image.root / "output.log").open("wb") as output:
        unshare = subprocess.Popen(command, env=image.environment | own, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: ping(f"http://127.0.0.1:{health_port}") == 200, "/ping says 200")
    answer = ask(f"{url}/v1/chat/completions", QUESTION, headers={"X-API-Key": KEY})
    assert answer.status == 200, answer.body
    [gateway] = children(unshare.pid)
    # The shell ends at once, and its sleep is process 1's to care for.
    inside = ["nsenter", "--target", str(gateway), "--pid", "sh", "-c", "sleep 1000 >/dev/null 2>&1 &"]
    before = children(gateway)
    subprocess.run(inside, check=True)
    [adopted] = children(gateway) - before
    os.kill(adopted, signal.SIGKILL)
    wait_until(lambda: adopted not in children(gateway), "the orphan is reaped")
    os.kill(gateway, signal.SIGTERM)
    assert unshare.wait(30) == 0
    print(f"  user {user}: healthy, answers, reaps an orphan, ends with 0")


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("/var/tmp/corral-image")
    engine = settings.load().paths.llama_server
    if engine is None or os.getuid() != 0 or shutil.which("debootstrap") is None:
        sys.exit("it takes root, debootstrap and an engine (`make engine`)")
    if not (root / "usr").exists():
        print(f"debootstrap in {root}")
        command = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", str(root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print("the Dockerfile's instructions")
    image = build(root, engine)
    model = root / "data" / "models" / "demo.gguf"
    model.write_bytes(demo_models.demo())
    print("the entrypoint as process 1")
    for user in (image.user, "0", str(STRANGER)):
        run(image, user)
    print("the same on a volume of somebody else's")
    for path in (root / "data", *(root / "data").rglob("*")):
        os.chown(path, STRANGER + 1, STRANGER + 1, follow_symlinks=False)
    run(image, image.user)


if __name__ == "__main__":
    main()
