"""Amounts of memory, written and read."""

from __future__ import annotations

import pytest

from corral.formats.size import amount, parse, short

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ("size_bytes", "written"),
    [
        (5, "5 bytes"),
        (84_000, "82.0 KiB"),
        (MIB, "1.0 MiB"),
        (1536 * MIB, "1.5 GiB"),
        (GIB - 1, "1024.0 MiB"),
    ],
)
def test_amounts_are_written_for_people(size_bytes: int, written: str) -> None:
    assert amount(size_bytes) == written


@pytest.mark.parametrize(
    ("size_bytes", "written"),
    [
        (0, "0"),
        (1022, "1022"),
        (KIB, "1.0Ki"),
        (82 * KIB + 31, "82.0Ki"),
        (99 * MIB, "99.0Mi"),
        (412 * MIB, "412Mi"),
        (1022 * MIB, "1022Mi"),
        (GIB - 1, "1.0Gi"),
        (24 * GIB, "24.0Gi"),
        (2 * TIB, "2.0Ti"),
    ],
)
def test_a_table_has_short_ones(size_bytes: int, written: str) -> None:
    assert short(size_bytes) == written


def test_a_short_one_is_never_wider_than_its_column() -> None:
    sizes = [factor * (1 << power) // 1000 for power in range(50) for factor in (998, 999, 1000, 1001, 1999)]
    assert max(len(short(size)) for size in sizes) == 6


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("24GiB", 24 * GIB),
        ("24G", 24 * GIB),
        ("24 gb", 24 * GIB),
        (" 81559MiB ", 81559 * MIB),
        ("1.5T", 1536 * GIB),
        ("512k", 512 * KIB),
    ],
)
def test_a_size_is_read_with_whatever_its_unit_is_called(text: str, size_bytes: int) -> None:
    assert parse(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "24", "G", "-1G", "1,5G", "24GiB!", "1e3G", "٣G", "9" * 10 + "G", "24GX"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text.replace('.', '[.]')}$"):
        parse(text)
