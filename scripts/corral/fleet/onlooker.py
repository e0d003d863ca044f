"""Who looks on: somebody who follows the states of all models, at a pace of their own.

A state may last a millisecond, and whoever looks now and then would miss it. So the fleet puts every
change by for every onlooker, in order. One that does not come to take them gets no more than so many:
then only the last state of each model is kept, which is what it would see if it looked just then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from corral.drivers.tasks import Bell
from corral.formats.status import ModelStatus

# A model's whole life is eight states, so this is a herd's busy minute. It bounds what one reader that
# has stopped reading may hold (and a herd of more models than this counts by its models).
CHANGES_MAX = 256


class Change(NamedTuple):
    """A model went into another state."""

    model: str
    status: ModelStatus


class Onlooker:
    """Told by the fleet, asked by the one coroutine that looks on."""

    __slots__ = ("_bell", "_changes", "_has_news")

    def __init__(self) -> None:
        self._bell = Bell()
        self._changes: list[Change] = []
        self._has_news = False

    def tell(self, *changes: Change) -> None:
        """Something is new: a model's state, or, without a change, something about the whole."""
        self._changes += changes
        if len(self._changes) > CHANGES_MAX:
            self._changes = list({change.model: change for change in self._changes}.values())
        if not self._has_news:
            self._has_news = True
            # From a fresh stack: the fleet is in the middle of its own step.
            self._bell.ring_soon()

    def take(self) -> list[Change]:
        """What has changed since the last time, in order."""
        changes, self._changes = self._changes, []
        self._has_news = False
        return changes

    async def news(self, within_s: float | None = None) -> None:
        """Wait until there is something new, or at most for so long."""
        if self._has_news:
            return
        timer = None
        if within_s is not None:
            timer = asyncio.get_running_loop().call_later(within_s, self._bell.ring)
        try:
            await self._bell
        finally:
            if timer is not None:
                timer.cancel()


class Gallery:
    """All who look on."""

    def __init__(self) -> None:
        self._onlookers: set[Onlooker] = set()

    @contextmanager
    def watch(self) -> Iterator[Onlooker]:
        """Follow every change from now on, until the end of the block."""
        onlooker = Onlooker()
        self._onlookers.add(onlooker)
        try:
            yield onlooker
        finally:
            self._onlookers.discard(onlooker)

    def tell(self, *changes: Change) -> None:
        for onlooker in self._onlookers:
            onlooker.tell(*changes)
