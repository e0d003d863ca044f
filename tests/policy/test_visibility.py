from __future__ import annotations

import pytest

from corral.policy.visibility import usable

CARDS = ("GPU-aaa", "GPU-abc", "MIG-x")


@pytest.mark.parametrize(
    ("visible", "chosen", "expected"),
    [
        (None, None, CARDS),
        ((), None, ()),
        (("1",), None, ("GPU-abc",)),
        (("2", "0"), None, ("MIG-x", "GPU-aaa")),
        (("GPU-ab",), None, ("GPU-abc",)),
        (("GPU-zzz", "7", "0"), None, ("GPU-aaa",)),
        (None, (1,), ("GPU-abc",)),
        (None, (5,), ()),
        (("2", "0"), (0,), ("MIG-x",)),
    ],
    ids=[
        "no limit",
        "none at all",
        "a number",
        "in CUDA's order",
        "a shortened UUID",
        "what isn't there is left out",
        "chosen by number",
        "chosen but not there",
        "chosen among the visible",
    ],
)
def test_the_surroundings_limit_and_the_settings_choose(
    visible: tuple[str, ...] | None, chosen: tuple[int, ...] | None, expected: tuple[str, ...]
) -> None:
    assert usable(CARDS, visible, chosen) == expected
