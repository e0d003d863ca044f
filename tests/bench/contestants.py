"""Who is measured: started as its users start it, on a core of its own, ready to answer.

Everybody gets the same request from the same load generator, key and all, and has a stand-in
llama-server of its own behind it. nginx is a plain keep-alive proxy without a log: the least that a proxy
can do. Corral is what it is by default, started by scripts/gateway.py, with a key that has a limit (one
that is never reached), queue, metrics and access log; it starts its llama-server itself. Only the number
of slots is not the default one: with one slot, a thousand streams would take turns.

Who can't be measured in everything says in which parts, and what it lacks is missing from the table.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import NamedTuple

from corral.formats import demo_models
from tests.bench import kernel
from tests.bench.programs import Programs, launcher, listens, python, stand_in
from tests.support import KEY, Corral, ask, free_port
from tests.support import listens as answers
from tests.waiting import moments

MODEL = "bench"
FIRST_ANSWER_TIMEOUT_S = 10.0
FIRST_ANSWER_POLL_S = 0.002
STOP_TIMEOUT_S = 10.0
SLOTS = 1100
# As many as a key may have at most, so that the window is kept and never full.
KEYS_FILE = f"bench:{KEY}:rpm=1000000\n"
NGINX_CONF = """
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 16m;
    keepalive_requests 100000000;
    upstream backend {{
        server {backend};
        keepalive 1024;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


class Ring(NamedTuple):
    """Where it takes place."""

    programs: Programs
    core: int  # the proxy's
    load_core: int
    directory: Path


class Target(NamedTuple):
    """A contestant whose process has been started: where it listens, or is going to."""

    port: int
    pid: int | None  # None: there is no proxy
    spawned_at: float
    engine: Path | None = None  # its own child, and none of it
    health_url: str | None = None

    @property
    def pids(self) -> list[int]:
        """The processes that it consists of."""
        if self.pid is None:
            return []
        return [pid for pid in kernel.family(self.pid) if not self._is_engine(pid)]

    @property
    def engines(self) -> list[int]:
        """The processes that it has started to be asked by it."""
        if self.pid is None:
            return []
        return [pid for pid in kernel.family(self.pid) if self._is_engine(pid)]

    def _is_engine(self, pid: int) -> bool:
        return self.engine is not None and kernel.command_of(pid).startswith(str(self.engine))


Start = Callable[[Ring], AbstractContextManager[Target]]


class Part(Enum):
    """What there is to measure."""

    MANY_CONNECTIONS = auto()
    ONE_CONNECTION = auto()
    FEW_STREAMS = auto()
    MANY_STREAMS = auto()
    REAL_ENGINE = auto()  # instead of all these, where no stand-in can be behind it
    LARGE_BODIES = auto()
    FIRST_ANSWER = auto()
    STREAM_MEMORY = auto()


ALL = frozenset(Part) - {Part.REAL_ENGINE}


class Contestant(NamedTuple):
    """`slow`: it needs so much longer for everything that it gets less to do, and more time for it."""

    name: str
    start: Start
    parts: frozenset[Part] = ALL
    slow: bool = False


def request(document: dict[str, object]) -> bytes:
    """A chat completion as a client sends it."""
    body = json.dumps(document).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: bench/1.0\r\n"
        f"Accept: application/json\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


QUESTION = "What is it that a gate has to do so that whoever passes through it does not notice it?"
LENGTHS = 16


def chat(question: str = QUESTION, **more: object) -> dict[str, object]:
    messages = [
        {"role": "system", "content": "You are a helpful assistant. Answer briefly."},
        {"role": "user", "content": question},
    ]
    return {"model": MODEL, "messages": messages, "temperature": 0.7, "max_tokens": 256, **more}


def requests_of_many_lengths(**more: object) -> tuple[bytes, ...]:
    """No client sends as many bytes each time."""
    return tuple(request(chat(QUESTION + "!" * extra, **more)) for extra in range(LENGTHS))


def stream_request(chunks_per_s: float, seconds: float) -> bytes:
    """A stream that ends by itself: not everybody stops reading the engine's when the client leaves."""
    chunks = math.ceil(chunks_per_s * seconds)
    return request(chat(stream=True, n_predict=chunks, interval_us=round(1e6 / chunks_per_s)))


# Contestants --------------------------------------------------------------------------------------


@contextmanager
def nobody(ring: Ring) -> Iterator[Target]:
    """No proxy at all: what the load generator and the stand-in take for themselves."""
    with stand_in(ring.programs, ring.load_core) as port:
        yield Target(port, None, time.monotonic())


@contextmanager
def program(ring: Ring, port: int, command: list[str | Path], **environment: str) -> Iterator[Target]:
    """A proxy that is one command, with all the processes that it starts."""
    output = ring.directory / f"{Path(command[0]).name}-{port}.log"
    with output.open("wb") as log, kernel.on_core(ring.core):
        spawned_at = time.monotonic()
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **environment}
        )
    try:
        yield Target(port, process.pid, spawned_at)
    except BaseException:
        print(output.read_text(errors="replace")[-2000:], file=sys.stderr)
        raise
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def nginx(ring: Ring, *, by_socket: bool = False) -> Iterator[Target]:
    """By the backend's port, as where one puts it before a llama-server, or as Corral reaches its own."""
    port = free_port()
    directory = ring.directory / f"nginx-{port}"
    directory.mkdir()
    socket_path = directory / "backend.sock" if by_socket else None
    with stand_in(ring.programs, ring.load_core, socket_path) as backend_port:
        backend = f"unix:{socket_path}" if by_socket else f"127.0.0.1:{backend_port}"
        # Its worker would be nobody otherwise, who may not enter the folder of the socket.
        user = "user root;" if os.geteuid() == 0 else ""
        config = directory / "nginx.conf"
        config.write_text(NGINX_CONF.format(user=user, directory=directory, backend=backend, port=port))
        binary = nginx_binary()
        if binary is None:
            raise SystemExit("the benchmark needs nginx, the yardstick: apt-get install nginx-light")
        # The prefix is told so that nothing of the machine's own nginx is touched.
        with program(ring, port, [binary, "-p", directory, "-c", config]) as target:
            yield target


