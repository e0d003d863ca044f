"""Which port the next llama-server gets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from corral.drivers.ports import is_in_use, lowest_free_port


@pytest.fixture
def free_range() -> tuple[int, int]:
    """Three neighbouring ports that nobody uses."""
    # Test runs beside this one look elsewhere.
    start = 18_000 + os.getpid() % 3_000 * 3
    for first in range(start, start + 300, 3):
        if not any(is_in_use(port) for port in range(first, first + 3)):
            return first, first + 2
    pytest.skip("no three neighbouring ports are free")


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_the_lowest_comes_first(free_range: tuple[int, int]) -> None:
    first, last = free_range
    assert lowest_free_port(first, last) == first


def test_taken_ones_are_skipped(free_range: tuple[int, int]) -> None:
    first, last = free_range
    assert lowest_free_port(first, last, {first, first + 1}) == first + 2


def test_there_may_be_none(free_range: tuple[int, int]) -> None:
    first, last = free_range
    assert lowest_free_port(first, last, range(first, last + 1)) is None


@pytest.mark.parametrize(
    ("family", "address", "dual_stack"),
    [
        pytest.param(socket.AF_INET, "127.0.0.1", False, id="loopback"),
        pytest.param(socket.AF_INET, "0.0.0.0", False, id="any IPv4"),
        pytest.param(socket.AF_INET6, "::1", False, id="IPv6 loopback"),
        pytest.param(socket.AF_INET6, "::", False, id="any IPv6"),
        pytest.param(socket.AF_INET6, "::", True, id="dual stack"),
    ],
)
def test_a_port_that_somebody_listens_on_is_skipped(
    family: socket.AddressFamily,
    address: str,
    dual_stack: bool,
    free_range: tuple[int, int],
    sockets: ExitStack,
) -> None:
    first, last = free_range
    listener = socket.create_server((address, first), family=family, dualstack_ipv6=dual_stack)
    sockets.enter_context(listener)
    assert lowest_free_port(first, last) == first + 1


def test_remembered_connections_do_not_occupy_a_port(free_range: tuple[int, int], sockets: ExitStack) -> None:
    first, last = free_range
    with socket.create_server(("127.0.0.1", first)) as listener:
        client = sockets.enter_context(socket.create_connection(("127.0.0.1", first)))
        server, _address = listener.accept()
        # Who closes first keeps the connection in TIME_WAIT: here the server's side.
        server.close()
        assert client.recv(1) == b""
    client.close()
    assert is_bindable_only_with_reuse(first)
    assert lowest_free_port(first, last) == first


def is_bindable_only_with_reuse(port: int) -> bool:
    with socket.socket() as plain:
        try:
            plain.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
