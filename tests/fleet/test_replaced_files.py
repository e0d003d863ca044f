"""A model's file may be replaced while the gateway runs: the next start goes by the new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corral.catalogue import Model
from corral.fleet import memory as fleet_memory
from corral.policy.footprint import UnknownFootprint
from corral.policy.guard import Place
from tests.fleet.test_memory_lending import CARD, Bank


@pytest.fixture
def bank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bank:
    def as_large_as_its_file(model: Model, *rest: Any, **more: Any) -> UnknownFootprint:
        return UnknownFootprint(model.path.stat().st_size, gpus=True)

    monkeypatch.setattr(fleet_memory, "measure_out", as_large_as_its_file)
    (tmp_path / "absent.gguf").write_bytes(bytes(1000))
    return Bank(monkeypatch, tmp_path, CARD)


def needed_bytes(bank: Bank) -> tuple[int, ...]:
    decision = bank.memory.decide("m", (), ())
    assert isinstance(decision, Place)
    return decision.placement.gpu_bytes


def test_a_file_that_was_replaced_is_measured_out_anew(bank: Bank, tmp_path: Path) -> None:
    assert needed_bytes(bank) == (1000,)
    (tmp_path / "absent.gguf").write_bytes(bytes(5000))
    assert needed_bytes(bank) == (5000,)


def test_a_running_model_is_still_what_it_was_started_from(bank: Bank, tmp_path: Path) -> None:
    bank.load()
    (tmp_path / "absent.gguf").write_bytes(bytes(5000))
    (holding,) = bank.memory.report().holdings
    assert holding.estimate[0].parts.weights == 1000
    bank.memory.never_started("m")
    assert needed_bytes(bank) == (5000,)


def test_a_file_that_stays_is_measured_out_once(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    assert needed_bytes(bank) == (1000,)
    monkeypatch.setattr(fleet_memory, "measure_out", None)
    assert needed_bytes(bank) == (1000,)
