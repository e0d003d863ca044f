"""One fixture for the whole room: a gatehouse that is yet to be opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.handlers.gatehouse import Gatehouse


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gatehouse:
    # How long a broken connection may turn out to have been a death: here every engine lives.
    monkeypatch.setattr("corral.fleet.lease.DEATH_NOTICE_S", 0.01)
    return Gatehouse(tmp_path)
