"""The results as a table for people: a row for each figure, a column for each contestant, ratios to nginx."""

from __future__ import annotations

from typing import NamedTuple

from tests.bench.measure import FEW_STREAMS, MANY_STREAMS
from tests.bench.results import Results

YARDSTICK, OURS, NO_PROXY = "nginx", "Corral", "no proxy"

UNITS = {
    "µs": 1e-6,
    "ms": 1e-3,
    "/s": 1.0,
    "KiB": 1024.0,
    "MiB": 1024.0**2,
}


class Row(NamedTuple):
    """One figure, as it is shown."""

    figure: str
    label: str
    unit: str
    budget: str = ""  # DESIGN's own words, for the figures that have one
    has_ratio: bool = True


ROWS = (
    Row("requests_64.cpu_s", "processor time of a request, 64 connections", "µs", "≤ 2.5 ×"),
    Row("requests_1.cpu_s", "processor time of a request, 1 connection", "µs"),
    Row(f"streams_{FEW_STREAMS}.cpu_s", f"processor time of a chunk, {FEW_STREAMS} streams", "µs", "≤ 1.0 ×"),
    Row(f"streams_{MANY_STREAMS}.cpu_s", f"processor time of a chunk, {MANY_STREAMS:,} streams", "µs"),
    Row("requests_64.per_s", "requests, 64 connections", "/s"),
    Row("requests_1.p50_s", "latency, 1 connection, p50", "µs", "≤ 1.5 ×"),
    Row("requests_1.p99_s", "latency, 1 connection, p99", "µs"),
    Row("requests_1.added_p50_s", "latency added, 1 connection, p50", "µs"),
    Row("requests_64.p50_s", "latency, 64 connections, p50", "ms"),
    Row("requests_64.p99_s", "latency, 64 connections, p99", "ms"),
    Row(f"streams_{FEW_STREAMS}.first_byte_p50_s", f"first byte, {FEW_STREAMS} streams, p50", "ms"),
    Row(f"streams_{FEW_STREAMS}.p50_s", f"a chunk on its way, {FEW_STREAMS} streams, p50", "ms"),
    Row(f"streams_{FEW_STREAMS}.p99_s", f"a chunk on its way, {FEW_STREAMS} streams, p99", "ms"),
    Row(f"streams_{MANY_STREAMS}.first_byte_p50_s", f"first byte, {MANY_STREAMS:,} streams, p50", "ms"),
    Row(f"streams_{MANY_STREAMS}.p50_s", f"a chunk on its way, {MANY_STREAMS:,} streams, p50", "ms"),
    Row(f"streams_{MANY_STREAMS}.p99_s", f"a chunk on its way, {MANY_STREAMS:,} streams, p99", "ms", "≤ 4 ×"),
    Row(f"streams_{MANY_STREAMS}.per_s", f"chunks, {MANY_STREAMS:,} streams", "/s"),
    Row("stall.quiet_s", "longest wait of a chunk, 50 streams", "ms", has_ratio=False),
    Row(
        "stall.large_s",
        "longest wait of a chunk while bodies of 10 MB come",
        "ms",
        "≤ 20 ms",
        has_ratio=False,
    ),
    Row("memory.stream_bytes", "memory of an open stream", "KiB", "≤ 8 KiB"),
    Row("start.resident_bytes", "memory at rest", "MiB", "≤ 40 MiB"),
    Row("start.health_port_s", "start to health port", "ms"),
    Row("start.listening_s", "start to listening", "ms", "≤ 250 ms"),
    Row("start.first_answer_s", "start to first answer", "ms"),
    Row("cold_start.health_port_s", "cold start, real engine: to health port", "ms"),
    Row("cold_start.listening_s", "cold start, real engine: to listening", "ms"),
    Row("cold_start.first_token_s", "cold start, real engine: to first token", "ms"),
)


def number(value: float) -> str:
    """Three figures that mean something, and no more."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(results: Results, name: str, row: Row) -> str:
    """A figure, and how many times nginx's it is."""
    value = results.by_name[name].get(row.figure)
    if value is None:
        return "–"
    text = number(value / UNITS[row.unit])
    yardstick = results.by_name.get(YARDSTICK, {}).get(row.figure)
    if not row.has_ratio or not yardstick or name in (YARDSTICK, NO_PROXY):
        return text
    return f"{text} ({number(value / yardstick)} ×)"


def table(results: Results, names: list[str] | None = None, figures: set[str] | None = None) -> str:
    """In Markdown: these contestants and these figures, or all."""
    names = names or list(results.by_name)
    lines = [["", "unit", *names, "budget"], ["---", "---", *["--:"] * len(names), "---"]]
    for row in ROWS:
        shown = figures is None or row.figure in figures
        if shown and any(row.figure in results.by_name[name] for name in names):
            cells = [cell(results, name, row) for name in names]
            lines.append([row.label, row.unit, *cells, row.budget])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plain(markdown: str) -> str:
    """The same for a terminal: columns of one width, and no ruler of Markdown's."""
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in markdown.splitlines()]
    rows = [row for row in rows if not set("".join(row)) <= set("-:")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"
