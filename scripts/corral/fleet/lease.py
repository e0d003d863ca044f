"""A place in a model's queue that becomes a slot: what a request holds while it needs a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from corral import errors
from corral.drivers import clock, tasks
from corral.drivers.http_client import Address
from corral.fleet.engines import Engine
from corral.fleet.watchman import Waiting
from corral.policy.scheduler import Ticket

DEATH_NOTICE_S = 1.0


class Door(Protocol):
    """The side of the fleet that a lease talks to."""

    def arrive(self, lease: Lease) -> None: ...
    def depart(self, lease: Lease) -> None: ...
    def hand_over(self, lease: Lease) -> None:
        """Tell a granted lease where its slot is: address, engine, watchman."""


class Lease:
    """Entered, it waits for its slot; left, it gives the slot back, once, whatever happened."""

    __slots__ = ("_bell", "_door", "_error", "address", "engine", "on_silence", "ticket", "waited_s")

    def __init__(self, door: Door, ticket: Ticket) -> None:
        self.ticket = ticket
        self.address: Address
        self.engine: Engine
        self.on_silence: Callable[[Waiting], None]
        self.waited_s = 0.0
        self._door = door
        self._bell = tasks.Bell()
        self._error: errors.CorralError | None = None

    async def __aenter__(self) -> Lease:
        ticket = self.ticket
        try:
            self._door.arrive(self)
            if ticket.granted_at is None:  # a free slot is granted at once
                await self.granted()
            self._door.hand_over(self)
        except BaseException:
            self._door.depart(self)
            raise
        assert ticket.granted_at is not None
        self.waited_s = ticket.granted_at - ticket.arrived_at
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._door.depart(self)

    async def granted(self, or_when: Callable[[], bool] = lambda: False) -> None:
        """Wait for the slot, or for what will do instead. Raises what the lease is refused with."""
        while self.ticket.granted_at is None and not or_when():
            if self._error is not None:
                raise self._error
            await self._bell

    async def engine_died(self) -> bool:
        """Whether the process behind the slot has died. A socket breaks a moment before it is reaped."""
        deadline = clock.monotonic() + DEATH_NOTICE_S
        while self.engine.alive and not self.engine.stopped and clock.monotonic() < deadline:
            await asyncio.sleep(DEATH_NOTICE_S / 50)
        return not self.engine.alive and not self.engine.stopped

    def settle(self, error: errors.CorralError | None = None) -> None:
        """Granted, refused with `error`, or worth another look: wake whoever waits, from a fresh stack."""
        self._error = error
        self._bell.ring_soon()
