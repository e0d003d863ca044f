"""How a model becomes a process that answers: a port, a command line, a log, a spawn, and its own word.

`Engine` and `Engines` say what the fleet needs; `LlamaEngines` is what it gets. Readiness is asked of
the process itself (`/health`: refused while it starts, 503 while it loads, 200 when it is ready;
measured), never concluded from time.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Protocol

from corral import errors
from corral.catalogue import Catalogue, Model
from corral.drivers import clock, model_files, port_holder, process_facts, socket_files
from corral.drivers.http_client import Address, HttpClient
from corral.drivers.llama_process import LlamaProcess, exit_in_words
from corral.drivers.log_files import LogFiles
from corral.drivers.page_cache import PageCache, WarmUp
from corral.drivers.ports import lowest_free_port
from corral.drivers.reaper import Reaper
from corral.formats import http1
from corral.formats.engine_log import lost_its_port, ran_out_of_memory, refused_its_socket
from corral.formats.slots import Slot, read_busy, read_total
from corral.policy import launch
from corral.policy.liveness import LOAD_STALL_S, LoadProgress, Sample, StallTimer
from corral.policy.placement import Placement
from corral.settings import Settings

log = logging.getLogger("corral.fleet")

# How often a loading process is asked whether it is ready: tiny models are ready after 20 ms (measured).
POLL_S = 0.02
POLL_SLOWEST_S = 0.5
# For the short questions that are asked of it beside the requests.
ANSWER_SILENCE_S = 3.0
ANSWER_MAX_BYTES = 4 * 1024 * 1024
# From SIGTERM to SIGKILL. A llama-server whose sockets are closed has nothing left to finish, and if the
# signal overtakes their closing it waits for up to half a minute (measured: once in six streams).
STOP_PATIENCE_S = 2.0


class Death(Enum):
    """Causes of a death at load that are not the model's fault."""

    MEMORY = "out of memory"
    PORT = "its port was taken"
    OTHER = "something else"


class EngineDied(Exception):
    """A process could not be started, or was gone before it was ready. Says how, in words."""


class Engine(Protocol):
    """One running llama-server, as the fleet needs it."""

    address: Address

    @property
    def pid(self) -> int: ...
    @property
    def alive(self) -> bool: ...
    @property
    def stopped(self) -> bool:
        """Whether it was we who ended it."""

    async def says_healthy(self) -> bool: ...
    async def sample(self) -> Sample:
        """What it does just now, as far as it says and the kernel sees."""

    def kill(self, reason: str) -> None:
        """End it at once: a death like any other, but with a reason of ours."""

    async def until_ready(self) -> None:
        """Return once it says that it is ready; raise EngineDied if it exits before."""

    async def slots(self) -> int | None:
        """On how many requests it works at a time, if it says so."""

    async def busy_slots(self) -> tuple[Slot, ...] | None:
        """On which tasks it works just now. None: it does not answer; one that won't say says none."""

    async def until_exit(self) -> str:
        """Wait until the process is gone; say how it went."""

    async def stop(self) -> bool:
        """Close its sockets and end its process. False: it could not be reaped, even so."""

    def died_of(self) -> Death:
        """What it has died of, as far as its last words tell."""

    def log_tail(self, lines: int) -> list[str]: ...


class Engines(Protocol):
    """Where engines come from."""

    async def start(self, model: str, placement: Placement) -> Engine:
        """Start a process for a model, there. Raises EngineDied if there is none to be had."""

    def warm(self, model: str) -> None:
        """Have its file read into memory by the time it is needed."""

    def cool(self, model: str) -> None:
        """It is not needed after all, or it is being read by its own process now."""


