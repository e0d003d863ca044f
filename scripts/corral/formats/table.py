"""Rows as text in columns, for people at a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

GAP = "  "


def lines(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> list[str]:
    """One line a row, each column as wide as its widest cell. Those in `numbers` end together."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        GAP.join(
            cell.rjust(width) if number in numbers else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
