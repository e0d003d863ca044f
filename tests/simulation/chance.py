"""Worlds made of a seed.

anything   everything that may differ does
siege      a crowd of a higher class, or for another model, against one request now and then
feast      keys of every appetite share one model, and nobody ages
crush      a large model among small ones, where it fits only alone
"""

from __future__ import annotations

import random
from typing import Any

from corral.formats.priority import Priority
from corral.policy import scheduler as real_policy
from tests.simulation import traffic
from tests.simulation.memory import GIB, GuardedHerd
from tests.simulation.oracles import Oracles
from tests.simulation.traffic import Arrival, Crowd
from tests.simulation.world import Spec, Troubles, World

ARRIVALS_MAX = 600


def anything(seed: int, policy: Any = real_policy) -> World:
    chance = random.Random(seed)
    patient = chance.random() < 0.3  # nobody is sent away for having waited too long
    specs = {
        name: Spec(
            load_s=chance.choice((0.02, 0.5, 1.0, 4.0, 15.0)),
            slots=chance.choice((1, 1, 2, 4)),
            generation_rate=chance.choice((50.0, 200.0, 400.0)),
            size_bytes=chance.randint(1, 20) * GIB,
            pinned=chance.random() < 0.05 and not patient,
            queue_max=chance.choice((5, 1000)),
        )
        for name in "abcde"[: chance.randint(1, 5)]
    }
    gpus = [chance.choice((8, 24, 48)) * GIB for _ in range(chance.randint(1, 3))]
    aging_s = chance.choice((3.0, 30.0))
    terms = real_policy.Terms(
        aging_s, chance.choice((0.5, 20.0)), 1e9 if patient else chance.choice((60.0, 300.0))
    )
    troubles = Troubles(0.1, 0.2, 0.02) if chance.random() < 0.4 else Troubles()
    return World(
        specs,
        random_arrivals(chance, specs),
        models_max=chance.randint(1, 4),
        terms=terms,
        policy=policy,
        herd=GuardedHerd(specs, gpus, chance),
        troubles=troubles,
        chance=chance,
        idle_timeout_s=chance.choice((5.0, 300.0)),
        watch=Oracles(),
    )


def siege(seed: int, policy: Any = real_policy) -> World:
    chance = random.Random(seed)
    spec = Spec(load_s=chance.choice((0.1, 0.5)), generation_rate=200.0)
    specs = {"a": spec} if chance.random() < 0.5 else {"a": spec, "b": spec}
    until = 120.0
    besieging = Crowd(["a"], ["k1", "k2"], (chance.choice((Priority.HIGH, Priority.NORMAL)),))
    besieged = Crowd([list(specs)[-1]], ["k3"], tuple(Priority))
    arrivals = traffic.merge(
        _alike(traffic.trace(chance, besieging, traffic.poisson, 10.0, until)),
        _alike(traffic.trace(chance, besieged, traffic.poisson, 0.05, until)),
    )
    terms = real_policy.Terms(3.0, chance.choice((0.5, 20.0)), 1e9)
    return World(specs, arrivals, models_max=1, terms=terms, policy=policy, watch=Oracles())


def feast(seed: int, policy: Any = real_policy) -> World:
    chance = random.Random(seed)
    specs = {"a": Spec(0.1, slots=chance.choice((1, 2)), generation_rate=200.0)}
    keys = [f"key-{number}" for number in range(chance.randint(2, 5))]
    crowd = Crowd(["a"], keys, limits=chance.choice(({}, {keys[-1]: 1})))
    heaps = traffic.greedy(chance, crowd, 2.0, 120.0, 200)
    # In the middle of it somebody comes who has had nothing yet, and one who has been away.
    late = traffic.trace(chance, crowd._replace(keys=["late", keys[-1]]), traffic.bursts, 4.0, 120.0)
    # One key's answers are longer than anybody could have guessed beforehand.
    arrivals = [
        arrival._replace(generated_tokens=160 if arrival.key_id == keys[0] else 20)
        for arrival in _alike(traffic.merge(heaps, late))
    ]
    terms = real_policy.Terms(1e9, 20.0, 1e9)
    return World(specs, arrivals, models_max=1, terms=terms, policy=policy, watch=Oracles())


def crush(seed: int, policy: Any = real_policy) -> World:
    chance = random.Random(seed)
    small = [f"s{number}" for number in range(3)]
    specs = {name: Spec(0.5, generation_rate=200.0, size_bytes=10 * GIB) for name in small}
    specs["large"] = Spec(1.0, generation_rate=200.0, size_bytes=20 * GIB)
    until = 300.0
    arrivals = traffic.merge(
        _alike(traffic.trace(chance, Crowd(small, ["k1", "k2"]), traffic.poisson, 6.0, until)),
        _alike(traffic.trace(chance, Crowd(["large"], ["k3"]), traffic.poisson, 0.1, until)),
    )
    terms = real_policy.Terms(3.0, chance.choice((0.5, 20.0)), chance.choice((60.0, 1e9)))
    return World(
        specs,
        arrivals,
        models_max=chance.choice((2, 3)),
        terms=terms,
        policy=policy,
        herd=GuardedHerd(specs, [24 * GIB], chance),
        watch=Oracles(),
    )


def _alike(arrivals: list[Arrival]) -> list[Arrival]:
    """Requests of one size, so that a bound in tokens is tight."""
    return [arrival._replace(prompt_tokens=100, generated_tokens=40) for arrival in arrivals]


KINDS = {"anything": anything, "siege": siege, "feast": feast, "crush": crush}


def random_arrivals(chance: random.Random, specs: dict[str, Spec]) -> list[Arrival]:
    keys = [f"key-{number}" for number in range(chance.randint(1, 6))]
    priorities = tuple(Priority) if chance.random() < 0.7 else (Priority.NORMAL,)
    limits = dict(zip(keys, (1, 2), strict=False)) if chance.random() < 0.5 else {}
    crowd = Crowd(list(specs), keys, priorities, limits, chance.choice((0.0, 0.1, 0.4)))
    # From half of what the machine can do to three times as much.
    rate = chance.choice((0.5, 1.0, 3.0)) * chance.uniform(0.5, 3.0)
    until = min(600.0, ARRIVALS_MAX / rate)
    shape = chance.choice(("poisson", "bursts", "diurnal", "greedy", "sessions"))
    match shape:
        case "greedy":
            return traffic.greedy(chance, crowd, rate, until, chance.randint(50, 300))
        case "sessions":
            return traffic.sessions(chance, crowd, rate, until)
        case _:
            return traffic.trace(chance, crowd, getattr(traffic, shape), rate, until)