class LlamaEngine:
    def __init__(self, process: LlamaProcess, address: Address, client: HttpClient) -> None:
        self.address = address
        self.stopped = False
        self._process = process
        self._client = client
        self._killed_because = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.alive

    async def until_ready(self) -> None:
        pause_s = POLL_S
        stall = StallTimer(LOAD_STALL_S, clock.monotonic())
        exited = self._process.exited
        while self._process.alive:
            if await self.says_healthy() and self._is_ours():
                return
            if stall.stalled(self._load_progress(), clock.monotonic()):
                self.kill(f"its load stood still for {LOAD_STALL_S:.0f} s")
            await asyncio.wait([exited], timeout=pause_s)
            pause_s = min(POLL_SLOWEST_S, pause_s * 1.2)
        raise EngineDied(await self.until_exit())

    def _is_ours(self) -> bool:
        """Whether it was our process that answered. One that comes too late for its port is about to end."""
        return port_holder.is_held_by(self.address.port, self.pid) is not False

    def _load_progress(self) -> LoadProgress:
        work = process_facts.work_of(self.pid)
        return LoadProgress(self._process.output_bytes, work.read_bytes, work.resident_bytes)

    async def says_healthy(self) -> bool:
        answer = await self._get("/health")
        return answer is not None and answer[0] == 200

    async def slots(self) -> int | None:
        answer = await self._get("/props")
        return read_total(answer[1]) if answer is not None and answer[0] == 200 else None

    async def busy_slots(self) -> tuple[Slot, ...] | None:
        answer = await self._get("/slots")
        if answer is None:
            return None
        busy = read_busy(answer[1]) if answer[0] == 200 else None
        return busy or ()  # with --no-slots there is nothing to go by but the socket, which is closed

    async def sample(self) -> Sample:
        answer = await self._get("/slots")
        slots = read_busy(answer[1]) if answer is not None and answer[0] == 200 else None
        cpu_s = process_facts.work_of(self.pid).cpu_s
        held_up = self._client.held_up(self.address)
        return Sample(clock.monotonic(), slots, cpu_s, self._process.output_bytes, held_up)

    async def _get(self, path: str) -> tuple[int, bytes] | None:
        """Status and body of a short answer, or None if there was none in time."""
        question = http1.request_head("GET", path, [(b"host", str(self.address).encode())])
        try:
            answer = await self._client.send(self.address, "GET", question, silence_s=ANSWER_SILENCE_S)
            try:
                return answer.head.status, await answer.body(ANSWER_MAX_BYTES)
            finally:
                answer.close()
        except errors.CorralError:
            return None

    def kill(self, reason: str) -> None:
        self._killed_because = reason
        self._process.kill()

    async def until_exit(self) -> str:
        how = exit_in_words(await self._process.exited)
        return f"{self._killed_because} ({how})" if self._killed_because else how

    async def stop(self) -> bool:
        self.stopped = True
        # A llama-server in the middle of a request that is not streamed ignores SIGTERM until that
        # request's socket closes (measured), so the sockets go first.
        self._client.close(self.address)
        await asyncio.sleep(0)  # the loop closes them in its next turn, and the signal must not overtake that
        return await self._process.stop(STOP_PATIENCE_S) is not None

    def died_of(self) -> Death:
        exit_code, lines = self._process.exit_code, self._process.tail()
        if self._killed_because or exit_code is None:
            return Death.OTHER
        if lost_its_port(lines):
            return Death.PORT
        return Death.MEMORY if ran_out_of_memory(lines, exit_code) else Death.OTHER

    def log_tail(self, lines: int) -> list[str]:
        return self._process.tail(lines)


def command(
    model: Model,
    settings: Settings,
    binary: str,
    address: Address,
    *,
    gpu_layers: int | None = None,
    tensor_split: Sequence[int] = (),
) -> tuple[str, ...]:
    """The command line of a model's llama-server; without a placement, as the settings alone have it."""
    return launch.command(
        model,
        llama_server=binary,
        gpu_layers=gpu_layers,
        tensor_split=tensor_split,
        host=address.host,
        port=address.port,
        socket_path=address.socket_path,
        default_parallel=settings.herd.default_parallel,
        threads=settings.herd.cpu_threads,
        flash_attention=settings.herd.flash_attention,
    )


