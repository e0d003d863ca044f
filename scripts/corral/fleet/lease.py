"""A place in a model's queue that becomes a slot: what a request holds while it needs a model."""

from __future__ import annotations

from typing import Protocol

from corral import errors
from corral.drivers import tasks
from corral.drivers.http_client import Address
from corral.policy.scheduler import Ticket


class Door(Protocol):
    """The side of the fleet that a lease talks to."""

    def arrive(self, lease: Lease) -> None: ...
    def depart(self, lease: Lease) -> None: ...
    def address_of(self, model: str) -> Address: ...


class Lease:
    """Entered, it waits for its slot; left, it gives the slot back, once, whatever happened."""

    __slots__ = ("_bell", "_door", "_error", "address", "ticket", "waited_s")

    def __init__(self, door: Door, ticket: Ticket) -> None:
        self.ticket = ticket
        self.address: Address
        self.waited_s = 0.0
        self._door = door
        self._bell = tasks.Bell()
        self._error: errors.CorralError | None = None

    async def __aenter__(self) -> Lease:
        ticket = self.ticket
        try:
            self._door.arrive(self)
            while ticket.granted_at is None:
                if self._error is not None:
                    raise self._error
                await self._bell
            self.address = self._door.address_of(ticket.model)
        except BaseException:
            self._door.depart(self)
            raise
        self.waited_s = ticket.granted_at - ticket.arrived_at
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._door.depart(self)

    def settle(self, error: errors.CorralError | None = None) -> None:
        """Granted, or refused with `error`: wake the request, from a fresh stack."""
        self._error = error
        self._bell.ring_soon()
