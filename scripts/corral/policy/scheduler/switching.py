"""When a model has to make way for another: the price of a switch against the patience of who waits.

A switch costs the seconds in which one model is loaded, and later on those in which the other one is
loaded again; both are measured. A model in use is therefore not sent away for the first request that
waits for another. It keeps its place until all of this holds:

    tenure     it has been ready for `min_residency_s` or twice the price, whichever is longer; but not for
               longer than the patience below
    patience   the oldest request for the other model has waited `WORTH` times the price of a switch,
               but never more than a quarter of `queue_timeout_s`; meanwhile others like it gather, and
               are served together
    rank       nobody of a higher class waits for it

So two models that are always wanted spend no more than a fifth of their time on switches. A request of a
higher class needs no more patience than the price itself: then it is a third, however many such requests
come. Both hold for as long as a quarter of `queue_timeout_s` is more than four prices, or one; where loads
take longer than that, nobody is made to wait until there is no time left to be served. One of a lower class
has to wait until it has risen. What runs is never cut off.

A model for which nobody waits at this moment may still be worth its place: if its requests come faster
than a switch would take, the next one is here before the other model is. It keeps its place for as long
as that lasts, within its tenure; but never longer without a request than a switch would cost. This is the
rule for renting skis: who waits for the price of buying before buying never pays more than double.
"""

from __future__ import annotations

from typing import NamedTuple

WORTH = 4.0
TENURE_WORTH = 2.0
WORTH_TO_HIGHER_CLASS = 1.0
PATIENCE_SHARE = 0.25
# The fleet looks at its clock that often: to hold a place for less makes nobody faster.
WORTH_HOLDING_S = 0.25


class Terms(NamedTuple):
    """What the settings say."""

    aging_s: float
    min_residency_s: float
    queue_timeout_s: float


class Resident(NamedTuple):
    """A loaded model that could go."""

    load_s: float
    ready_for_s: float
    level: int | None  # the class of its most urgent waiting request by now; None: nobody waits
    base: int | None  # and by priority alone
    gap_s: float  # until its next request, as far as one can know


class Claimant(NamedTuple):
    """A model that is not loaded, and for which requests wait."""

    load_s: float
    waited_s: float  # its oldest request
    level: int
    base: int


def yields(resident: Resident, claimant: Claimant, terms: Terms) -> bool:
    """Whether the resident model makes way for the other one now."""
    price_s = resident.load_s + claimant.load_s
    if has_been_patient(resident, claimant, terms):
        longest_s = max(terms.min_residency_s, TENURE_WORTH * price_s)
        return resident.ready_for_s >= min(longest_s, patience_s(resident, claimant, terms))
    if resident.level is not None:
        return False
    return price_s < WORTH_HOLDING_S or resident.gap_s >= price_s


def has_been_patient(resident: Resident, claimant: Claimant, terms: Terms) -> bool:
    """Whether nothing but its tenure keeps the resident model in its place."""
    # Aging lifts a request to its opponents' class, and defends theirs; it makes nobody higher.
    is_no_lower = resident.base is None or claimant.level <= resident.base
    return is_no_lower and claimant.waited_s >= patience_s(resident, claimant, terms)


def patience_s(resident: Resident, claimant: Claimant, terms: Terms) -> float:
    """How long the oldest request for another model has to wait before this one makes way."""
    is_higher = resident.level is None or claimant.base < resident.level
    worth = WORTH_TO_HIGHER_CLASS if is_higher else WORTH
    return min(worth * (resident.load_s + claimant.load_s), PATIENCE_SHARE * terms.queue_timeout_s)