def plain_command(model: Model, settings: Settings) -> tuple[str, ...]:
    """One for predictions: which program it is, and where it listens, makes no difference to those."""
    return command(model, settings, "llama-server", Address(settings.herd.backend_host, 0))


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
        *,
        has_gpus: bool,
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        # Without it an aborting engine calls a debugger, whose frames push its reason out of the last lines.
        self._environment = {"GGML_NO_BACKTRACE": "1", **environment}
        self._client = client
        self._logs = logs
        self._reaper = reaper
        self._page_cache = PageCache()
        self._warm_ups: dict[str, WarmUp] = {}
        self._has_gpus = has_gpus
        self._taken_ports = set(own_ports)
        # Until one is seen to die of it: older ones know one address alone.
        self._take_sockets = True

    def warm(self, model: str) -> None:
        if model not in self._warm_ups:
            entry = self._catalogue.models[model]
            files = [*model_files.shard_paths(entry.path), *filter(None, [entry.mmproj])]
            self._warm_ups[model] = self._page_cache.warm(files)

    def cool(self, model: str) -> None:
        warm_up = self._warm_ups.pop(model, None)
        if warm_up is not None:
            warm_up.cancel()

    async def start(self, model: str, placement: Placement) -> LlamaEngine:
        binary = self._settings.paths.llama_server
        if binary is None:
            raise EngineDied("there is no llama-server: run `make engine`, or set LLAMA_SERVER_PATH")
        address = self._address()
        argv = command(
            self._catalogue.models[model],
            self._settings,
            str(binary),
            address,
            gpu_layers=placement.layers if self._has_gpus else None,
            tensor_split=placement.tensor_split,
        )
        log = self._logs.open(f"llama-{self._log_name(model)}", "server")
        log.write(f"[corral] {shlex.join(argv)}\n".encode("utf-8", "replace"))
        try:
            process = LlamaProcess.start(argv, self.surroundings(placement), log, self._reaper)
        except OSError as error:
            raise EngineDied(f"no process could be started: {error}") from error
        self._taken_ports.add(address.port)
        # Called before whoever waits for the exit goes on, and perhaps asks for another.
        process.exited.add_done_callback(lambda _exited: self._at_exit(process, address))
        return LlamaEngine(process, address, self._client)

    def plain_command(self, model: str) -> tuple[str, ...]:
        return plain_command(self._catalogue.models[model], self._settings)

    def surroundings(self, placement: Placement) -> Mapping[str, str]:
        """The environment of a process: it sees the GPUs that it was given, by UUID, and no other."""
        if not self._has_gpus:
            return self._environment
        return {**self._environment, "CUDA_VISIBLE_DEVICES": ",".join(placement.gpus)}

    def _log_name(self, model: str) -> str:
        single = self._settings.single_model is not None
        return self._settings.logs.worker_type if single and self._settings.logs.worker_type else model

    def _free_port(self) -> int:
        herd, single = self._settings.herd, self._settings.single_model
        if single is not None:
            first, last, setting = single.port, single.port_end, "PORT_BACKEND"
        else:
            first, last, setting = herd.port_start, herd.port_end, "server_pool.port_start"
        port = lowest_free_port(first, last, self._taken_ports)
        if port is None:
            raise EngineDied(f"no port is free from {first} to {last}: free one, or set {setting}")
        return port

    def _address(self) -> Address:
        """Where the next one listens: at a port, for everybody to see, and at a socket for us."""
        port = self._free_port()
        folder = self._settings.paths.runtime / socket_files.FOLDER_NAME
        socket_path = socket_files.free_path(folder, port) if self._take_sockets else ""
        if self._take_sockets and not socket_path:
            self._do_without_sockets(f"{folder} is no safe place for them, or its path is too long")
        return Address(self._settings.herd.backend_host, port, socket_path)

    def _do_without_sockets(self, reason: str) -> None:
        """From now on engines have their ports alone, which work as well and cost more."""
        log.info("llama-servers get no socket beside their port: %s", reason)
        self._take_sockets = False

    def _at_exit(self, process: LlamaProcess, address: Address) -> None:
        self._taken_ports.discard(address.port)
        if address.socket_path:
            socket_files.remove(address.socket_path)
            if refused_its_socket(process.tail()):
                self._do_without_sockets(f"a llama-server could not listen at {address.socket_path}")
