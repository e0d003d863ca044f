"""Requests of one engine that nobody waits for any more, and that it may still be working on.

llama-server notices at once that the reader of a stream has gone. A request that is not streamed it goes
on with: for half a second where nothing else runs, but for more than 25 s beside another stream
(measured). A slot given away in that time would be none: the next request would wait inside the engine,
out of our sight. So such a request keeps its slot until the engine is seen to work on no more than what
somebody waits for.

It is asked once a second for all of them together. Asked three times a second or more, it goes on with
them for ever (measured: each question wakes the loop that would otherwise notice).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from corral import errors
from corral.drivers import clock, tasks
from corral.policy.scheduler import Ticket

LOOK_EVERY_S = 1.0


class AtWork(Protocol):
    """Who knows what runs: the scheduler."""

    def at_work(self, model: str, before: float) -> int:
        """How many run that somebody waits for, and were let through before that time."""


class Working(Protocol):
    """The engine, as it is needed here."""

    @property
    def alive(self) -> bool: ...
    @property
    def stopped(self) -> bool: ...
    async def busy_slots(self) -> int | None:
        """On how many requests it works; None: it does not answer just now."""


class Abandoned:
    def __init__(
        self,
        name: str,
        engine: Working,
        scheduler: AtWork,
        release: Callable[[Ticket], None],
        suspect: Callable[[Abandoned], None],
        suspicious_s: float,
    ) -> None:
        self._name = name
        self._engine = engine
        self._scheduler = scheduler
        self._release = release
        self._suspect = suspect
        self._suspicious_s = suspicious_s
        self._tickets: list[Ticket] = []
        self._is_watched = False
        self._suspected_at = 0.0

    def add(self, ticket: Ticket) -> None:
        self._tickets.append(ticket)
        if len(self._tickets) == 1:
            self._suspected_at = clock.monotonic()
        if not self._is_watched:
            self._is_watched = True
            tasks.spawn(self._watch(), f"the abandoned requests of {self._name}")

    async def _watch(self) -> None:
        try:
            await self._look_on()
        finally:
            self._is_watched = False

    async def _look_on(self) -> None:
        while self._tickets:
            looked_at = clock.monotonic()
            await asyncio.sleep(LOOK_EVERY_S)
            if not self._engine.alive or self._engine.stopped:
                self._let_go(len(self._tickets))
                return
            busy = await self._engine.busy_slots()
            if busy is not None:
                # A request let through just now may not have reached its slot yet, and explains none.
                explained = self._scheduler.at_work(self._name, looked_at)
                self._let_go(len(self._tickets) - max(0, busy - explained))
            if self._tickets and clock.monotonic() - self._suspected_at >= self._suspicious_s:
                self._suspected_at = clock.monotonic()
                self._suspect(self)

    def _let_go(self, count: int) -> None:
        for _ in range(count):
            if self._tickets:
                self._release(self._tickets.pop(0))

    # As a request that has heard nothing for long, for the watchman ----------------------------

    def wait_on(self) -> None:
        """It works. That is all that is to be known."""

    def give_up(self, _error: errors.CorralError) -> None:
        """It makes no progress: if it hangs as a whole, the watchman will see to it."""
        self._let_go(len(self._tickets))
