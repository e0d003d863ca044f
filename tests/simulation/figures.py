"""The figures of docs/scheduling.md: PYTHONPATH=scripts:. python -m tests.simulation.figures

Every number comes from a seed, but for the microseconds, which are this machine's. The run at the scale of
a fleet takes a few minutes; with QUICK=1 it is left out.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from corral.formats.priority import Priority
from corral.formats.table import lines as in_columns
from corral.policy import scheduler as ours
from corral.policy.scheduler import Terms
from tests.simulation import charts, fifo, traffic
from tests.simulation.charts import Axis
from tests.simulation.cost import decision_us
from tests.simulation.traffic import Arrival, Crowd
from tests.simulation.world import Job, Spec, World, quantile

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "scheduling.md"
PICTURES = DOCS / "scheduling"
TERMS = Terms(aging_s=30.0, min_residency_s=20.0, queue_timeout_s=300.0)
POLICIES: dict[str, Any] = {"Corral": ours, "FIFO + LRU": fifo}
SEED = 1


class Figures(NamedTuple):
    pictures: dict[str, str]
    tables: dict[str, list[list[str]]]


# One model, many keys ------------------------------------------------------------------------------


def one_model() -> Figures:
    """One key brings 500 requests at once; others come with one now and then, in three classes."""
    keys = ["greedy", "alice", "bob", "carol"]
    chance = random.Random(SEED)
    usual = Crowd(["a"], keys[1:], (Priority.HIGH, Priority.NORMAL, Priority.LOW))
    flood = [Arrival(1.0 + n * 0.01, "a", "greedy", Priority.NORMAL, 200, 60) for n in range(500)]
    arrivals = traffic.merge(flood, traffic.trace(chance, usual, traffic.poisson, 0.5, 300.0))
    worlds = _under_each(
        lambda policy: World(
            {"a": Spec(1.0, generation_rate=100.0)}, arrivals, models_max=1, terms=LONG, policy=policy
        )
    )
    by_key = {name: [_p95(world, _has_key(key)) for key in keys] for name, world in worlds.items()}
    classes = [priority.name.lower() for priority in Priority]
    by_class = {name: [_p95(world, _has_class(each)) for each in Priority] for name, world in worlds.items()}
    rows = [
        [f"{what} `{group}`", *(f"{values[place]:.1f}" for values in by.values())]
        for what, groups, by in (("key", keys, by_key), ("class", classes, by_class))
        for place, group in enumerate(groups)
    ]
    return Figures(
        {
            "wait-by-key": charts.bars("95th percentile of the wait, by key", keys, Axis("seconds"), by_key),
            "wait-by-class": charts.bars(
                "95th percentile of the wait, by class, without the greedy key",
                classes,
                Axis("seconds"),
                by_class,
            ),
        },
        {"one-model": [["p95 of the wait in s", *POLICIES], *rows]},
    )


# Nobody is to be sent away, so that every wait is seen to its end.
LONG = TERMS._replace(queue_timeout_s=100_000.0)


def _has_key(key: str) -> Callable[[Job], bool]:
    return lambda job: job.arrival.key_id == key


def _has_class(priority: Priority) -> Callable[[Job], bool]:
    return lambda job: job.arrival.priority is priority and job.arrival.key_id != "greedy"


def _p95(world: World, chosen: Callable[[Job], bool]) -> float:
    return quantile(world.waits(chosen), 0.95)


def _under_each(make: Callable[[Any], World]) -> dict[str, World]:
    return {name: make(policy).run() for name, policy in POLICIES.items()}


# Two models, one place -----------------------------------------------------------------------------

RATES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5)
LOAD_S = 2.0


def two_models() -> Figures:
    """Two models of which one fits, asked alike, from hardly ever to more than the machine can do."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in POLICIES}
    for rate in RATES:
        crowd = Crowd(["a", "b"], ["k1", "k2", "k3"])
        arrivals = traffic.trace(random.Random(SEED), crowd, traffic.poisson, rate, 1200.0)
        spec = Spec(LOAD_S, generation_rate=200.0)
        for name, policy in POLICIES.items():
            world = World({"a": spec, "b": spec}, arrivals, models_max=1, terms=TERMS, policy=policy)
            found[name].append(fifo.summary(world.run()))
    x = Axis("requests a second, both models together")

    def lines(title: str, what: str, y: Axis) -> str:
        series = {
            name: [(rate, each[what]) for rate, each in zip(RATES, runs, strict=True)]
            for name, runs in found.items()
        }
        return charts.lines(title, x, y, series)

    rows = [
        [f"{rate:g}", *(_in_short(runs[place]) for runs in found.values())]
        for place, rate in enumerate(RATES)
    ]
    return Figures(
        {
            "switches": lines("Switches in 1,000 requests", "switches_per_1000", Axis("switches")),
            "two-models-wait": lines("95th percentile of the wait", "p95_s", Axis("seconds", is_log=True)),
            "throughput": lines("Requests served in time", "served_per_minute", Axis("a minute")),
        },
        {
            "two-models": [
                [
                    "requests/s",
                    *(f"{name}: switches per 1,000 · p95 wait in s · served/min" for name in POLICIES),
                ],
                *rows,
            ]
        },
    )


