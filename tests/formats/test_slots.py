from __future__ import annotations

import json

import pytest

from corral.formats.slots import SLOTS_MAX, Slot, read_busy, read_total

BUSY = {
    "id": 1,
    "is_processing": True,
    "id_task": 7,
    "n_prompt_tokens_processed": 20,
    "next_token": [{"n_decoded": 100, "n_remain": -1}],
}


def test_busy_slots_are_told_with_how_far_they_have_come() -> None:
    body = json.dumps([{"id": 0, "is_processing": False}, BUSY]).encode()
    assert read_busy(body) == (Slot(1, 7, 120),)


@pytest.mark.parametrize(
    ("change", "tokens"),
    [
        ({"next_token": {"n_decoded": 100}}, 120),
        ({"next_token": []}, 20),
        ({"next_token": None}, 20),
        ({"n_prompt_tokens_processed": None}, 100),
        ({"n_prompt_tokens_processed": "x"}, 100),
    ],
)
def test_versions_that_say_it_otherwise_are_understood(change: dict[str, object], tokens: int) -> None:
    assert read_busy(json.dumps([BUSY | change]).encode()) == (Slot(1, 7, tokens),)


def test_nobody_busy_is_an_answer_too() -> None:
    assert read_busy(b"[]") == ()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"{}", b"7", b"[7]", b"[{}]", b'{"error": {"code": 501}}', b"[" * 100_000, b"\xff"],
    ids=lambda body: body[:12].decode("latin-1"),
)
def test_anything_else_is_no_answer(body: bytes) -> None:
    assert read_busy(body) is None


@pytest.mark.parametrize(
    ("body", "total"),
    [
        (b'{"total_slots": 1}', 1),
        (b'{"default_generation_settings": {}, "total_slots": 4, "model_path": "m"}', 4),
        (b'{"total_slots": %d}' % SLOTS_MAX, SLOTS_MAX),
        (b'{"total_slots": %d}' % (SLOTS_MAX + 1), None),
        (b'{"total_slots": 0}', None),
        (b'{"total_slots": -1}', None),
        (b'{"total_slots": true}', None),
        (b'{"total_slots": "4"}', None),
        (b'{"total_slots": 4.0}', None),
        (b"{}", None),
        (b"[]", None),
        (b"null", None),
        (b"", None),
        (b"[" * 100_000, None),
        (b"\xff", None),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_how_many_slots_there_are_is_read_from_props_or_not_at_all(body: bytes, total: int | None) -> None:
    assert read_total(body) == total
