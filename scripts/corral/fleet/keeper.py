"""Follows one llama-server from its start until its memory has come back, and reports each step.

A keeper acts and decides nothing: what its reports mean for the model's state is the fleet's to say, and
the state that it finds on its way (a stop may have been asked for meanwhile) is the fleet's to set.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from corral.drivers import clock
from corral.fleet.engines import Engine, EngineDied, Engines
from corral.fleet.managed import ManagedModel, Memory
from corral.formats.status import ModelState

log = logging.getLogger("corral.fleet")

RELEASE_POLL_S = 0.1


class Reports(Protocol):
    """Who is told."""

    def spawned(self, model: ManagedModel) -> None: ...
    def ready(self, model: ManagedModel, engine: Engine, slots: int | None) -> None:
        """It answers; on so many requests at a time, if it says so."""

    def stopped(self, model: ManagedModel) -> None:
        """It is gone as it was asked to, and its memory is back."""

    def died(self, model: ManagedModel, how: str) -> None:
        """It is gone, and nobody asked it to go."""


async def keep(model: ManagedModel, engines: Engines, memory: Memory, reports: Reports) -> None:
    try:
        how = await _follow(model, engines, memory, reports)
    except EngineDied as death:
        how = str(death)
    except Exception as error:
        # A mistake of ours must not leave the model half-way for ever, with all who wait for it.
        log.exception("the keeper of %s failed", model.name)
        how = f"Corral failed on it: {error!r}"
        if model.engine is not None and not await end(model, model.engine, memory):
            await model.engine.until_exit()
    engines.cool(model.name)
    model.spell_is_over(clock.monotonic())
    if model.state is ModelState.STOPPING:
        await given_back(model.name, memory)
        reports.stopped(model)
    else:
        reports.died(model, how)


async def _follow(model: ManagedModel, engines: Engines, memory: Memory, reports: Reports) -> str:
    assert model.placement is not None
    # A process takes a while before it opens its file, and with a GPU seconds: the disk need not wait.
    engines.warm(model.name)
    try:
        engine = model.engine = await engines.start(model.name, model.placement)
    except EngineDied:
        memory.never_started(model.name)
        raise
    memory.spawned(model.name, engine.pid)
    if model.state is ModelState.STOPPING:
        await end(model, engine, memory)
    else:
        reports.spawned(model)
        await engine.until_ready()
        slots = await engine.slots()
        if model.state is ModelState.LOADING:
            memory.loaded(model.name)
            reports.ready(model, engine, slots)
    return await engine.until_exit()


async def end(model: ManagedModel, engine: Engine, memory: Memory) -> bool:
    """Stop a process. One that can't be ended keeps its memory, in the books as on the card: False."""
    memory.stopping(model.name)
    reaped = await engine.stop()
    if not reaped:
        memory.gone(model.name, reaped=False)
    return reaped


async def given_back(name: str, memory: Memory) -> None:
    """Wait until the memory of a process that is gone is seen to be free again."""
    memory.gone(name, reaped=True)
    while memory.holds(name):
        memory.look()
        if memory.holds(name):
            await asyncio.sleep(RELEASE_POLL_S)