def _in_short(run: dict[str, float]) -> str:
    return f"{run['switches_per_1000']:.0f} · {run['p95_s']:.1f} · {run['served_per_minute']:.1f}"


# The scale of a fleet ------------------------------------------------------------------------------

REQUESTS_PER_GPU = 1000
# Boxes, and GPUs in each: one gateway is one box, and a fleet is many of them behind a balancer.
FLEETS = ((1, 1), (1, 8), (1, 32), (1, 100), (12, 8), (125, 8))


def box_arrivals(gpus: int, chance: random.Random) -> tuple[dict[str, Spec], list[Arrival]]:
    """More models than GPUs by a quarter, few of them popular; two requests a second and GPU."""
    names = [f"model-{number}" for number in range(gpus + max(1, gpus // 4))]
    weights = list(itertools.accumulate(1 / (number + 10) ** 0.5 for number in range(len(names))))
    models = chance.choices(names, cum_weights=weights, k=gpus * REQUESTS_PER_GPU)
    keys = [f"key-{number}" for number in range(200)]
    now, arrivals = 0.0, []
    for model in models:
        now += chance.expovariate(2.0 * gpus)
        length = 1 + int(chance.expovariate(1 / 60))
        arrivals.append(Arrival(now, model, chance.choice(keys), Priority.NORMAL, 200, length))
    return {name: Spec(4.0, slots=4, generation_rate=100.0) for name in names}, arrivals


class FleetRun(NamedTuple):
    waits: list[float]
    switches: int
    served: int
    cpu_s: float


def run_fleet(boxes: int, gpus: int) -> FleetRun:
    waits: list[float] = []
    switches = served = 0
    cpu_s = 0.0
    for box in range(boxes):
        specs, arrivals = box_arrivals(gpus, random.Random(SEED + box))
        began_at = time.process_time()
        world = World(specs, arrivals, models_max=gpus, terms=TERMS).run()
        cpu_s += time.process_time() - began_at
        waits += world.waits()
        switches += world.switches
        served += sum(job.outcome == "served" for job in world.jobs)
    return FleetRun(sorted(waits), switches, served, cpu_s)


def fleet(fleets: Sequence[tuple[int, int]]) -> Figures:
    rows, costs, waits = [], [], []
    for boxes, gpus in fleets:
        run = run_fleet(boxes, gpus)
        count = len(run.waits)
        cost_us = run.cpu_s / count * 1e6
        if boxes == 1:
            costs.append((float(gpus), cost_us))
            waits.append((float(gpus), quantile(run.waits, 0.95)))
        rows.append(
            [
                f"{boxes} × {gpus}",
                f"{count:,}",
                f"{cost_us:.0f} µs",
                f"{quantile(run.waits, 0.5):.2f} s",
                f"{quantile(run.waits, 0.95):.1f} s",
                f"{quantile(run.waits, 0.99):.1f} s",
                f"{1000 * run.switches / count:.1f}",
                f"{100 * run.served / count:.2f} %",
            ]
        )
    x = Axis("GPUs of one gateway", is_log=True)
    head = ["boxes × GPUs", "requests", "cost a request", "p50 wait", "p95 wait", "p99 wait"]
    head += ["switches per 1,000", "served"]
    cost = "Processor time a request, the simulator's own included"
    return Figures(
        {
            "fleet-cost": charts.lines(cost, x, Axis("µs", is_log=True), {"Corral": costs}),
            "fleet-wait": charts.lines("95th percentile of the wait", x, Axis("seconds"), {"Corral": waits}),
        },
        {"fleet": [head, *rows]},
    )


def decisions() -> Figures:
    rows = [
        [f"{keys:,}", *(f"{decision_us(waiting, keys):.1f}" for waiting in (10, 100, 1000, 10_000))]
        for keys in (1, 100, 10_000)
    ]
    return Figures({}, {"decisions": [["keys", *(f"{n:,} waiting" for n in (10, 100, 1000, 10_000))], *rows]})


# The page ------------------------------------------------------------------------------------------


def with_tables(page: str, tables: dict[str, list[list[str]]]) -> str:
    """The page with what stands between its marks written anew."""
    for name, rows in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        lines = [f"| {' | '.join(row)} |" for row in rows]
        lines.insert(1, "|---" * len(rows[0]) + "|")
        page = before + begin + "\n".join(lines) + "\n" + end + after
    return page


def main() -> None:
    quick = os.environ.get("QUICK") == "1"
    PICTURES.mkdir(exist_ok=True)
    for make in (one_model, two_models, decisions, lambda: fleet(FLEETS[:3] if quick else FLEETS)):
        figures = make()
        for name, picture in figures.pictures.items():
            (PICTURES / f"{name}.svg").write_text(picture, encoding="utf-8")
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), figures.tables), encoding="utf-8")
        for name, rows in figures.tables.items():
            print("", name, *in_columns(rows), sep="\n", flush=True)


if __name__ == "__main__":
    main()