def nginx_binary() -> str | None:
    return shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")


@contextmanager
def corral(ring: Ring) -> Iterator[Target]:
    directory = Path(tempfile.mkdtemp(dir=ring.directory, prefix="corral-"))
    models = directory / "data" / "models"
    models.mkdir(parents=True)
    (models / f"{MODEL}.gguf").write_bytes(demo_models.demo())
    config = {"models": {MODEL: {"model_path": f"{MODEL}.gguf", "flags": ["--parallel", str(SLOTS)]}}}
    engine = launcher(ring.programs, ring.load_core, directory)
    with kernel.on_core(ring.core):
        spawned_at = time.monotonic()
        instance = Corral(directory, engine, config=config, keys=KEYS_FILE, python=python())
    try:
        port = int(instance.url.rpartition(":")[2])
        yield Target(port, instance.pid, spawned_at, ring.programs.stand_in, instance.health_url)
    finally:
        instance.finish()


NOBODY = Contestant("no proxy", nobody)
NGINX = Contestant("nginx", nginx)
CORRAL = Contestant("Corral", corral)


# Ready to be measured -----------------------------------------------------------------------------


def await_listening(target: Target) -> list[float]:
    """Seconds from its start until it takes connections, and until its health port answers if it has one."""
    facts = [partial(listens, target.port)]
    if target.health_url is not None:
        facts.append(partial(answers, target.health_url))
    return [moment - target.spawned_at for moment in moments(*facts)]


def first_answer(target: Target) -> float:
    """One answer from behind it, for which Corral loads its model; the seconds since it was started."""
    url = f"http://127.0.0.1:{target.port}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    deadline = time.monotonic() + FIRST_ANSWER_TIMEOUT_S
    # llama-server's router listens for a moment before it is ready, and says so.
    while (answer := ask(url, chat(), headers=headers)).status == 503 and time.monotonic() < deadline:
        time.sleep(FIRST_ANSWER_POLL_S)
    if answer.status != 200:
        raise SystemExit(f"a contestant answers {answer.status}: {answer.body.decode(errors='replace')}")
    return time.monotonic() - target.spawned_at
