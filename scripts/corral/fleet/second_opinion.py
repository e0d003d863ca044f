"""Asks llama.cpp's own planner about every model once, when nothing else goes on, and remembers its answer.

A prediction that is too small is found out on the card, by a model that dies while it loads. Where
`llama-fit-params` lies beside llama-server it knows better in some cases, and asking costs little; but
it takes a process, on a GPU one with a context of its own. So that context is promised in the guard's
books like a model's memory, and whoever wants a model comes first: then the process is called off, and
the question is put again later. Whatever fails here leaves our own prediction as it is.

Nobody waits for an answer. It is kept with what was learnt from loads, where a footprint finds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from corral.catalogue import Catalogue
from corral.drivers.fit_params import FitParams, NoAnswer
from corral.drivers.reaper import Reaper
from corral.drivers.threads import in_thread
from corral.fleet.keeper import given_back
from corral.fleet.managed import Memory
from corral.formats.fit_print import FitPrintError, parse
from corral.formats.learned import Learned, LearnedKey
from corral.policy.footprint import AnyFootprint, PredictedFootprint
from corral.policy.memory import CONTEXT_BYTES, second_opinion
from corral.policy.placement import Placement

log = logging.getLogger("corral.memory")

PAUSE_S = 1.0
# A card may be full for days, and trying is not worth more than this.
PAUSE_S_MAX = 60.0
# In the guard's books. No model is called so: names have no spaces.
BORROWER = "a second opinion"
# Without a GPU it takes 13 to 23 MB (measured), most of it the vocabulary.
HOST_BYTES = 64 << 20


class Lender(Memory, Protocol):
    """Who knows about memory, as it is needed here: fleet/memory.py."""

    def measure_out(self, name: str) -> AnyFootprint: ...
    def lend(
        self, borrower: str, size_bytes: int, *, on_gpu: bool, call_back: Callable[[], None]
    ) -> Placement | None: ...


class Store(Protocol):
    """Where answers are kept: drivers/learned_store.py."""

    def remember(self, key: LearnedKey, learned: Learned) -> None: ...


class SecondOpinions:
    def __init__(
        self,
        program: Path | None,
        catalogue: Catalogue,
        memory: Lender,
        store: Store,
        surroundings: Callable[[Placement], Mapping[str, str]],
        reaper: Reaper,
    ) -> None:
        self._program = program
        self._catalogue = catalogue
        self._memory = memory
        self._store = store
        self._surroundings = surroundings
        self._reaper = reaper
        self._asked: FitParams | None = None
        self._closing = False

    async def run(self) -> None:
        """Ask about one model after the other, until all are through or it is stopped."""
        for name in self._catalogue.models:
            if self._closing or self._program is None:
                return
            await asyncio.sleep(PAUSE_S)
            # Reading a header takes up to 50 ms (measured), and requests need not wait for that.
            footprint = await in_thread(partial(self._memory.measure_out, name), f"measuring {name}")
            if isinstance(footprint, PredictedFootprint):
                await self._consult(name, footprint)

    async def stop(self) -> None:
        """End what runs. It would die with us in any case, but it is not to outlive the herd's stop."""
        self._closing = True
        if (asked := self._asked) is not None:
            asked.call_off()
            await asked.gone()

    async def _consult(self, name: str, footprint: PredictedFootprint) -> None:
        """Ask, as often as it takes to be left in peace."""
        on_gpu = footprint.layer_count > 0
        size_bytes = CONTEXT_BYTES if on_gpu else HOST_BYTES
        pause_s = PAUSE_S
        while footprint.is_open and not self._closing:
            placement = self._memory.lend(BORROWER, size_bytes, on_gpu=on_gpu, call_back=self._call_off)
            if placement is not None and await self._ask(name, footprint, placement):
                return
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_S_MAX, 2 * pause_s)

    def _call_off(self) -> None:
        if self._asked is not None:
            self._asked.call_off()

    async def _ask(self, name: str, footprint: PredictedFootprint, placement: Placement) -> bool:
        """One try. False: it was called off."""
        path = str(self._catalogue.models[name].path)
        question = second_opinion.question(footprint.prediction, path, footprint.layer_count)
        try:
            asked = FitParams([str(self._program), *question], self._surroundings(placement), self._reaper)
        except OSError as error:
            self._memory.never_started(BORROWER)
            log.info("no second opinion on %s: no process could be had: %s", name, error)
            return True
        self._memory.spawned(BORROWER, asked.pid)
        self._asked = asked
        try:
            self._take(name, footprint, await asked.answer())
        except (NoAnswer, FitPrintError, second_opinion.Unbelievable) as trouble:
            if not asked.called_off:
                log.info("no second opinion on %s: %s", name, trouble)
        finally:
            # Whatever went wrong: what stays lent would keep its GPU closed to every model.
            self._asked = None
            await self._give_back(asked)
        return not asked.called_off

    def _take(self, name: str, footprint: PredictedFootprint, text: str) -> None:
        learned = second_opinion.judge(footprint.prediction, footprint.layer_count, parse(text))
        self._store.remember(footprint.opinion_key, learned)
        more_bytes = learned.measured_bytes - learned.predicted_bytes
        log.info("%s: llama-fit-params finds %d MiB that were not predicted", name, more_bytes >> 20)

    async def _give_back(self, asked: FitParams) -> None:
        if asked.alive:
            # It can't be ended, and the next would share its fate.
            self._closing = True
            self._memory.gone(BORROWER, reaped=False)
        else:
            await given_back(BORROWER, self._memory)
