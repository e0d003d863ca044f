"""How fast a model is: learnt from what happens, used to say how long things will take.

Averages are exponential: the last few requests count, those of yesterday don't. All of them are guesses
that decide nothing but when to look, what to say to people, and what a switch of models is worth.
"""

from __future__ import annotations

from math import inf

# Weight of the newest observation: after five, two thirds of what was known before is forgotten.
NEWEST = 0.2
# What a request is thought to generate until the first one has told.
GENERATED_TOKENS_GUESS = 256.0
SERVICE_S_GUESS = 1.0


NEVER = -inf


class Average:
    __slots__ = ("known", "value")

    def __init__(self, guess: float) -> None:
        self.value = guess
        self.known = False

    def learn(self, value: float) -> None:
        if self.known:
            self.value += NEWEST * (value - self.value)
        else:
            self.value, self.known = value, True


class Pace:
    """What is known of one model's speed."""

    __slots__ = ("_arrived_at", "_gap", "generated_tokens", "load_s", "service_s")

    def __init__(self, load_s_guess: float) -> None:
        self.load_s = Average(load_s_guess)
        self.service_s = Average(SERVICE_S_GUESS)
        self.generated_tokens = Average(GENERATED_TOKENS_GUESS)
        self._gap = Average(inf)
        self._arrived_at = NEVER

    def arrived(self, now: float) -> None:
        if self._arrived_at != NEVER:
            self._gap.learn(now - self._arrived_at)
        self._arrived_at = now

    def gap_s(self, now: float) -> float:
        """How long it will be until the next request comes: as long as usual, or as it has been already."""
        return max(self._gap.value, now - self._arrived_at)
