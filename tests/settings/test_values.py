"""The values: what they derive, and what they never show."""

from __future__ import annotations

import dataclasses

import pytest

from tests.settings.desk import Desk


@pytest.mark.parametrize(
    ("start", "end"), [(8085, 8584), (65_000, 65_499), (65_100, 65_535), (65_535, 65_535)]
)
def test_llama_servers_have_500_ports_as_far_as_ports_go(desk: Desk, start: int, end: int) -> None:
    assert desk.load({"server_pool": {"port_start": start}}).herd.port_end == end
    single = desk.load(environ={"MODEL_PATH": "/m.gguf", "PORT_BACKEND": str(start)}).single_model
    assert single is not None
    assert single.port_end == end


def test_secrets_are_not_shown(desk: Desk) -> None:
    settings = desk.load(environ={"API_KEY": "sk-very-secret", "SOMETHING": "private"})
    assert settings.access.env_key == "sk-very-secret"
    for text in (repr(settings), str(settings), repr(settings.access)):
        assert "sk-very-secret" not in text
        assert "private" not in text


def test_settings_cannot_be_changed(desk: Desk) -> None:
    settings = desk.load()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.server.port = 1  # type: ignore[misc]
