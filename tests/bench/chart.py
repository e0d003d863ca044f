"""The chart for the README, as SVG by hand: what a request and a chunk cost, one bar for each contestant.

The scale is logarithmic, for between a plain proxy in C and a framework in Python lie two powers of ten,
and each bar says its figure. Colours follow the reader's light or dark page.
"""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple

from tests.bench.measure import FEW_STREAMS
from tests.bench.results import Results
from tests.bench.table import NO_PROXY, OURS, number

WIDTH = 720
LABEL_WIDTH = 130
FIGURE_WIDTH = 90
BAR_HEIGHT, BAR_GAP, TITLE_HEIGHT, PANEL_GAP = 20, 8, 34, 18
STYLE = """
    text { font: 14px system-ui, sans-serif; fill: #333 }
    .title { font-weight: 600 }
    .figure, .note { fill: #666 }
    .bar { fill: #9aa7b4 }
    .ours { fill: #2f7d4f }
    @media (prefers-color-scheme: dark) {
      text { fill: #ddd }
      .figure, .note { fill: #aaa }
      .bar { fill: #66727f }
      .ours { fill: #4fae78 }
    }
"""


class Panel(NamedTuple):
    title: str
    figure: str


PANELS = (
    Panel("Processor time of a request, in µs", "requests_64.cpu_s"),
    Panel(
        f"Processor time of a streamed chunk, in µs ({FEW_STREAMS} streams)", f"streams_{FEW_STREAMS}.cpu_s"
    ),
)


class Bar(NamedTuple):
    name: str
    us: float


def bars(results: Results, figure: str) -> list[Bar]:
    return [
        Bar(name, figures[figure] * 1e6)
        for name, figures in results.by_name.items()
        if name != NO_PROXY and figure in figures
    ]


def length(us: float, longest_us: float) -> float:
    """In pixels: nothing for 1 µs and below, everything for the longest."""
    room = WIDTH - LABEL_WIDTH - FIGURE_WIDTH
    return max(2.0, room * math.log10(max(us, 1.0)) / math.log10(max(longest_us, 10.0)))


def svg(results: Results) -> str:
    parts: list[str] = []
    y = 0
    longest_us = max((bar.us for panel in PANELS for bar in bars(results, panel.figure)), default=10.0)
    for panel in PANELS:
        parts.append(f'<text class="title" x="0" y="{y + 18}">{escape(panel.title)}</text>')
        y += TITLE_HEIGHT
        for bar in bars(results, panel.figure):
            parts += _bar(bar, y, longest_us)
            y += BAR_HEIGHT + BAR_GAP
        y += PANEL_GAP
    note = "Logarithmic scale. One processor core, everything on; nginx is a plain proxy without a log."
    parts.append(f'<text class="note" x="0" y="{y + 4}">{escape(note)}</text>')
    height = y + 16
    body = "\n  ".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="What a request and a chunk cost">\n'
        f"  <style>{STYLE}  </style>\n  {body}\n</svg>\n"
    )


def _bar(bar: Bar, y: int, longest_us: float) -> list[str]:
    middle = y + BAR_HEIGHT - 5
    wide = length(bar.us, longest_us)
    kind = "bar ours" if bar.name == OURS else "bar"
    return [
        f'<text x="{LABEL_WIDTH - 10}" y="{middle}" text-anchor="end">{escape(bar.name)}</text>',
        f'<rect class="{kind}" x="{LABEL_WIDTH}" y="{y}" width="{wide:.1f}" height="{BAR_HEIGHT}" rx="2"/>',
        f'<text class="figure" x="{LABEL_WIDTH + wide + 8:.1f}" y="{middle}">{number(bar.us)}</text>',
    ]
