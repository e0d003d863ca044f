"""Room for a short errand: lent when nothing else goes on, within the guard's rule, and called back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from corral.catalogue import Catalogue
from corral.drivers import clock, host_memory
from corral.drivers.gpu_probe import GpuReading
from corral.fleet.memory import QUIET_S, FleetMemory
from corral.formats.learned import Learned, LearnedKey
from corral.metrics import Metrics
from corral.policy.guard import Place, Wait
from corral.policy.placement import Placement
from tests.models import a_model
from tests.settings.desk import Desk

MIB = 1 << 20
GIB = 1 << 30
ERRAND, PID, SIZE = "an errand", 4242, 320 * MIB
CARD = GpuReading("GPU-a", 0, "a card", 24 * GIB, 0, {})


class Probe:
    """GPUs as the test has them."""

    def __init__(self, *readings: GpuReading) -> None:
        self.readings = {reading.uuid: reading for reading in readings}

    def read(self) -> tuple[GpuReading, ...]:
        return tuple(self.readings.values())

    def use(self, uuid: str, used_bytes: int) -> None:
        self.readings[uuid] = replace(self.readings[uuid], used_bytes=used_bytes)


class Store:
    def recall(self, key: LearnedKey) -> Learned | None:
        return None


class Bank:
    """A FleetMemory whose clock, GPUs and models the test has in its hands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, *cards: GpuReading) -> None:
        self.now = 1000.0
        self.called_back = 0
        self.probe = Probe(*cards)
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        monkeypatch.setattr(host_memory, "read", lambda: host_memory.HostMemory(8 * GIB, 6 * GIB))
        model = a_model("m", path=root / "absent.gguf", size_bytes=GIB)
        self.memory = FleetMemory(
            Desk(root).load({}, {}),
            Catalogue({"m": model}, {}, ()),
            lambda name: ("llama-server", "-m", name),
            {},
            self.probe,  # type: ignore[arg-type]
            Store(),  # type: ignore[arg-type]
            Metrics("test", 0.0),
        )
        self.now += QUIET_S

    def call_back(self) -> None:
        self.called_back += 1

    def lend(self, size_bytes: int = SIZE, on_gpu: bool = True) -> Placement | None:
        return self.memory.lend(ERRAND, size_bytes, on_gpu=on_gpu, call_back=self.call_back)

    def load(self) -> None:
        decision = self.memory.decide("m", (), ())
        assert isinstance(decision, Place)
        self.memory.reserve("m", decision.placement)


def test_it_is_promised_what_it_was_lent_until_that_has_come_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bank = Bank(monkeypatch, tmp_path, CARD)
    placement = bank.lend()
    assert placement is not None
    assert (placement.gpus, placement.gpu_bytes, placement.host_bytes) == (("GPU-a",), (SIZE,), 0)
    assert bank.memory.holds(ERRAND)
    bank.memory.spawned(ERRAND, PID)
    bank.probe.use("GPU-a", 300 * MIB)
    bank.memory.gone(ERRAND, reaped=True)
    bank.now += 0.1
    bank.memory.look()
    assert bank.memory.holds(ERRAND)
    bank.probe.use("GPU-a", 0)
    bank.now += 0.1
    bank.memory.look()
    assert not bank.memory.holds(ERRAND)
    assert bank.lend() is not None


def test_on_several_gpus_the_fullest_that_has_room_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cards = [replace(CARD, uuid=f"GPU-{name}", index=index) for index, name in enumerate("abc")]
    bank = Bank(monkeypatch, tmp_path, *cards)
    bank.probe.use("GPU-b", 22 * GIB)
    bank.probe.use("GPU-c", 24 * GIB)
    placement = bank.lend()
    assert placement is not None
    assert placement.gpus == ("GPU-b",)


def test_without_a_gpu_it_is_the_hosts_memory_that_is_lent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    placement = Bank(monkeypatch, tmp_path).lend(64 * MIB, on_gpu=False)
    assert placement is not None
    assert (placement.gpus, placement.host_bytes) == ((), 64 * MIB)


@pytest.mark.parametrize("cards", [(), (replace(CARD, used_bytes=24 * GIB),)], ids=["no GPU", "a full GPU"])
def test_where_there_is_no_room_nothing_is_lent_not_even_on_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cards: tuple[GpuReading, ...]
) -> None:
    bank = Bank(monkeypatch, tmp_path, *cards)
    assert bank.lend() is None
    assert not bank.memory.holds(ERRAND)


def test_nothing_is_lent_while_a_model_loads_or_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bank = Bank(monkeypatch, tmp_path, CARD)
    bank.load()
    bank.memory.spawned("m", PID)
    bank.now += QUIET_S
    assert bank.lend() is None
    bank.memory.loaded("m")
    assert bank.lend() is not None
    bank.memory.never_started(ERRAND)
    bank.memory.stopping("m")
    assert bank.lend() is None


def test_nothing_is_lent_soon_after_the_start_or_after_a_model_was_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bank = Bank(monkeypatch, tmp_path, CARD)
    bank.now -= 0.1
    assert bank.lend() is None
    bank.now += 0.1
    assert bank.lend() is not None
    bank.memory.never_started(ERRAND)
    bank.memory.decide("m", (), ())
    bank.now += QUIET_S - 0.1
    assert bank.lend() is None
    bank.now += 0.1
    assert bank.lend() is not None


def test_it_is_called_back_as_soon_as_a_model_is_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bank = Bank(monkeypatch, tmp_path, CARD)
    bank.lend()
    bank.memory.spawned(ERRAND, PID)
    assert bank.called_back == 0
    # No list of processes has been seen here yet, so what the card gains could be anybody's.
    assert isinstance(bank.memory.decide("m", (), ()), Wait)
    assert bank.called_back == 1
    bank.memory.gone(ERRAND, reaped=True)
    bank.now += 0.1
    bank.load()
    assert not bank.memory.holds(ERRAND)


def test_where_processes_are_shown_a_model_need_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bank = Bank(monkeypatch, tmp_path, CARD)
    bank.lend()
    bank.memory.spawned(ERRAND, PID)
    bank.probe.readings["GPU-a"] = replace(CARD, used_bytes=300 * MIB, process_bytes={PID: 300 * MIB})
    bank.load()
    assert bank.called_back == 1
