"""Listening sockets against the real kernel: which addresses reach them, and what a refusal says."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

import pytest

from corral.drivers import listening
from corral.errors import SettingsError


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@contextlib.contextmanager
def listen(host: str | None, port: int = 0) -> Iterator[tuple[list[socket.socket], int]]:
    sockets = listening.listen_sockets(host, port)
    try:
        yield sockets, sockets[0].getsockname()[1]
    finally:
        for each in sockets:
            each.close()


def reaches(address: str, port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection((address, port), timeout=5):
        return True
    return False


@needs_ipv6
@pytest.mark.parametrize("host", [None, "", "*", "::"], ids=["none", "empty", "star", "any-ipv6"])
def test_all_interfaces_means_one_socket_for_both_families(host: str | None) -> None:
    with listen(host) as (sockets, port):
        assert len(sockets) == 1
        assert sockets[0].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
        assert reaches("127.0.0.1", port)
        assert reaches("::1", port)


@needs_ipv6
def test_an_explicit_ipv4_wildcard_means_ipv4_only() -> None:
    with listen("0.0.0.0") as (sockets, port):
        assert [each.family for each in sockets] == [socket.AF_INET]
        assert reaches("127.0.0.1", port)
        assert not reaches("::1", port)


@needs_ipv6
def test_one_ipv6_address_takes_no_ipv4() -> None:
    with listen("::1") as (_, port):
        assert reaches("::1", port)
        assert not reaches("127.0.0.1", port)


def test_a_name_is_listened_on_at_its_addresses() -> None:
    with listen("localhost") as (sockets, port):
        assert reaches("localhost", port)
        assert all(each.getsockname()[0] in ("127.0.0.1", "::1") for each in sockets)


def test_without_ipv6_all_interfaces_means_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def only_ipv4(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, kind)

    monkeypatch.setattr(socket, "socket", only_ipv4)
    sockets = listening.listen_sockets(None, 0)
    assert [each.family for each in sockets] == [socket.AF_INET]
    sockets[0].close()


@pytest.mark.parametrize("host", [None, "127.0.0.1"], ids=["all-interfaces", "loopback"])
def test_a_taken_port_is_named_with_what_to_do(host: str | None) -> None:
    taken = r"port \d+: the port is taken: .*set another port"
    with listen("127.0.0.1") as (_, port), pytest.raises(SettingsError, match=taken) as refusal:
        listening.listen_sockets(host, port)
    assert f"port {port}:" in str(refusal.value)


def test_a_port_is_free_again_right_after_a_connection_on_it_closed() -> None:
    with listen("127.0.0.1") as (sockets, port):
        client = socket.create_connection(("127.0.0.1", port))
        sockets[0].setblocking(True)
        accepted, _ = sockets[0].accept()
        accepted.close()
        client.close()
    with listen("127.0.0.1", port):
        assert reaches("127.0.0.1", port)


def give_name(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every host name have these addresses."""

    def resolve(_host: str, port: int, **_hints: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [
            (family, socket.SOCK_STREAM, 0, "", (address, port))
            for family, address in zip(families, addresses, strict=True)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_a_name_with_a_taken_address_is_refused_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.2") as (_, port):
        give_name(monkeypatch, "127.0.0.1", "127.0.0.2")
        with pytest.raises(SettingsError, match="taken"):
            listening.listen_sockets("some-name", port)
        monkeypatch.undo()
        assert not reaches("127.0.0.1", port)


def test_a_names_address_that_this_machine_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    give_name(monkeypatch, "2001:db8::1", "127.0.0.1")
    with listen("some-name") as (sockets, _):
        assert [each.getsockname()[0] for each in sockets] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        pytest.param("192.0.2.1", 0, "no such address", id="address-of-another-machine"),
        pytest.param("no-such-host.invalid", 0, "no-such-host.invalid", id="unknown-name"),
        pytest.param("x" * 70 + ".invalid", 0, "set another host", id="impossible-name"),
        pytest.param(None, 70_000, "70000", id="port-out-of-range"),
        pytest.param("127.0.0.1", -1, "-1", id="port-negative"),
    ],
)
def test_an_impossible_place_is_a_settings_error(host: str | None, port: int, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        listening.listen_sockets(host, port)


@pytest.mark.parametrize(
    ("peername", "address"),
    [
        pytest.param(("192.0.2.7", 5000), "192.0.2.7", id="ipv4"),
        pytest.param(("::ffff:192.0.2.7", 5000, 0, 0), "192.0.2.7", id="ipv4-through-ipv6"),
        pytest.param(("2001:db8::7", 5000, 0, 0), "2001:db8::7", id="ipv6"),
        pytest.param(None, "-", id="gone-already"),
        pytest.param("", "-", id="unix-socket"),
    ],
)
def test_a_clients_address_is_written_as_people_do(peername: tuple[str, int] | None, address: str) -> None:
    assert listening.client_address(peername) == address


@pytest.mark.parametrize(
    ("host", "everywhere"),
    [
        (None, True),
        ("", True),
        ("*", True),
        ("::", True),
        ("0.0.0.0", True),
        ("127.0.0.1", False),
        ("::1", False),
    ],
)
def test_everywhere_is_told_from_a_place(host: str | None, everywhere: bool) -> None:
    assert listening.is_everywhere(host) is everywhere
