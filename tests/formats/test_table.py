"""Columns line up, whatever stands in them."""

from __future__ import annotations

from corral.formats.table import lines


def test_a_column_is_as_wide_as_its_widest_cell_and_lines_end_where_their_text_does() -> None:
    assert lines([("NAME", "N"), ("a", "1"), ("longer", "")]) == ["NAME    N", "a       1", "longer"]


def test_numbers_end_together() -> None:
    assert lines([("NAME", "SIZE", ""), ("a", "7", "x")], numbers=[1]) == ["NAME  SIZE", "a        7  x"]


def test_no_rows_are_no_lines() -> None:
    assert lines([]) == []
