"""Other proxies, each as its users would write or start it, where what it needs is installed.

`make bench RIVALS=1` gets them first (install.py). None is ever required: who is missing is named and left
out.

    nginx, by a socket         the yardstick once more, with a Unix socket to its backend, as Corral has
    aiohttp, FastAPI + httpx   the small programs that one writes (rivals/)
    LiteLLM                    one model, a master key, one worker, no database
    llama-swap                 a key, and a command that starts the stand-in
    llama.cpp router           starts nothing but itself: the real engine, with the demo model, is behind it
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from corral import settings
from corral.formats import demo_models
from tests.bench.contestants import (
    ALL,
    MODEL,
    SLOTS,
    Contestant,
    Part,
    Ring,
    Target,
    nginx,
    nginx_binary,
    program,
)
from tests.bench.install import APPS, LITELLM, LLAMA_SWAP, RIVALS, command_in, packages, python_in
from tests.bench.install import llama_swap as llama_swap_program
from tests.bench.programs import launcher, stand_in
from tests.support import KEY, free_port

# The small programs -------------------------------------------------------------------------------


@contextmanager
def _python_app(name: str, ring: Ring) -> Iterator[Target]:
    with stand_in(ring.programs, ring.load_core) as backend:
        port = free_port()
        command: list[str | Path] = [python_in(APPS), RIVALS / f"{name}.py", str(port), str(backend)]
        with program(ring, port, command) as target:
            yield target


def _app_runs(name: str) -> bool:
    python, app = python_in(APPS), RIVALS / f"{name}.py"
    return python.exists() and subprocess.run([python, app], capture_output=True).returncode == 0


# LiteLLM ------------------------------------------------------------------------------------------


@contextmanager
def litellm(ring: Ring) -> Iterator[Target]:
    with stand_in(ring.programs, ring.load_core) as backend:
        config = ring.directory / f"litellm-{backend}.yaml"
        config.write_text(litellm_config(backend))
        port = free_port()
        command: list[str | Path] = [command_in(LITELLM, "litellm"), "--config", config]
        command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        # Else its start waits for a list of prices from the Internet.
        with program(ring, port, command, LITELLM_LOCAL_MODEL_COST_MAP="True") as target:
            yield target


def litellm_config(backend: int) -> str:
    """JSON is YAML."""
    engine = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{backend}/v1", "api_key": "none"}
    models = [{"model_name": MODEL, "litellm_params": engine}]
    return json.dumps({"model_list": models, "general_settings": {"master_key": KEY}})


# llama-swap ---------------------------------------------------------------------------------------


@contextmanager
def llama_swap(ring: Ring) -> Iterator[Target]:
    directory = Path(tempfile.mkdtemp(dir=ring.directory, prefix="llama-swap-"))
    engine = launcher(ring.programs, ring.load_core, directory)
    config = directory / "config.yaml"
    config.write_text(llama_swap_config(engine))
    port = free_port()
    command: list[str | Path] = [llama_swap_program(), "-config", config, "-listen", f"127.0.0.1:{port}"]
    with program(ring, port, command) as target:
        yield target._replace(engine=ring.programs.stand_in)


def llama_swap_config(engine: Path) -> str:
    """Its own limit is ten requests at a time; the port is counted up from the first one."""
    model = {"cmd": f"{engine} --port ${{PORT}} --alias {MODEL}", "concurrencyLimit": SLOTS}
    return json.dumps({"startPort": free_port(), "apiKeys": [KEY], "models": {MODEL: model}})


def llama_swap_versions() -> dict[str, str]:
    """As Go has built it in: what it says itself is that of its own releases."""
    if not (go := shutil.which("go")):
        return {}
    said = subprocess.run([go, "version", "-m", llama_swap_program()], capture_output=True, text=True).stdout
    for line in said.splitlines():
        if line.split()[:2] == ["mod", LLAMA_SWAP]:
            return {"llama-swap": line.split()[2]}
    return {}


# llama.cpp's router -------------------------------------------------------------------------------


@contextmanager
def router(ring: Ring) -> Iterator[Target]:
    """It starts its own executable again for a model, so the name it is started by tells the two apart."""
    engine = llama_server()
    assert engine is not None
    directory = Path(tempfile.mkdtemp(dir=ring.directory, prefix="router-"))
    (directory / f"{MODEL}.gguf").write_bytes(demo_models.demo())
    (directory / "router").symlink_to(engine)
    port = free_port()
    command: list[str | Path] = [directory / "router", "--models-dir", directory, "--threads", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with program(ring, port, command, LLAMA_API_KEY=KEY) as target:
        yield target._replace(engine=engine)


def llama_server() -> Path | None:
    """The real engine, where it is."""
    found = settings.load().paths.llama_server
    return found and found.resolve()


def llama_server_versions() -> dict[str, str]:
    """`version: 0.5.0-dev (build 1, commit …)`, on its standard error."""
    engine = llama_server()
    assert engine is not None
    said = subprocess.run([engine, "--version"], capture_output=True, text=True)
    words = (said.stdout + said.stderr).partition("version: ")[2].split()
    return {"llama-server": words[0]} if words else {}


# All of them --------------------------------------------------------------------------------------


class Rival(NamedTuple):
    contestant: Contestant
    is_here: Callable[[], bool]
    versions: Callable[[], dict[str, str]]


def _app(name: str, module: str, *wanted: str) -> Rival:
    start = partial(_python_app, module)
    return Rival(Contestant(name, start), partial(_app_runs, module), partial(packages, APPS, wanted))


EVERYBODY = (
    Rival(
        Contestant("nginx, by a socket", partial(nginx, by_socket=True)),
        lambda: nginx_binary() is not None,
        dict,  # the yardstick's own
    ),
    _app("aiohttp", "aiohttp_proxy", "aiohttp"),
    _app("FastAPI + httpx", "fastapi_httpx", "fastapi", "httpx", "uvicorn", "uvloop"),
    Rival(
        Contestant("LiteLLM", litellm, ALL - {Part.MANY_STREAMS}, slow=True),
        lambda: command_in(LITELLM, "litellm").exists(),
        partial(packages, LITELLM, ("litellm",)),
    ),
    Rival(Contestant("llama-swap", llama_swap), lambda: llama_swap_program().exists(), llama_swap_versions),
    Rival(
        Contestant("llama.cpp router", router, frozenset({Part.REAL_ENGINE})),
        lambda: llama_server() is not None,
        llama_server_versions,
    ),
)


def installed(say: Callable[[str], None]) -> list[Rival]:
    found = []
    for rival in EVERYBODY:
        if rival.is_here():
            found.append(rival)
        else:
            say(f"without {rival.contestant.name}: it is not installed")
    return found
