"""A model's life as a table: states × events → the next state.

    off ──load──▶ starting ──spawned──▶ loading ──answered──▶ ready ──drain──▶ draining
     ▲               │                    │                     │                 │ drained
     │               └────────────────────┴───────stop──────────┴─────────────────┤
     └──────────────────────────────exited──────────────────────────── stopping ◀─┘

    a death in starting, loading, ready or draining ──▶ backoff ──retry──▶ starting
                                             └─────give up──▶ failed ──reset──▶ off

A pair that is not in the table can't happen; meeting one is a bug, and `next_state` says so rather than
guess. `ready` comes from the process's own word that it answers, never from elapsed time. A death is an
exit that nobody asked for; an exit after `stop` is not one.

`Deaths` decides what follows a death: a pause that doubles, and after five deaths without a good minute
between them, no further try. Only `reset` (a person, a changed configuration or model file) leaves
`failed`, because what has failed five times in a row will fail the sixth time too, at the card's expense.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from corral.formats.status import ModelState


class Event(Enum):
    LOAD = "load"  # somebody needs the model
    SPAWNED = "spawned"  # its process runs
    ANSWERED = "answered"  # its process says that it is healthy
    DRAIN = "drain"  # no new requests; stop when the last one is through
    DRAINED = "drained"  # the last one is through
    STOP = "stop"  # stop now, whatever runs
    EXITED = "exited"  # the process we stopped is gone
    DIED = "died"  # the process is gone, and nobody asked it to go
    RETRY = "retry"  # the pause after a death is over
    GIVE_UP = "give_up"  # too many deaths
    RESET = "reset"  # a person says: try again


_S, _E = ModelState, Event

TABLE: dict[tuple[ModelState, Event], ModelState] = {
    (_S.OFF, _E.LOAD): _S.STARTING,
    (_S.STARTING, _E.SPAWNED): _S.LOADING,
    (_S.STARTING, _E.DIED): _S.BACKOFF,
    (_S.STARTING, _E.STOP): _S.STOPPING,
    (_S.LOADING, _E.ANSWERED): _S.READY,
    (_S.LOADING, _E.DIED): _S.BACKOFF,
    (_S.LOADING, _E.STOP): _S.STOPPING,
    (_S.READY, _E.DRAIN): _S.DRAINING,
    (_S.READY, _E.DIED): _S.BACKOFF,
    (_S.READY, _E.STOP): _S.STOPPING,
    (_S.DRAINING, _E.DRAINED): _S.STOPPING,
    (_S.DRAINING, _E.DIED): _S.BACKOFF,
    (_S.DRAINING, _E.STOP): _S.STOPPING,
    (_S.STOPPING, _E.EXITED): _S.OFF,
    (_S.BACKOFF, _E.RETRY): _S.STARTING,
    (_S.BACKOFF, _E.GIVE_UP): _S.FAILED,
    (_S.BACKOFF, _E.STOP): _S.OFF,
    (_S.BACKOFF, _E.RESET): _S.OFF,
    (_S.FAILED, _E.RESET): _S.OFF,
}

# States in which a model takes a place on the machine.
RESIDENT = frozenset({_S.STARTING, _S.LOADING, _S.READY, _S.DRAINING, _S.STOPPING})


class ImpossibleEvent(Exception):
    """An event that can't happen in this state: a bug in whoever reported it."""


def next_state(state: ModelState, event: Event) -> ModelState:
    try:
        return TABLE[state, event]
    except KeyError:
        raise ImpossibleEvent(f"{event.value} in state {state.value}") from None


DEATHS_MAX = 5
GOOD_SPELL_S = 60.0
PAUSE_FIRST_S = 1.0
PAUSE_MAX_S = 60.0
# Several models that died of one cause (a driver reset) should not come back in the same instant.
JITTER = 0.2


@dataclass(frozen=True)
class Deaths:
    """The deaths of one model that count together."""

    count: int = 0

    def another(self, lived_s: float) -> Deaths:
        """One more death, after this long in `ready`: a good spell forgives what was before."""
        return Deaths(1 if lived_s >= GOOD_SPELL_S else self.count + 1)

    @property
    def too_many(self) -> bool:
        return self.count >= DEATHS_MAX

    def pause_s(self, luck: float) -> float:
        """How long to wait before the next try. `luck` is a random number from 0 to 1."""
        pause_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0 ** min(self.count - 1, 32))
        return pause_s * (1.0 + JITTER * luck)
