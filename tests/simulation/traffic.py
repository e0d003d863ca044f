"""Who asks for what and when: traffic made by chance, in the shapes in which it comes.

    poisson    everybody independent of everybody
    bursts     nothing for a while, then many at once
    greedy     one key with hundreds of requests in a moment, among others with few
    diurnal    a day in twenty minutes: ten times as much at noon as at night
    sessions   people in conversation: each answer is read, then asked about; prompts grow, lengths have a
               long tail. The shape is that of published traces of chat services, the numbers are made up

A trace is a list in the order of time, and the same seed gives the same one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from corral.formats.priority import Priority

PROMPT_TOKENS_MAX = 4000
GENERATED_TOKENS_MAX = 1000


class Arrival(NamedTuple):
    at: float
    model: str
    key_id: str
    priority: Priority
    prompt_tokens: int
    generated_tokens: int
    max_parallel: int | None = None
    leaves_after_s: float | None = None  # the client's own patience
    is_stream: bool = True


class Crowd(NamedTuple):
    """Everybody who may ask, and for what."""

    models: Sequence[str]
    keys: Sequence[str]
    priorities: Sequence[Priority] = (Priority.NORMAL,)
    limits: Mapping[str, int] = {}  # of keys: so many may run at a time
    impatient: float = 0.0  # the share that leaves before it is through


Times = Callable[[random.Random, float, float], Iterator[float]]


def poisson(chance: random.Random, rate: float, until: float) -> Iterator[float]:
    now = chance.expovariate(rate)
    while now < until:
        yield now
        now += chance.expovariate(rate)


def bursts(chance: random.Random, rate: float, until: float) -> Iterator[float]:
    size = 20
    for start in poisson(chance, rate / size, until):
        yield from sorted(start + chance.uniform(0, 1) for _ in range(chance.randint(1, 2 * size)))


def diurnal(chance: random.Random, rate: float, until: float) -> Iterator[float]:
    day_s = 1200.0
    for at in poisson(chance, rate * 2, until):
        sun = 0.55 - 0.45 * math.cos(2 * math.pi * at / day_s)
        if chance.random() < sun:
            yield at


def trace(chance: random.Random, crowd: Crowd, times: Times, rate: float, until: float) -> list[Arrival]:
    """So many requests a second, until then."""
    return sorted(_arrival(chance, crowd, at) for at in times(chance, rate, until))


def greedy(chance: random.Random, crowd: Crowd, rate: float, until: float, count: int) -> list[Arrival]:
    """The first key comes with so many requests at once; all the others as usual."""
    glutton, *others = crowd.keys
    heap = [
        _arrival(chance, crowd._replace(keys=[glutton]), chance.uniform(0, until / 10)) for _ in range(count)
    ]
    return sorted(heap + trace(chance, crowd._replace(keys=others or [glutton]), poisson, rate, until))


def sessions(chance: random.Random, crowd: Crowd, rate: float, until: float) -> list[Arrival]:
    turns = 5
    arrivals = []
    for at in poisson(chance, rate / turns, until):
        first = _arrival(chance, crowd, at)
        said = 0
        for _ in range(1 + int(chance.expovariate(1 / (turns - 1)))):
            prompt, generated = min(PROMPT_TOKENS_MAX, said + _length(chance, 60)), _length(chance, 150)
            arrivals.append(first._replace(at=at, prompt_tokens=prompt, generated_tokens=generated))
            said = prompt + generated
            at += generated / 30 + chance.lognormvariate(2.0, 1.0)  # it is read, and thought about
            if at >= until:
                break
    return sorted(arrivals)


def merge(*traces: Sequence[Arrival]) -> list[Arrival]:
    merged = sorted(arrival for each in traces for arrival in each)
    assert all(before.at <= after.at for before, after in pairwise(merged))
    return merged


def _arrival(chance: random.Random, crowd: Crowd, at: float) -> Arrival:
    key_id = chance.choice(crowd.keys)
    leaves = chance.random() < crowd.impatient
    return Arrival(
        at,
        chance.choice(crowd.models),
        key_id,
        chance.choice(crowd.priorities),
        _length(chance, 200, PROMPT_TOKENS_MAX),
        _length(chance, 60, GENERATED_TOKENS_MAX),
        crowd.limits.get(key_id),
        chance.expovariate(1 / 20) if leaves else None,
        chance.random() < 0.7,
    )


def _length(chance: random.Random, median: float, most: int = PROMPT_TOKENS_MAX) -> int:
    return max(1, min(most, round(chance.lognormvariate(math.log(median), 1.0))))
