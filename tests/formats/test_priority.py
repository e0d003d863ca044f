from __future__ import annotations

import pytest

from corral.formats.priority import Priority, read


@pytest.mark.parametrize(
    ("text", "priority"),
    [
        ("high", Priority.HIGH),
        ("Normal", Priority.NORMAL),
        (" LOW ", Priority.LOW),
        ("1", Priority.HIGH),
        ("2", Priority.NORMAL),
        ("3", Priority.LOW),
        ("0", None),
        ("4", None),
        ("", None),
        ("urgent", None),
        ("1.0", None),
        ("-1", None),
    ],
)
def test_a_priority_is_a_name_or_a_number_and_nothing_else(text: str, priority: Priority | None) -> None:
    assert read(text) is priority


def test_the_larger_of_two_is_the_more_modest() -> None:
    assert max(Priority.HIGH, Priority.LOW) is Priority.LOW
    assert sorted(Priority) == [Priority.HIGH, Priority.NORMAL, Priority.LOW]
