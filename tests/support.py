"""A running Corral for tests: the real programs in a directory of their own, asked from outside.

A test that starts one gets its addresses, its key and its log, and does not have to clean up: whoever
started it stops it, and sees to it that the exit code is 0 and that no process is left.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from corral.settings import DECLARATIONS
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
GATEWAY = ROOT / "scripts" / "gateway.py"
KEY = "sk-test-0123456789abcdef0123456789abcdef"
KEYS_FILE = f"tester:{KEY}:role=admin,rpm=0\n"

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
REQUEST_TIMEOUT_S = 30.0


def repository_files() -> list[str]:
    """What git has or would take, below ROOT: the files that a stranger's clone holds."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def platform_row(platform: str) -> str:
    """What the page about deploying says of a platform."""
    page = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    [row] = [line for line in page.splitlines() if line.startswith(f"| {platform} |")]
    return row


def strangers_environment(**more: str) -> dict[str, str]:
    """This process's environment as somebody would have it who has set nothing up for Corral."""
    ours = {variable for row in DECLARATIONS for variable in row.variables}
    ours |= {"KEY", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "PYTHONPATH", "CUDA", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in ours} | more


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def open_request(
    url: str,
    document: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    method: str | None = None,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> Iterator[http.client.HTTPResponse]:
    """Send a request, and read its answer as it comes. Leaving early closes the connection."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    body = None if document is None else json.dumps(document)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request(method or ("GET" if body is None else "POST"), target, body, dict(headers or {}))
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def ask(
    url: str,
    document: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    method: str | None = None,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> Answer:
    """Send a request, and read all of its answer."""
    with open_request(url, document, headers=headers, method=method, timeout_s=timeout_s) as response:
        return Answer(response.status, response.headers, response.read())


def ping(url: str) -> int | None:
    """The status of /ping; None while nobody listens."""
    try:
        return ask(f"{url}/ping").status
    except (ConnectionError, http.client.HTTPException):
        return None


def listens(url: str) -> bool:
    """Whether there is somebody who answers."""
    try:
        ask(f"{url}/live")
    except (ConnectionError, http.client.HTTPException):
        return False
    return True


# What openssl is told for a key of each kind.
NEW_KEYS = {"ec": ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"], "rsa": ["rsa:2048"]}


def make_certificate(cert: Path, key: Path, *, name: str = "localhost", kind: str = "ec") -> None:
    """Write a certificate for `name`, signed by itself, and its key."""
    command = ["openssl", "req", "-x509", "-newkey", *NEW_KEYS[kind], "-nodes", "-subj", f"/CN={name}"]
    command += ["-addext", f"subjectAltName=DNS:{name}", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)


def processes_naming(directory: Path) -> dict[int, str]:
    """Processes whose command line or environment names the directory: pid to command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue  # it has ended just now, or is another user's
            if os.fsencode(directory) in command + environment:
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


@contextmanager
def running_corral(
    directory: Path, engine: Path, models: Path, *, until_up: bool = True, **options: Any
) -> Iterator[Corral]:
    """An instance that serves the model files in `models`, up when it is yielded, finished afterwards."""
    shutil.copytree(models, directory / "data" / "models")
    instance = Corral(directory, engine, **options)
    try:
        if until_up:
            instance.wait_until_up()
        yield instance
    finally:
        instance.finish()


class Corral:
    """One instance: the gateway's process with all that it starts, and everything it writes in one place."""

    def __init__(
        self,
        directory: Path,
        engine: Path,
        *,
        environment: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        keys: str = KEYS_FILE,
        program: Path = GATEWAY,
        arguments: Sequence[str] = (),
        python: Path = Path(sys.executable),
    ) -> None:
        """`program` is run by `python`, or by itself if it is no Python."""
        self.directory = directory
        self._command = [*([str(python)] if program.suffix == ".py" else []), str(program), *arguments]
        self.data = directory / "data"
        self.key = KEY
        self._output = directory / "gateway.log"
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "DATA_DIR": str(self.data),
            "RUNTIME_DIR": str(directory / "run"),
            "LLAMA_SERVER_PATH": str(engine),
            # llama.cpp's threads wait for one another in a busy loop. Two of them on a machine that is also
            # doing something else fall from thousands of tokens a second to a few (measured).
            "THREADS": "1",
            "GATEWAY_PORT": str(free_port()),
            "PORT_HEALTH": str(free_port()),
            **(environment or {}),
        }
        port = self._environment["GATEWAY_PORT"] or self._environment["PORT"]
        self.url = f"http://127.0.0.1:{port}"
        self.health_url = f"http://127.0.0.1:{self._environment['PORT_HEALTH']}"
        keys_file = self.data / "api_keys.txt"
        keys_file.touch(mode=0o600)
        keys_file.write_text(keys)
        # Ports of its own for its llama-servers: instances that start side by side would else meet on one.
        pool = {"port_start": free_port(), **(config or {}).get("server_pool", {})}
        (self.data / "config.json").write_text(json.dumps({**(config or {}), "server_pool": pool}))
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._output.open("wb") as output:
            return subprocess.Popen(
                self._command,
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    @property
    def log_text(self) -> str:
        return self._output.read_text(errors="replace")

    def wait_until_up(self) -> None:
        """Until both processes say so: they start side by side, and either may be the first."""

        def up() -> bool:
            assert self.exit_code is None, f"the gateway ended with {self.exit_code}"
            return ping(self.url) == 200 == ping(self.health_url)

        try:
            wait_until(up, "GET /ping answers 200 on both ports", START_TIMEOUT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_text}") from None

    def ask(self, path: str, document: object = None, **headers: str) -> Answer:
        """Ask the gateway, with the key unless `headers` bring an Authorization of their own."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(self.url + path, document, headers={"Authorization": f"Bearer {self.key}"} | named)

    def kill(self) -> None:
        """The end without a goodbye: no handler runs."""
        self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended already."""
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop, unless it has ended already. Its exit code."""
        self.tell(number)
        return self.wait_until_ended()

    def restart(self) -> None:
        """Stop it and start it again, as it was started, on what it has left behind."""
        assert self.stop() == 0, self.log_text
        self._process = self._start()
        self.wait_until_up()

    def wait_until_ended(self) -> int:
        """Its exit code, when it has one."""
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it did not stop within {STOP_TIMEOUT_S:g} s:\n{self.log_text}") from None

    def finish(self) -> None:
        """The end of every test: it stops when told to, cleanly, and leaves no process behind."""
        killed = self.exit_code == -signal.SIGKILL  # by the test, which wanted to see what happens then
        code = self.stop()
        try:
            assert killed or code == 0, f"the gateway ended with {code}:\n{self.log_text}"
            if killed:  # the kernel takes its children along, a moment later
                wait_until(lambda: not processes_naming(self.directory), "its children are gone", 2.0)
            assert not (left := processes_naming(self.directory)), f"still running: {left}"
        finally:
            for pid in processes_naming(self.directory):
                os.kill(pid, signal.SIGKILL)
