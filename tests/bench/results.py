"""Figures by name, from many rounds to one table's worth: medians, ratios to the yardstick, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, NamedTuple

Figures = Mapping[str, float]


class Results(NamedTuple):
    """What a run has found out. `by_name`: contestant -> figure -> value, in the order of the table."""

    machine: str
    versions: dict[str, str]
    rounds: int
    taken_on: str  # the day
    by_name: dict[str, dict[str, float]]


def medians(rounds: Iterable[Figures]) -> dict[str, float]:
    """The median of each figure over the rounds that have it."""
    values: dict[str, list[float]] = {}
    for figures in rounds:
        for name, value in figures.items():
            values.setdefault(name, []).append(value)
    return {name: median(each) for name, each in values.items()}


def ratio(rounds: Iterable[tuple[Figures, Figures]], figure: str) -> float:
    """How many times the yardstick's: the median of the rounds' ratios, each round its own comparison."""
    return median(ours[figure] / yardstick[figure] for ours, yardstick in rounds)


def added_latency(by_name: dict[str, dict[str, float]], no_proxy: str) -> dict[str, dict[str, float]]:
    """How much later each one's answers come than without it, where that has not been measured itself."""
    asked_s = by_name[no_proxy]["requests_1.p50_s"]
    return {
        name: {"requests_1.added_p50_s": figures["requests_1.p50_s"] - asked_s, **figures}
        if "requests_1.p50_s" in figures and name != no_proxy
        else figures
        for name, figures in by_name.items()
    }


def to_json(results: Results) -> str:
    return json.dumps(results._asdict(), indent=2) + "\n"


def from_json(text: str) -> Results:
    document: dict[str, Any] = json.loads(text)
    return Results(**document)
