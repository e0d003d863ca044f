"""One model of the herd as the fleet keeps it, and what is said of it: to those who ask, and in errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from corral import errors
from corral.drivers import clock
from corral.fleet.abandoned import Abandoned
from corral.fleet.engines import Engine
from corral.fleet.lease import EngineLost, Lease
from corral.fleet.watchman import Watchman
from corral.formats.status import ModelState, ModelStatus
from corral.metrics import Metrics
from corral.policy.lifecycle import Deaths
from corral.policy.memory_report import Report
from corral.policy.placement import Placement
from corral.policy.plan import Plan
from corral.policy.scheduler import Admission, Outlook, Ticket

MIB = 1 << 20
# To a flag's wrong value it answers with one line of what is wrong and nine about the flag (measured).
# They go into errors and into the status file; a prompt that a debug flag prints must fill neither.
LAST_WORDS_CHARS_MAX = 2000
LOG_TAIL_LINES = 12


@dataclass
class ManagedModel:
    """Its state, and whatever is alive of it."""

    name: str
    state: ModelState = ModelState.OFF
    placement: Placement | None = None
    engine: Engine | None = None
    watchman: Watchman | None = None
    abandoned: Abandoned | None = None
    load_began_at: float = 0.0
    ready_at: float = math.inf
    # The longest time that it was ready since its last death, whether it was unloaded in between or not.
    good_spell_s: float = 0.0
    deaths: Deaths = field(default_factory=Deaths)
    died_loading: bool = False
    retry_at: float = math.inf
    last_words: str = ""
    # Whether it has come up, or shown that it won't, since the start.
    settled: bool = False

    def publish(self, metrics: Metrics) -> None:
        """Its state, as a number for each state that there is."""
        for state in ModelState:
            metrics.model_state.labels(self.name, state.value).set(float(state is self.state))

    def spell_is_over(self, now: float) -> None:
        """It is not ready any more, if it was."""
        self.good_spell_s = max(self.good_spell_s, now - self.ready_at)
        self.ready_at = math.inf

    def has_died(self, how: str, now: float, luck: float) -> None:
        """Keep its last words, and settle when it is tried again, if it is."""
        tail = self.engine.log_tail(LOG_TAIL_LINES) if self.engine is not None else []
        self.last_words = " | ".join([how, *filter(str.strip, tail)])[:LAST_WORDS_CHARS_MAX]
        self.died_loading = self.state in (ModelState.STARTING, ModelState.LOADING)
        self.deaths = self.deaths.another(lived_s=self.good_spell_s)
        self.retry_at = now + self.deaths.pause_s(luck)
        self.settled = True

    def hand_over(self, lease: Lease) -> None:
        """Tell a granted lease where its slot is."""
        if self.engine is None or self.watchman is None:
            words = f"{self.name!r} went away in the moment it was needed. Try again."
            raise EngineLost(words, was_there=False)
        lease.address = self.engine.address
        lease.engine = self.engine
        lease.on_silence = self.watchman.suspect

    def lose_engine(self) -> Abandoned | None:
        """Its process is gone. What was abandoned on it is to be let go, once nothing is granted there."""
        abandoned, self.engine, self.watchman, self.abandoned = self.abandoned, None, None, None
        return abandoned


class Memory(Admission, Protocol):
    """Who knows about memory, as the fleet needs it: fleet/memory.py."""

    def spawned(self, model: str, pid: int) -> None: ...
    def loaded(self, model: str) -> None: ...
    def ran_out(self, model: str) -> bool:
        """It died loading, for want of memory. Whether to try again at once."""

    def gone(self, model: str, *, reaped: bool) -> None: ...
    def never_started(self, model: str) -> None: ...
    def holds(self, model: str) -> bool:
        """Whether memory is still promised to it, or not yet seen to have come back."""

    def held_bytes(self, model: str) -> int: ...
    @property
    def restless(self) -> bool:
        """Whether something is under way that the next reading may show the end of."""

    def look(self) -> Sequence[str]:
        """Read every device now. The models whose memory has come back."""

    async def study(self, models: Iterable[str]) -> None:
        """Read what has to be read before anything can be said about these, holding up nobody."""

    def plan(self, models: Iterable[str], outlook: Outlook) -> list[Plan]:
        """What would become of a request for each of these now."""

    def report(self) -> Report:
        """How the memory stands now."""

    def publish(self) -> None:
        """Put the figures of the last reading into the metrics."""


# In words -----------------------------------------------------------------------------------------


def status(model: ManagedModel, held_bytes: int) -> ModelStatus:
    if model.state in (ModelState.BACKOFF, ModelState.FAILED):
        return ModelStatus(model.state, extra={"detail": model.last_words})
    if model.engine is None:
        return ModelStatus(model.state)
    vram_mb = held_bytes // MIB if held_bytes else None
    return ModelStatus(model.state, model.engine.address.port, vram_mb, extra={"pid": model.engine.pid})


def failure(model: ManagedModel) -> errors.ModelFailed:
    if model.state is ModelState.FAILED:
        return errors.ModelFailed(
            f"{model.name!r} died {model.deaths.count} times in a row and was given up. "
            f"Its last words: {model.last_words}"
        )
    return errors.ModelFailed(
        f"{model.name!r} could not be loaded. Its last words: {model.last_words}",
        retry_after_s=max(0.0, model.retry_at - clock.monotonic()),
    )


def shutting_down() -> errors.ShuttingDown:
    return errors.ShuttingDown(
        "Corral is shutting down. Try again, or ask another instance.", retry_after_s=5
    )


def queue_timeout(ticket: Ticket, now: float, others: int) -> errors.QueueTimeout:
    return errors.QueueTimeout(
        f"No slot of {ticket.model!r} came free within {now - ticket.arrived_at:.0f} s, "
        f"and {others} more requests wait for it. Try again later."
    )
