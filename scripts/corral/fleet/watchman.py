"""Watches one llama-server that is ready: asks it how it is now and then, and looks when it is suspected.

What the samples mean, policy/liveness.py says. The watchman takes them, sparingly (on suspicion only),
and carries the verdict out: a request that waits goes on waiting or is given up, and a process that did
nothing and answered nobody for the whole of its probation is killed. Its keeper starts it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from corral import errors
from corral.drivers import clock, tasks
from corral.policy.liveness import PROBATION_S, SAMPLE_GAP_S, Sample, Verdict, judge, moves

log = logging.getLogger("corral.fleet")

HEALTH_EVERY_S = 30.0


class Watched(Protocol):
    """The process, as a watchman needs it."""

    @property
    def alive(self) -> bool: ...
    async def says_healthy(self) -> bool: ...
    async def sample(self) -> Sample: ...
    def kill(self, reason: str) -> None: ...


class Waiting(Protocol):
    """A request that has heard nothing for long."""

    def wait_on(self) -> None: ...
    def give_up(self, error: errors.CorralError) -> None: ...


class Watchman:
    def __init__(
        self,
        name: str,
        engine: Watched,
        requests: Callable[[], int],
        *,
        health_every_s: float = HEALTH_EVERY_S,
        sample_gap_s: float = SAMPLE_GAP_S,
        probation_s: float = PROBATION_S,
    ) -> None:
        self._name = name
        self._engine = engine
        self._requests = requests
        self._health_every_s = health_every_s
        self._sample_gap_s = sample_gap_s
        self._probation_s = probation_s
        self._on_probation = False

    async def walk(self) -> None:
        """Ask for its health, every now and then, until it is gone."""
        while self._engine.alive:
            await asyncio.sleep(self._health_every_s)
            if self._engine.alive and not await self._engine.says_healthy():
                await self._probation("it did not answer its health check")

    def suspect(self, waiting: Waiting) -> None:
        """A request has heard nothing for long. Find out, and tell it."""
        tasks.spawn(self._inquire(waiting), f"the inquiry about {self._name}")

    async def _inquire(self, waiting: Waiting) -> None:
        before = await self._engine.sample()
        await asyncio.sleep(self._sample_gap_s)
        after = await self._engine.sample()
        verdict = judge(before, after, self._requests())
        if verdict is Verdict.WORKING:
            waiting.wait_on()
            return
        waiting.give_up(
            errors.UpstreamTimeout(
                f"{self._name!r} sent nothing for 'request_timeout_sec' and shows no progress on it."
            )
        )
        if verdict is Verdict.SUSPECT:
            await self._probation("a request got no answer")

    async def _probation(self, why: str) -> None:
        """Give it time to show a sign of life, then end it."""
        if self._on_probation:
            return
        self._on_probation = True
        log.warning("%s is suspected to hang: %s", self._name, why)
        began_at = clock.monotonic()
        try:
            before = await self._engine.sample()
            while self._engine.alive:
                await asyncio.sleep(self._sample_gap_s)
                after = await self._engine.sample()
                if after.slots is not None or moves(before, after):
                    log.info("%s does not hang after all", self._name)
                    return
                before = after
                if after.at - began_at >= self._probation_s:
                    self._engine.kill(f"it hung: no answer and no progress for {after.at - began_at:.0f} s")
                    return
        finally:
            self._on_probation = False
