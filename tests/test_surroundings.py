"""What is there when the gateway comes up, and how it is put into words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from corral.drivers.gpu_probe import GpuReading
from corral.formats import demo_models
from corral.surroundings import hardware, look_around
from tests.settings.desk import Desk


def test_models_are_found_and_a_place_to_learn_in(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.file("data/models/.keep")
    (desk.cwd / "data/models/demo.gguf").write_bytes(demo_models.demo())
    found = look_around(desk.load({"gpu": {"enabled": False}}))
    try:
        assert found.gpu_probe is None
        assert found.gpus == ()
        assert list(found.catalogue.models) == ["demo"]
        assert found.learned.all() == {}
    finally:
        assert found.learned.close()


def test_nobody_asks_a_driver_that_is_not_to_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", object())  # which would fail whoever asks it
    look_around(Desk(tmp_path).load({"gpu": {"enabled": False}})).learned.close()


def test_the_hardware_in_words() -> None:
    gpu = GpuReading("GPU-1", 0, "NVIDIA L4", 24 << 30, 0, None)
    assert hardware([gpu, gpu]) == "NVIDIA L4 (24.0 GiB), NVIDIA L4 (24.0 GiB)"
    assert hardware([]).startswith("no GPU found, CPU mode, ")
