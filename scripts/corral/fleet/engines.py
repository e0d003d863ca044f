"""How a model becomes a process that answers: a port, a command line, a log, a spawn, and its own word.

`Engine` and `Engines` say what the fleet needs; `LlamaEngines` is what it gets. Readiness is asked of
the process itself (`/health`: refused while it starts, 503 while it loads, 200 when it is ready;
measured), never concluded from time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from corral import errors
from corral.catalogue import Catalogue
from corral.drivers import tasks
from corral.drivers.http_client import Address, HttpClient
from corral.drivers.llama_process import LlamaProcess, exit_in_words
from corral.drivers.log_files import LogFiles
from corral.drivers.ports import lowest_free_port
from corral.drivers.reaper import Reaper
from corral.formats import http1
from corral.policy import launch
from corral.settings import Settings

# How often a loading process is asked whether it is ready: tiny models are ready after 20 ms (measured).
POLL_S = 0.02
POLL_SLOWEST_S = 0.5
HEALTH_SILENCE_S = 5.0
HEALTH_BODY_MAX_BYTES = 64 * 1024


class EngineDied(Exception):
    """A process could not be started, or was gone before it was ready. Says how, in words."""


class Engine(Protocol):
    """One running llama-server, as the fleet needs it."""

    address: Address

    @property
    def pid(self) -> int: ...
    async def until_ready(self) -> None:
        """Return once it says that it is ready; raise EngineDied if it exits before."""

    async def until_exit(self) -> str:
        """Wait until the process is gone; say how it went."""

    async def stop(self) -> None:
        """Close its sockets, end its process, return when it is reaped."""

    def log_tail(self, lines: int) -> list[str]: ...


class Engines(Protocol):
    """Where engines come from."""

    async def start(self, model: str) -> Engine:
        """Start a process for a model. Raises EngineDied if there is none to be had."""


class LlamaEngine:
    def __init__(self, process: LlamaProcess, address: Address, client: HttpClient) -> None:
        self.address = address
        self._process = process
        self._client = client

    @property
    def pid(self) -> int:
        return self._process.pid

    async def until_ready(self) -> None:
        pause_s = POLL_S
        while self._process.alive:
            if await self._says_ready():
                return
            await asyncio.sleep(pause_s)
            pause_s = min(POLL_SLOWEST_S, pause_s * 1.2)
        raise EngineDied(await self.until_exit())

    async def _says_ready(self) -> bool:
        question = http1.request_head("GET", "/health", [(b"host", str(self.address).encode())])
        try:
            answer = await self._client.send(self.address, "GET", question, silence_s=HEALTH_SILENCE_S)
            await answer.body(HEALTH_BODY_MAX_BYTES)
        except errors.CorralError:
            return False
        return answer.head.status == 200

    async def until_exit(self) -> str:
        return exit_in_words(await self._process.exited)

    async def stop(self) -> None:
        # A llama-server in the middle of a request that is not streamed ignores SIGTERM until that
        # request's socket closes (measured), so the sockets go first.
        self._client.close(self.address)
        await self._process.stop()

    def log_tail(self, lines: int) -> list[str]:
        return self._process.tail(lines)


class LlamaEngines:
    """Starts llama-servers for the models of a catalogue."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        environment: Mapping[str, str],
        client: HttpClient,
        logs: LogFiles,
        reaper: Reaper,
        own_ports: frozenset[int],
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._environment = environment
        self._client = client
        self._logs = logs
        self._reaper = reaper
        self._taken_ports = set(own_ports)

    async def start(self, model: str) -> LlamaEngine:
        binary = self._settings.paths.llama_server
        if binary is None:
            raise EngineDied("there is no llama-server: run `make engine`, or set LLAMA_SERVER_PATH")
        address = Address(self._settings.herd.backend_host, self._free_port())
        argv = self._command(model, binary, address)
        log = self._logs.open(f"llama-{self._log_name(model)}", "server")
        log.write(f"[corral] {' '.join(argv)}\n".encode())
        try:
            process = LlamaProcess.start(argv, self._environment, log, self._reaper)
        except OSError as error:
            raise EngineDied(f"no process could be started: {error}") from error
        self._taken_ports.add(address.port)
        tasks.spawn(self._free_port_at_exit(process, address.port), f"the port of {model}")
        return LlamaEngine(process, address, self._client)

    def _command(self, model: str, binary: Path, address: Address) -> tuple[str, ...]:
        return launch.command(
            self._catalogue.models[model],
            llama_server=str(binary),
            host=address.host,
            port=address.port,
            default_parallel=self._settings.herd.default_parallel,
            threads=self._settings.herd.cpu_threads,
            flash_attention=self._settings.herd.flash_attention,
        )

    def _log_name(self, model: str) -> str:
        single = self._settings.single_model is not None
        return self._settings.logs.worker_type if single and self._settings.logs.worker_type else model

    def _free_port(self) -> int:
        herd = self._settings.herd
        single = self._settings.single_model
        first, last = (single.port, single.port) if single else (herd.port_start, herd.port_end)
        port = lowest_free_port(first, last, self._taken_ports)
        if port is None:
            raise EngineDied(
                f"no port is free from {first} to {last}: free one, or set server_pool.port_start"
            )
        return port

    async def _free_port_at_exit(self, process: LlamaProcess, port: int) -> None:
        await process.exited
        self._taken_ports.discard(port)
