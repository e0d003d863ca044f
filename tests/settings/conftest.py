"""One fixture for the whole room: a desk."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.settings import places
from tests.settings.desk import Desk


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk(tmp_path)
    monkeypatch.setattr(places, "IMAGE", desk.image)
    monkeypatch.setattr(places, "VOLUMES", desk.volumes)
    return desk
