"""A place in a model's queue that becomes a slot: what a request holds while it needs a model.

It may be a long wait, and proxies give up on a silent connection. So whoever waits can be told where it
stands, every now and then: `on_waiting`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from corral import errors
from corral.drivers import clock, tasks
from corral.drivers.http_client import Address
from corral.fleet.engines import Engine
from corral.fleet.watchman import Waiting
from corral.policy.scheduler import Ticket, Usage

DEATH_NOTICE_S = 1.0


class EngineLost(errors.UpstreamError):
    """The process died before a byte of the answer came, and nobody had asked it to go."""

    def __init__(self, message: str, *, was_there: bool) -> None:
        super().__init__(message)
        self.was_there = was_there  # whether the request had reached it
        if was_there:
            self.should_retry = False


class Host(Protocol):
    """The model whose slot it is."""

    def hand_over(self, lease: Lease) -> None:
        """Tell a granted lease where its slot is: address, engine, watchman. Raises EngineLost."""


class Door(Protocol):
    """The side of the fleet that a lease talks to."""

    def arrive(self, lease: Lease) -> Host: ...
    def depart(self, lease: Lease) -> None: ...
    def position(self, ticket: Ticket) -> int: ...


class Lease:
    """Entered, it asks for its slot; left, it gives the slot back, once, whatever happened.

    with fleet.lease(wish) as lease:
        if lease.waits:
            await lease.granted()
        lease.open()
    """

    __slots__ = (
        "_bell",
        "_door",
        "_error",
        "_host",
        "address",
        "engine",
        "engine_goes_on",
        "on_silence",
        "on_waiting",
        "ticket",
        "usage",
    )

    def __init__(self, door: Door, ticket: Ticket) -> None:
        self.ticket = ticket
        self.address: Address
        self.engine: Engine
        self.on_silence: Callable[[Waiting], None]
        # Told every so many seconds of waiting which one of those who wait it is.
        self.on_waiting: tuple[float, Callable[[int], None]] | None = None
        # What the engine has reported in the end.
        self.usage: Usage | None = None
        # Whether the engine may go on with the request when we let go of it.
        self.engine_goes_on = False
        self._door = door
        self._host: Host
        self._bell: tasks.Bell | None = None
        self._error: errors.CorralError | None = None

    def __enter__(self) -> Lease:
        try:
            self._host = self._door.arrive(self)
        except BaseException:
            self._door.depart(self)
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._door.depart(self)

    @property
    def waits(self) -> bool:
        """Whether it is not its turn yet. A free slot is granted at once."""
        return self.ticket.granted_at is None

    @property
    def waited_s(self) -> float:
        ticket = self.ticket
        return 0.0 if ticket.granted_at is None else ticket.granted_at - ticket.arrived_at

    async def granted(self, or_when: Callable[[], bool] = lambda: False) -> None:
        """Wait for the slot, or for what will do instead. Raises what the lease is refused with."""
        bell = self._bell = tasks.Bell()
        timer = self._say_later() if self.on_waiting is not None else None
        try:
            while self.ticket.granted_at is None and not or_when():
                if self._error is not None:
                    raise self._error
                await bell
        finally:
            if timer is not None:
                timer.stop()

    def open(self) -> None:
        """Learn where the slot is. Raises EngineLost if its process has gone in this moment."""
        self._host.hand_over(self)

    def _say_later(self) -> tasks.Repeat:
        assert self.on_waiting is not None
        every_s, say = self.on_waiting

        def say_if_it_waits() -> None:
            if self.waits and self._error is None:  # else it is about to be woken
                say(self._door.position(self.ticket))

        return tasks.Repeat(every_s, say_if_it_waits)

    async def engine_died(self) -> bool:
        """Whether the process behind the slot has died. A socket breaks a moment before it is reaped."""
        deadline = clock.monotonic() + DEATH_NOTICE_S
        while self.engine.alive and not self.engine.stopped and clock.monotonic() < deadline:
            await asyncio.sleep(DEATH_NOTICE_S / 50)
        return not self.engine.alive and not self.engine.stopped

    def settle(self, error: errors.CorralError | None = None) -> None:
        """Granted, refused with `error`, or worth another look: wake whoever waits, from a fresh stack."""
        self._error = error
        if self._bell is not None:
            self._bell.ring_soon()
