"""Requests of one engine that nobody waits for any more, and that it may still be working on.

llama-server notices at once that the reader of a stream has gone. A request that is not streamed it goes
on with: for half a second where nothing else runs, but for more than 25 s beside another stream
(measured). A slot given away in that time would be none: the next request would wait inside the engine,
out of our sight. So such a request keeps its slot until the engine is seen to be through with it.

Which of the engine's tasks is whose it does not say. But what it begins after a request was abandoned is
not that request: so the tasks of the first look are remembered, and only those are looked for from then
on. As long as more of them are busy than there are requests that were let through by then and are still
waited for, one of them may be the abandoned one. (A slow reader whose answer the engine has finished is
one of those who wait: beside one, a slot may come back too early, but none is kept for ever.)

It is asked once a second for all of them together. Asked three times a second or more, it goes on with
them for ever (measured: each question wakes the loop that would otherwise notice).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from corral import errors
from corral.drivers import clock, tasks
from corral.formats.slots import Slot

log = logging.getLogger("corral.fleet")

LOOK_EVERY_S = 1.0
# Slot and number. Where an engine does not number its tasks, their slots alone tell them apart.
Tasks = frozenset[tuple[int, int]]


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
    async def busy_slots(self) -> tuple[Slot, ...] | None:
        """On what it works; None: it does not answer just now."""


@dataclass(eq=False, slots=True)
class Request:
    """One that was abandoned, and what was busy at the first look after that."""

    give_back: Callable[[], None]
    tasks: Tasks | None = None
    seen_at: float = 0.0


class Abandoned:
    def __init__(
        self,
        name: str,
        engine: Working,
        scheduler: AtWork,
        suspect: Callable[[Abandoned], None],
        suspicious_s: float,
    ) -> None:
        self._name = name
        self._engine = engine
        self._scheduler = scheduler
        self._suspect = suspect
        self._suspicious_s = suspicious_s
        self._requests: list[Request] = []
        self._is_watched = False
        self._suspected_at = 0.0

    def add(self, give_back: Callable[[], None]) -> None:
        """A request was abandoned. Its slot is to be given back when the engine is through with it."""
        self._requests.append(Request(give_back))
        if len(self._requests) == 1:
            self._suspected_at = clock.monotonic()
        if not self._is_watched:
            self._is_watched = True
            tasks.spawn(self._watch(), f"the abandoned requests of {self._name}")

    def let_go(self) -> None:
        """Give all their slots back: nothing works on them."""
        self._give_back(tuple(self._requests))

    async def _watch(self) -> None:
        try:
            await self._look_on()
        finally:
            self._is_watched = False

    async def _look_on(self) -> None:
        while self._requests:
            await asyncio.sleep(LOOK_EVERY_S)
            if not self._engine.alive or self._engine.stopped:
                self.let_go()
                return
            await self._look()
            if self._requests and clock.monotonic() - self._suspected_at >= self._suspicious_s:
                self._suspected_at = clock.monotonic()
                self._suspect(self)

    async def _look(self) -> None:
        # Whoever is added while it answers is not in its answer, and waits for the next one.
        requests, asked_at = tuple(self._requests), clock.monotonic()
        slots = await self._engine.busy_slots()
        if slots is None:
            return
        busy = frozenset((slot.number, slot.task) for slot in slots)
        kept, through = 0, []
        # The oldest first: it remembers the fewest, and knows best.
        for request in requests:
            if kept < self._may_be_busy(request, busy, asked_at):
                kept += 1
            else:
                through.append(request)
        self._give_back(through)

    def _may_be_busy(self, request: Request, busy: Tasks, asked_at: float) -> int:
        """With how many abandoned requests the engine may be busy, as far as this one can tell."""
        if request.tasks is None:
            # Of those that were let through just now, some may not have reached their slots yet: how many
            # of the busy ones they explain is asked only when those that are short are over.
            request.tasks, request.seen_at = busy, asked_at
            return len(busy)
        return len(request.tasks & busy) - self._scheduler.at_work(self._name, request.seen_at)

    def _give_back(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if request not in self._requests:
                continue
            self._requests.remove(request)
            try:
                request.give_back()
            except Exception:  # what follows from one free slot must not keep the others
                log.exception("giving back a slot of %s failed", self._name)

    # As a request that has heard nothing for long, for the watchman ----------------------------

    def wait_on(self) -> None:
        """It works. That is all that is to be known."""

    def give_up(self, _error: errors.CorralError) -> None:
        """It makes no progress: if it hangs as a whole, the watchman will see to it."""
        self.let_go()
