"""The owner of a port: this very process, a child, a grandchild, and nobody."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from corral.drivers import port_holder
from corral.drivers.port_holder import is_held_by
from tests.support import free_port

LISTENER = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@contextmanager
def running(*command: str) -> Iterator[tuple[int, int]]:
    """A process that leads a group of its own, in which somebody listens: its pid, and the port."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.communicate()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_port_that_we_listen_on_is_ours_and_a_childs_not(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        port = listener.getsockname()[1]
        assert is_held_by(port, os.getpid()) is True
        with running(sys.executable, "-c", LISTENER) as (pid, its_port):
            assert is_held_by(port, pid) is False
            assert is_held_by(its_port, pid) is True
    assert is_held_by(port, os.getpid()) is False


def test_a_program_may_listen_through_one_that_it_has_started() -> None:
    script = f"'{sys.executable}' -c '{LISTENER}'; true"
    with running("sh", "-c", script) as (pid, port):
        assert is_held_by(port, pid) is True


def test_a_connection_to_a_port_is_no_hold_of_it() -> None:
    with running(sys.executable, "-c", LISTENER) as (_pid, port):
        connection = socket.create_connection(("127.0.0.1", port))
        assert is_held_by(port, os.getpid()) is False
        connection.close()


def test_nobody_holds_a_free_port_and_the_dead_hold_none() -> None:
    assert is_held_by(free_port(), os.getpid()) is False
    with running(sys.executable, "-c", LISTENER) as (pid, port):
        pass
    assert is_held_by(port, pid) is False


def test_without_the_kernels_tables_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_holder, "_TABLES", ("/nowhere/tcp",))
    assert is_held_by(free_port(), os.getpid()) is None
