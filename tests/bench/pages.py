"""The published figures: docs/performance.json, and the tables and the chart that are made of it.

`make bench PUBLISH=1` writes all of them; a test holds the pages against the JSON, so that no figure in
the docs is anything but what the command has printed.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.bench import chart
from tests.bench.results import Results, from_json, to_json
from tests.bench.table import NO_PROXY, OURS, YARDSTICK, table
from tests.support import ROOT

DOCS = ROOT / "docs"
JSON = DOCS / "performance.json"
CHART = DOCS / "performance.svg"
PAGE = DOCS / "performance.md"
README = ROOT / "README.md"
MARKED = re.compile(r"(?<=<!-- figures: )(\w+)( -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)
# What the README shows.
SHORT = {
    "requests_64.cpu_s",
    "streams_200.cpu_s",
    "requests_1.p50_s",
    "streams_1000.p99_s",
    "memory.stream_bytes",
    "start.resident_bytes",
    "start.listening_s",
    "cold_start.first_token_s",
}


def with_figures(page: str, results: Results) -> str:
    """The page with every marked place as the results have it."""
    texts = {
        "all": table(results),
        "short": table(results, [YARDSTICK, OURS], SHORT),
        "rivals": table(results, [name for name in results.by_name if name != NO_PROXY], SHORT),
        "machine": machine(results),
    }
    return MARKED.sub(lambda mark: mark[1] + mark[2] + texts[mark[1]], page)


def machine(results: Results) -> str:
    programs = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return (
        f"Measured on {results.taken_on}, on a virtual machine with {results.machine}; medians of "
        f"{results.rounds} rounds. {programs}.\n"
    )


def published() -> Results:
    return from_json(JSON.read_text(encoding="utf-8"))


def publish(results: Results) -> None:
    JSON.write_text(to_json(results), encoding="utf-8")
    CHART.write_text(chart.svg(results), encoding="utf-8")
    for page in (PAGE, README):
        _rewrite(page, results)


def _rewrite(page: Path, results: Results) -> None:
    page.write_text(with_figures(page.read_text(encoding="utf-8"), results), encoding="utf-8")
