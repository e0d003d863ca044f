"""What the scheduler decides, for the fleet to carry out; and what it says when it is only asked."""

from __future__ import annotations

from typing import NamedTuple

from corral import errors
from corral.policy.guard import EvictFirst, Wait
from corral.policy.placement import Placement
from corral.policy.scheduler.ticket import Ticket


class Grant(NamedTuple):
    """This request may go to its model now."""

    ticket: Ticket


class Refuse(NamedTuple):
    """This request is answered with an error."""

    ticket: Ticket
    error: errors.CorralError


class Load(NamedTuple):
    """Bring this model onto the machine, there: the memory is reserved."""

    model: str
    placement: Placement


class Drain(NamedTuple):
    """Take no new requests for this model; it stops when it is idle."""

    model: str
    reason: str


class Stop(NamedTuple):
    """Nothing runs on this drained model any more."""

    model: str


Action = Grant | Refuse | Load | Drain | Stop


class Outlook(NamedTuple):
    """What a request for another model would find if it came now."""

    idle: tuple[str, ...]  # models that may be evicted, the least recently used first
    busy: tuple[str, ...]  # models that hold memory and may go some day
    place: EvictFirst | Wait | None  # what must happen because no more models may be loaded
