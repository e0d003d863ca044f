"""What only the tests of the whole need: an engine that has faults to order."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stand_in_launcher import write_launcher


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An executable stand-in for llama-server: it answers without a model, and fails as it is told to."""
    return write_launcher(tmp_path_factory.mktemp("stand-in"))
