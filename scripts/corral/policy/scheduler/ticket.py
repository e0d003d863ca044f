"""One request's place in the queue, and what it wished for when it came.

A wish is what the gate knows of a request before it waits. A ticket is that wish with a history: when it
came, when it was let through, whether it is over. Tickets are compared by identity, and belong to whoever
made them; the scheduler writes into them, nobody else does.
"""

from __future__ import annotations

from typing import NamedTuple

from corral.formats.priority import Priority

# What a token costs its key. A generated token is a whole pass through the model, a token of a prompt is
# read together with many others; 1 to 2 is what the literature on fair serving reckons with.
PROMPT_TOKEN_COST = 1.0
GENERATED_TOKEN_COST = 2.0


class Wish(NamedTuple):
    """What a request asks of the queue."""

    model: str
    request_id: str
    key_id: str = "-"  # whom the tokens are charged to: a key, or a client's address where there are none
    priority: Priority = Priority.NORMAL
    max_parallel: int | None = None  # of this key's requests, so many may run at a time
    max_waiting: int | None = None  # and so many may wait
    prompt_tokens: int = 0  # as estimated
    max_tokens: int | None = None  # the most it wants generated, if it says so
    timeout_s: float | None = None  # how long it is willing to wait at all

    def is_over(self, running: int) -> bool:
        """Whether its key runs as many requests as it may."""
        return self.max_parallel is not None and running >= self.max_parallel

    def patience_s(self, queue_timeout_s: float) -> float:
        """How long it may wait for its turn."""
        return queue_timeout_s if self.timeout_s is None else min(queue_timeout_s, self.timeout_s)


class Usage(NamedTuple):
    """The tokens of one request, as the engine reported them."""

    prompt_tokens: int
    generated_tokens: int


# Of a request that came to nothing.
NOTHING = Usage(0, 0)


def cost(prompt_tokens: float, generated_tokens: float) -> float:
    return PROMPT_TOKEN_COST * prompt_tokens + GENERATED_TOKEN_COST * generated_tokens


class Ticket:
    __slots__ = (
        "abandoned",
        "arrived_at",
        "charged",
        "charged_to",
        "deadline",
        "granted_at",
        "key_id",
        "model",
        "number",
        "priority",
        "released",
        "waits",
        "wish",
    )

    def __init__(self, wish: Wish, arrived_at: float, deadline: float) -> None:
        self.wish = wish
        self.model = wish.model
        self.key_id = wish.key_id
        self.priority = wish.priority
        self.arrived_at = arrived_at
        self.deadline = deadline  # refused if it still waits then
        self.number = 0  # in the order of arrival: two may come in one tick of the clock
        self.granted_at: float | None = None
        self.released = False
        self.abandoned = False  # nobody waits for its answer, but the engine may still work on it
        self.waits = False  # whether it stands in a queue
        self.charged = 0.0  # what its key has been charged for it so far
        self.charged_to = 0  # and in which class
