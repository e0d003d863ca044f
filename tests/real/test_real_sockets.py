"""The real llama-server is reached by the socket beside its port, and by its port where that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.talk import (
    ENDLESS,
    LARGE_CONTEXT,
    chat,
    engine_log,
    model_status,
    next_event,
    open_chat,
)
from tests.support import Corral, running_corral
from tests.waiting import wait_until

SETTINGS = {"models": {"demo": {"model_path": "demo.gguf", "flags": [*LARGE_CONTEXT, "--parallel", "3"]}}}
ESTABLISHED = b"01"


@pytest.fixture
def corral(tmp_path: Path, llama_server: Path, demo_files: Path) -> Iterator[Corral]:
    with running_corral(tmp_path, llama_server, demo_files, config=SETTINGS) as instance:
        yield instance


def connections_to(port: int) -> int:
    """How many there are in the kernel's table (proc_pid_net(5)), seen from the side that has asked."""
    with open("/proc/net/tcp", "rb") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    remote_ports = [int(row[2].rpartition(b":")[2], 16) for row in rows if row[3] == ESTABLISHED]
    return remote_ports.count(port)


def test_a_stream_comes_by_the_socket_and_by_the_port_when_it_is_gone(corral: Corral) -> None:
    with open_chat(corral, **ENDLESS) as stream:
        next_event(stream)
        port = model_status(corral)["port"]
        near = corral.directory / "run" / "engines" / f"{port}.sock"
        wait_until(lambda: f"listening on unix://{near}" in engine_log(corral), "it listens there")
        assert connections_to(port) == 0
        near.unlink()
        with open_chat(corral, **ENDLESS) as other:
            next_event(other)
            assert connections_to(port) == 1
    assert corral.ask("/v1/chat/completions", chat(max_tokens=1)).status == 200
