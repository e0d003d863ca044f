"""The certificate: what handshakes show, before and after its files change. The certificates are real."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from corral.drivers.tls import Certificate
from corral.errors import SettingsError
from tests.in_a_loop import in_a_loop
from tests.support import make_certificate


class Pair(NamedTuple):
    cert: Path
    key: Path

    def copy_to(self, other: Pair) -> None:
        other.key.write_bytes(self.key.read_bytes())
        other.cert.write_bytes(self.cert.read_bytes())


def make_pair(folder: Path, name: str, kind: str = "ec") -> Pair:
    """A certificate for `name`, signed by itself."""
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    make_certificate(*pair, name=name, kind=kind)
    return pair


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Pair]:
    folder = tmp_path_factory.mktemp("certificates")
    return make_pair(folder, "first"), make_pair(folder, "second")


@pytest.fixture
def pair(tmp_path: Path, pairs: tuple[Pair, Pair]) -> Pair:
    """The first one, where a test may change it."""
    own = Pair(tmp_path / "tls.crt", tmp_path / "tls.key")
    pairs[0].copy_to(own)
    return own


async def shown(context: ssl.SSLContext, server_name: str | None = "localhost") -> bytes:
    """The certificate that a client gets to see, in a handshake over real sockets, with ALPN as promised."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.set_alpn_protocols(["h2", "http/1.1"])
    port = server.sockets[0].getsockname()[1]
    _reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=client, server_hostname=server_name or ""
    )
    connection = writer.get_extra_info("ssl_object")
    assert connection.selected_alpn_protocol() == "http/1.1"
    found: bytes = connection.getpeercert(binary_form=True)
    writer.close()
    server.close()
    return found


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.cert.read_text())


@in_a_loop
async def test_a_changed_pair_is_shown_from_the_next_handshake_on(
    pair: Pair, pairs: tuple[Pair, Pair]
) -> None:
    certificate = Certificate(pair.cert, pair.key)
    assert await shown(certificate.context) == der(pairs[0])
    pairs[1].copy_to(pair)
    certificate.reload_if_changed()
    assert await shown(certificate.context) == der(pairs[1])


@in_a_loop
async def test_a_renewal_may_bring_a_key_of_another_kind(pair: Pair, tmp_path: Path) -> None:
    certificate = Certificate(pair.cert, pair.key)
    renewed = make_pair(tmp_path, "renewed", kind="rsa")
    renewed.copy_to(pair)
    certificate.reload_if_changed()
    assert await shown(certificate.context) == der(renewed)


@in_a_loop
async def test_a_pair_that_breaks_just_after_it_was_read_stays_in_force_as_it_was_read(
    pair: Pair, pairs: tuple[Pair, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Certificate(pair.cert, pair.key)
    load = ssl.SSLContext.load_cert_chain

    def load_and_lose_the_key(*arguments: Any, **options: Any) -> None:
        load(*arguments, **options)
        pair.key.write_bytes(pairs[0].key.read_bytes())

    pairs[1].copy_to(pair)
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_and_lose_the_key)
    certificate.reload_if_changed()
    assert await shown(certificate.context) == der(pairs[1])
    certificate.reload_if_changed()
    assert await shown(certificate.context) == der(pairs[1])


@in_a_loop
async def test_without_a_server_name_too_the_new_certificate_is_shown(
    pair: Pair, pairs: tuple[Pair, Pair]
) -> None:
    certificate = Certificate(pair.cert, pair.key)
    pairs[1].copy_to(pair)
    certificate.reload_if_changed()
    assert await shown(certificate.context, server_name=None) == der(pairs[1])


@in_a_loop
async def test_files_that_are_opened_to_us_later_are_read_then(
    pair: Pair, pairs: tuple[Pair, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal writes its key for root alone, and a hook then opens it to others by its mode alone."""
    certificate = Certificate(pair.cert, pair.key)
    pairs[1].copy_to(pair)
    with monkeypatch.context() as closed:
        closed.setattr(ssl.SSLContext, "load_cert_chain", refuse)
        certificate.reload_if_changed()
    pair.key.chmod(0o640)
    certificate.reload_if_changed()
    assert await shown(certificate.context) == der(pairs[1])


def refuse(*_arguments: Any, **_options: Any) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


@in_a_loop
async def test_half_of_a_renewal_changes_nothing_and_its_other_half_everything(
    pair: Pair, pairs: tuple[Pair, Pair], caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(pair.cert, pair.key)
    pair.cert.write_bytes(pairs[1].cert.read_bytes())
    certificate.reload_if_changed()
    certificate.reload_if_changed()
    assert await shown(certificate.context) == der(pairs[0])
    assert [record.getMessage().count("stays in force") for record in caplog.records] == [1]
    pair.key.write_bytes(pairs[1].key.read_bytes())
    certificate.reload_if_changed()
    assert await shown(certificate.context) == der(pairs[1])


@in_a_loop
async def test_files_that_go_leave_the_certificate_in_force(pair: Pair, pairs: tuple[Pair, Pair]) -> None:
    certificate = Certificate(pair.cert, pair.key)
    pair.cert.unlink()
    certificate.reload_if_changed()
    assert await shown(certificate.context) == der(pairs[0])


@pytest.mark.parametrize("which", ["cert", "key"])
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(pair: Pair, which: str) -> None:
    pipe: Path = getattr(pair, which)
    pipe.unlink()
    os.mkfifo(pipe)
    with pytest.raises(SettingsError, match="no plain file"):
        Certificate(*pair)


@in_a_loop
async def test_the_key_may_be_in_the_certificates_file(tmp_path: Path, pairs: tuple[Pair, Pair]) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(pairs[0].cert.read_bytes() + pairs[0].key.read_bytes())
    assert await shown(Certificate(both, None).context) == der(pairs[0])


def test_a_start_without_a_certificate_says_what_is_missing(pair: Pair, pairs: tuple[Pair, Pair]) -> None:
    with pytest.raises(SettingsError, match=r"TLS_CERT_FILE .*gone.* No such file"):
        Certificate(pair.cert.with_name("gone"), pair.key)
    with pytest.raises(SettingsError, match=r"are no pair: KEY_VALUES_MISMATCH"):
        Certificate(pair.cert, pairs[1].key)
    pair.cert.write_text("no certificate")
    with pytest.raises(SettingsError, match=r"are no pair: "):
        Certificate(pair.cert, pair.key)
