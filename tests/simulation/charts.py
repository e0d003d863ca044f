"""Charts as SVG, with nothing but strings: lines over a range, and bars side by side.

Plain enough to be read in a dark page as in a light one: grey text, no background.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 46, 44
COLOURS = ("#0b7285", "#e8590c", "#7048e8", "#868e96")
INK = "#868e96"


class Axis(NamedTuple):
    label: str
    is_log: bool = False


class _Scale(NamedTuple):
    low: float
    high: float
    start: float
    end: float
    is_log: bool

    def at(self, value: float) -> float:
        low, high, value = (self._bent(each) for each in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)

    def _bent(self, value: float) -> float:
        return math.log10(max(value, self.low)) if self.is_log else value

    def ticks(self) -> list[float]:
        if self.is_log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            return [10.0**n for n in range(first, last + 1) if self.low <= 10.0**n <= self.high]
        step = 10 ** math.floor(math.log10((self.high - self.low) or 1))
        for finer in (0.2, 0.5, 1, 2):
            if (self.high - self.low) / (step * finer) <= 6:
                step *= finer
                break
        return [n * step for n in range(math.ceil(self.low / step), int(self.high / step) + 1)]


Points = Sequence[tuple[float, float]]


def lines(title: str, x: Axis, y: Axis, series: Mapping[str, Points]) -> str:
    points = [point for each in series.values() for point in each]
    across = _Scale(min(p[0] for p in points), max(p[0] for p in points), LEFT, WIDTH - RIGHT, x.is_log)
    up = _upward([p[1] for p in points], y)
    parts = [_frame(title, y, up, list(series)), _text(WIDTH / 2, HEIGHT - 8, x.label, "middle")]
    below = HEIGHT - BOTTOM + 16
    parts += [_text(across.at(value), below, f"{value:g}", "middle") for value in across.ticks()]
    for colour, each in zip(COLOURS, series.values(), strict=False):
        path = " ".join(f"{across.at(px):.1f},{up.at(py):.1f}" for px, py in each)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{across.at(px):.1f}" cy="{up.at(py):.1f}" r="2.5" fill="{colour}"/>'
            for px, py in each
        ]
    return _svg(parts)


def bars(title: str, groups: Sequence[str], y: Axis, series: Mapping[str, Sequence[float]]) -> str:
    up = _upward([value for each in series.values() for value in each], y)
    parts = [_frame(title, y, up, list(series))]
    room = (WIDTH - LEFT - RIGHT) / len(groups)
    width = room * 0.7 / len(series)
    for place, group in enumerate(groups):
        left = LEFT + room * place + room * 0.15
        parts.append(_text(LEFT + room * (place + 0.5), HEIGHT - BOTTOM + 16, group, "middle"))
        for number, (colour, values) in enumerate(zip(COLOURS, series.values(), strict=False)):
            x, top = left + number * width, up.at(values[place])
            parts.append(_box(x, top, width - 2, max(0.0, HEIGHT - BOTTOM - top), colour))
            parts.append(_text(x + width / 2 - 1, top - 4, f"{values[place]:.3g}", "middle", 9))
    return _svg(parts)


def _upward(values: Sequence[float], y: Axis) -> _Scale:
    low = max(min(values), 1e-3) if y.is_log else 0.0
    return _Scale(low, max([*values, low * 1.1, 1e-9]), HEIGHT - BOTTOM, TOP, y.is_log)


def _frame(title: str, y: Axis, up: _Scale, names: Sequence[str]) -> str:
    parts = [_text(LEFT, 14, title, "start", 13, bold=True)]
    for value in up.ticks():
        at = up.at(value)
        ends = f'x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"'
        parts.append(f'<line {ends} stroke="{INK}" opacity="0.25"/>')
        parts.append(_text(LEFT - 6, at + 4, f"{value:g}", "end"))
    parts.append(_text(14, (TOP + HEIGHT - BOTTOM) / 2, y.label, "middle", turned=True))
    x = float(LEFT)
    for colour, name in zip(COLOURS, names, strict=False):
        parts.append(_box(x, 24, 10, 10, colour))
        parts.append(_text(x + 14, 33, name, "start"))
        x += 34 + 6.2 * len(name)
    return "".join(parts)


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _text(
    x: float, y: float, text: str, anchor: str, size: int = 11, *, bold: bool = False, turned: bool = False
) -> str:
    more = ' font-weight="bold"' if bold else ""
    more += f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}"{more}>'
        f"{escape(text)}</text>"
    )


def _svg(parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="sans-serif">{"".join(parts)}</svg>\n'
    )
