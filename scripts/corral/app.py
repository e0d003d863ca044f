"""The gateway from its first line to its last: build, start, drain, stop.

The order of the start is a promise: the status file says `starting` and the health process runs before
anything slow, then the sockets listen and probes are answered, then models load. The order of the stop is
its mirror: refuse what is new, let finish what runs, stop the herd, and the health process last, so that
whoever asks it sees the end coming. A stop that is wished for during the start is the end of the start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import corral
from corral import errors, settings
from corral.bulletin import COMING, Bulletin
from corral.catalogue import Catalogue
from corral.drivers import clock, descriptors, fit_params, tasks
from corral.drivers.gpu_probe import GpuProbe, GpuReading
from corral.drivers.http_client import HttpClient
from corral.drivers.http_server import BODIES_MAX_BYTES, HttpServer, ServerLimits
from corral.drivers.key_file_store import KeyFileStore
from corral.drivers.learned_store import LearnedStore
from corral.drivers.listening import listen_sockets
from corral.drivers.log_files import LogFiles
from corral.drivers.patrol import Patrol
from corral.drivers.reaper import Reaper
from corral.drivers.threads import in_thread
from corral.drivers.tls import Certificate
from corral.fleet import Fleet, FleetMemory, LlamaEngines, SecondOpinions
from corral.formats import http1
from corral.formats.status import ModelState, Phase
from corral.handlers import replies, status
from corral.handlers.gate import Gate
from corral.handlers.record import Recorder
from corral.handlers.routes import Routes
from corral.handlers.vestibule import Vestibule
from corral.health_process import HealthProcess
from corral.logs import log_to
from corral.metrics import Metrics
from corral.policy import launch
from corral.policy.authentication import KeyRing
from corral.policy.idle_exit import IdleExit
from corral.policy.scheduler import ModelLimits, Terms
from corral.settings import Settings
from corral.surroundings import look_around

log = logging.getLogger("corral")

# The health process takes a file older than 15 s for a dead gateway's.
STATUS_EVERY_S = 2.0
KEYS_EVERY_S = 1.0
CERTIFICATE_EVERY_S = 1.0
IDLE_EVERY_S = 1.0
# How fast a model is thought to load until it has been seen to: a plain SSD's pace.
READ_BYTES_PER_S = 1 << 30
DRAIN_POLL_S = 0.02
# How long those who wait for a start that has been given up may take to hear of it.
SEND_AWAY_S = 1.0


class App:
    """All the parts, and the two things that happen to them: `start` and `stop`."""

    def __init__(self, config: Settings) -> None:
        self.settings = config
        self.bulletin = Bulletin(config)
        self.logs = LogFiles(config.logs.directory, config.instance_id)
        log_to(self.logs.open("_boot", "boot"), config.logs.format)
        self.reaper = Reaper()
        self.patrol = Patrol()
        self.client = HttpClient(self.patrol)
        self.metrics = Metrics(corral.__version__, clock.wall())
        self.recorder = Recorder(self.logs.open_access_log(), config.logs.format, self.metrics)
        self.key_store = KeyFileStore(config.access.keys_file)
        self.gpu_probe: GpuProbe | None = None
        self.gpus: tuple[GpuReading, ...] = ()
        self.learned: LearnedStore
        self.catalogue: Catalogue
        self.fleet: Fleet
        self.opinions: SecondOpinions
        self.gate: Gate
        self.server: HttpServer
        self.port = 0
        self._health = HealthProcess(config, self.bulletin.path, self.reaper)
        self._certificate: Certificate | None = None
        # The exit code that it is to end with.
        self._stop_wanted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._hurry = False
        self._ended = False
        # What has been opened so far, and how it is let go of: the last comes first.
        self._ending = AsyncExitStack()

    # Start -------------------------------------------------------------------------------------

    async def start(self) -> bool:
        """Whether it serves now. False: it was told to stop before it came to that."""
        self._ending.callback(self._end)
        loop = asyncio.get_running_loop()
        # Process 1 of a container does not even notice a signal that it has no handler for.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        loop.add_signal_handler(signal.SIGHUP, self._load_keys, self.key_store.reload)
        self.reaper.start(loop)
        self.bulletin.write()
        self._every(STATUS_EVERY_S, self.bulletin.write, "the status file")
        self._ending.push_async_callback(self._health.stop)
        if not self.settings.server.health_port:
            raise errors.SettingsError("PORT_HEALTH is 0, and nobody would learn which port it is: set one")
        if self.settings.server.health_port != self.settings.server.port:
            self._health.start()
        self._see_what_must_be_there()
        vestibule = await self._listen()
        self.key_store.load()
        looking = in_thread(partial(look_around, self.settings), "looking around")
        either: tuple[asyncio.Future[Any], ...] = (looking, self._stop_wanted)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._stop_wanted.done():
            if not looking.cancel() and (error := looking.exception()):
                log.error("what is here could not be found out: %r", error)
            return False
        self.gpu_probe, self.gpus, self.learned, self.catalogue = looking.result()
        self._ending.callback(self.learned.close)
        self._serve(vestibule)
        return True

    def _serve(self, vestibule: Vestibule) -> None:
        """Build what stands behind the listener, and open it. From here on there is nothing to wait for."""
        for warning in (*self.settings.warnings, *self.catalogue.warnings):
            log.warning("%s", warning)
        self.fleet = self._build_fleet()
        self.gate = self._build_gate()
        self._ending.push_async_callback(self.fleet.stop)
        self._ending.push_async_callback(self.opinions.stop)
        self.fleet.preload(self._preloads())
        self.bulletin.serve(self.fleet)
        self.server.handler = Routes(self.gate).handle
        vestibule.open(self.server.handler)
        tasks.spawn(self.fleet.run(), "the fleet's clock")
        tasks.spawn(self.opinions.run(), "the second opinions")
        self._every(KEYS_EVERY_S, partial(self._load_keys, self.key_store.load), "the keys")
        if self._certificate is not None:
            self._every(CERTIFICATE_EVERY_S, self._certificate.reload_if_changed, "the certificate")
        if (after_s := self.settings.server.idle_exit_s) is not None:
            idle = IdleExit(after_s, clock.monotonic())
            self._every(IDLE_EVERY_S, partial(self._stop_if_idle, idle), "the end of idleness")

    async def _listen(self) -> Vestibule:
        """From here on probes are answered, and whoever else asks waits until there is a gate."""
        own = self.settings.server
        sockets = listen_sockets(own.host, own.port)
        self.port = sockets[0].getsockname()[1]
        vestibule = Vestibule(own, self.bulletin.document, self.recorder)
        self.server = self._build_server(vestibule)
        await self.server.listen(sockets, self._certificate.context if self._certificate else None)
        self._ending.push_async_callback(self.server.close)
        self._ending.push_async_callback(self._send_away, vestibule)
        return vestibule

    def _see_what_must_be_there(self) -> None:
        """Raises SettingsError: a container started for a model that is not there should end, and say so."""
        own, single = self.settings.server, self.settings.single_model
        if single is not None and not os.path.isfile(single.model.path):
            raise errors.SettingsError(f"FATAL: Model file not found: {single.model.path}")
        if single is not None and not os.access(single.model.path, os.R_OK):
            raise errors.SettingsError(f"FATAL: Model file can't be read by this user: {single.model.path}")
        if own.tls_cert_file is not None:
            self._certificate = Certificate(own.tls_cert_file, own.tls_key_file)

    def _build_fleet(self) -> Fleet:
        herd = self.settings.herd
        environment = settings.children_environment(self.settings)
        engines = LlamaEngines(
            self.settings,
            self.catalogue,
            environment,
            self.client,
            self.logs,
            self.reaper,
            frozenset({self.settings.server.port, self.settings.server.health_port}),
            has_gpus=bool(self.gpus),
        )
        memory = FleetMemory(
            self.settings,
            self.catalogue,
            engines.plain_command,
            environment,
            self.gpu_probe,
            self.learned,
            self.metrics,
        )
        self.opinions = SecondOpinions(
            fit_params.beside(self.settings.paths.llama_server),
            self.catalogue,
            memory,
            self.learned,
            engines.surroundings,
            self.reaper,
        )
        limits = {
            model.name: ModelLimits(
                slots=launch.slots(model, herd.default_parallel),
                pinned=model.pinned,
                queue_max=model.queue_max or herd.queue_max,
                load_s_guess=model.size_bytes / READ_BYTES_PER_S,
            )
            for model in self.catalogue.models.values()
        }
        return Fleet(
            limits,
            engines,
            memory,
            self.metrics,
            models_max=herd.models_max,
            terms=Terms(herd.aging_interval_s, herd.min_residency_s, herd.queue_timeout_s),
            idle_timeout_s=herd.idle_timeout_s,
            request_timeout_s=herd.request_timeout_s,
            look_every_s=herd.gpu_monitoring_interval_s,
            on_change=self.bulletin.changed,
        )

    def _build_gate(self) -> Gate:
        return Gate(
            version=corral.__version__,
            settings=self.settings,
            catalogue=self.catalogue,
            fleet=self.fleet,
            client=self.client,
            metrics=self.metrics,
            keys=self._key_ring(),
            status=self.bulletin.document,
            recorder=self.recorder,
            dropped_log_lines=lambda: self.logs.dropped_lines,
            open_connections=lambda: self.server.connections,
        )

    def _build_server(self, vestibule: Vestibule) -> HttpServer:
        own, herd, single = self.settings.server, self.settings.herd, self.settings.single_model
        named = self.settings.models.values() if single is None else (single.model,)
        slots = launch.slots_at_most(named, herd.default_parallel, herd.models_max)
        limits = ServerLimits(
            head=http1.Limits(headers_max=own.headers_max, line_max_bytes=own.header_line_max_bytes),
            body_max_bytes=own.body_max_bytes,
            bodies_max_bytes=max(BODIES_MAX_BYTES, own.body_max_bytes),
            connections_max=descriptors.connections_allowed(
                own.connections_max, engines=herd.models_max, slots=slots
            ),
            header_timeout_s=own.header_timeout_s,
            body_timeout_s=own.body_timeout_s,
            write_timeout_s=own.write_timeout_s,
            keepalive_timeout_s=own.keepalive_timeout_s,
        )
        return HttpServer(
            vestibule.handle,
            limits,
            self.patrol,
            replies.error_page,
            on_refused=self.recorder.refused,
            never_refused=partial(status.must_be_answered, own.health_check_path),
        )

    def _preloads(self) -> tuple[str, ...]:
        if self.settings.single_model is not None:
            return tuple(self.catalogue.models)
        wished = self.settings.herd.preload
        if "*" in wished:
            return tuple(self.catalogue.models)
        for name in wished:
            if self.catalogue.find(name) is None:
                log.warning("preload_models names %r, and there is no such model", name)
        found = (self.catalogue.find(name) for name in wished)
        return tuple(model.name for model in found if model is not None)

    # Keys --------------------------------------------------------------------------------------

    def _key_ring(self) -> KeyRing:
        access = self.settings.access
        ring = KeyRing(
            self.key_store.records, requests_per_minute=access.requests_per_minute, env_key=access.env_key
        )
        if access.enabled and not len(ring):
            log.error(
                "NO KEYS in %s: every request gets 401. Make one: python3 scripts/keys.py generate NAME",
                access.keys_file,
            )
        return ring

    def _load_keys(self, load: Callable[[], bool]) -> None:
        # Before the gate is built there is nobody yet whom new keys could be given to.
        if load() and self.bulletin.phase is Phase.SERVING:
            self.gate.keys = self._key_ring()
            self.fleet.limits_are(self.gate.keys.parallel_limits())

    def _every(self, seconds: float, act: Callable[[], None], name: str) -> None:
        tasks.spawn(tasks.every(seconds, act, name, until=lambda: self._ended), name)

    # Stop --------------------------------------------------------------------------------------

    def _on_stop_signal(self) -> None:
        if self._stop_wanted.done():
            log.warning("a second signal: not waiting any longer")
            self._hurry = True
        else:
            self._stop_wanted.set_result(0)

    def _stop_if_idle(self, idle: IdleExit) -> None:
        if self._stop_wanted.done():
            return
        queue, states = self.fleet.queue, {each.state for each in self.fleet.statuses().values()}
        in_hand = self.gate.arriving or queue.active or any(map(queue.depth, self.catalogue.models))
        # What many models do after a death is their own affair; the one is what the gateway is there for.
        is_single = self.settings.single_model is not None
        coming = COMING if is_single else COMING - {ModelState.BACKOFF}
        busy = bool(in_hand) or not states.isdisjoint(coming) or not self.fleet.preload_settled
        if idle.due(clock.monotonic(), last_activity=self.recorder.last_activity_at, busy=busy):
            log.info("no model was asked for within %g s (IDLE_EXIT_S)", self.settings.server.idle_exit_s)
            has_failed = is_single and ModelState.FAILED in states
            if has_failed:
                log.error("the one model there is has failed, and so the exit code is 1")
            self._stop_wanted.set_result(1 if has_failed else 0)

    async def until_stopped(self) -> int:
        """Wait for a signal, then drain and stop. The exit code."""
        try:
            code = await self._stop_wanted
            serves = self.bulletin.phase is Phase.SERVING
            self.bulletin.phase = Phase.DRAINING
            self.bulletin.write()
            if serves:
                timeout_s = self.settings.server.drain_timeout_s
                log.info("stopping: %d requests may finish within %g s", self.fleet.queue.active, timeout_s)
                self.fleet.refuse_waiting()
                await self._drain(timeout_s)
            else:
                log.info("stopping in the middle of the start")
        finally:
            await self.close()
        return code

    async def _drain(self, timeout_s: float) -> None:
        self.server.wind_down()
        deadline = clock.monotonic() + timeout_s
        while self.server.busy and not self._hurry and clock.monotonic() < deadline:
            await asyncio.sleep(DRAIN_POLL_S)

    async def _send_away(self, vestibule: Vestibule) -> None:
        """After a start that did not come to its end there may be some who wait for it."""
        if vestibule.shut():
            await asyncio.sleep(0)  # they are answered in this turn of the loop, also in a hurry
            await self._drain(SEND_AWAY_S)

    async def close(self) -> None:
        """Let go of everything, the health process last. Also after a start that failed half-way."""
        await self._ending.aclose()

    def _end(self) -> None:
        self._ended = True
        self.recorder.flush()  # this late, because a TLS connection takes a few turns to end
        log.info("stopped")
        self.logs.stop()
