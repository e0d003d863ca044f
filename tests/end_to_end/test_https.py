"""HTTPS without a proxy: the gateway's own certificate, renewed while it serves, and clients that leave."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import StartCorral
from tests.end_to_end.talk import CHAT, DONE, chat, content, events, request
from tests.support import KEY, Answer, make_certificate, ping
from tests.waiting import wait_until

# A second model whose answers never end.
ENDLESS = {
    "models": {
        "demo": {"model_path": "demo.gguf"},
        "endless": {
            "model_path": "demo.gguf",
            "flags": ["--stand-in", '{"tokens": 100000, "token_delay_s": 0.05}'],
        },
    }
}


class Secure:
    """An instance that speaks HTTPS, and a client that trusts its certificate of the moment and no other."""

    def __init__(self, folder: Path, start: StartCorral, engine: Path) -> None:
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"
        self.renew()
        files = {"TLS_CERT_FILE": str(self.cert), "TLS_KEY_FILE": str(self.key)}
        self.corral = start(engine=engine, environment=files, config=ENDLESS, until_up=False)
        wait_until(
            lambda: ping(self.corral.health_url) == 200, "the health port, which stays plain, says 200"
        )

    def renew(self) -> None:
        make_certificate(self.cert, self.key)

    @property
    def access_log(self) -> str:
        file = self.corral.data / "logs" / "api_access.log"
        return file.read_text() if file.exists() else ""

    def connect(self) -> ssl.SSLSocket:
        trust = ssl.create_default_context(cafile=str(self.cert))
        plain = socket.create_connection(("localhost", urlsplit(self.corral.url).port), 20)
        return trust.wrap_socket(plain, server_hostname="localhost")

    @contextmanager
    def open(self, document: object) -> Iterator[http.client.HTTPResponse]:
        """Read an answer as it comes. Leaving early closes the connection."""
        trust = ssl.create_default_context(cafile=str(self.cert))
        port = urlsplit(self.corral.url).port
        connection = http.client.HTTPSConnection("localhost", port, context=trust, timeout=20)
        try:
            connection.request("POST", CHAT, json.dumps(document), {"Authorization": f"Bearer {KEY}"})
            with connection.getresponse() as answer:
                yield answer
        finally:
            connection.close()

    def ask(self, document: object) -> Answer:
        with self.open(document) as answer:
            return Answer(answer.status, answer.headers, answer.read())

    def is_trusted(self) -> bool:
        try:
            return self.ask(chat()).status == 200
        except ssl.SSLCertVerificationError:
            return False


@pytest.fixture
def secure(tmp_path: Path, start_corral: StartCorral, stand_in: Path) -> Secure:
    return Secure(tmp_path, start_corral, stand_in)


def test_https_with_a_certificate_that_is_renewed(secure: Secure) -> None:
    corral = secure.corral
    assert content(secure.ask(chat()))
    assert events(secure.ask(chat(stream=True)).body)[-1] == DONE
    assert f"https://0.0.0.0:{urlsplit(corral.url).port}" in corral.log_text
    assert ping(corral.url) is None, "the port speaks HTTPS only"
    assert not re.search("WARNING|ERROR", corral.log_text), "and whoever does not is no news"
    with secure.open(chat("endless", stream=True)) as stream:
        secure.renew()
        wait_until(secure.is_trusted, "the new certificate is in force")
        for _ in range(100):
            assert stream.readline(), "the connection that was open before goes on"
    secure.key.write_text("no key")
    wait_until(lambda: "stays in force" in corral.log_text, "it is told why nothing changes")
    assert secure.is_trusted()


def test_encrypted_requests_in_a_row_are_answered_in_order(secure: Secure) -> None:
    with secure.connect() as client, client.makefile("rb") as answers:
        client.sendall(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n" * 40)
        client.sendall(b"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        statuses = re.findall(rb"HTTP/1.1 (\d+) ", answers.read())
    assert statuses == [b"200"] * 40 + [b"404"]


def test_a_goodbye_before_the_answer_means_gone(secure: Secure) -> None:
    """TLS knows no half-closed connection that is of use: the answer could not be sent any more."""
    with secure.connect() as client:
        client.sendall(request(secure.corral, chat("endless")))
        client.unwrap()
    wait_until(lambda: "client_gone" in secure.access_log, "it is noticed")


def test_a_client_that_leaves_an_encrypted_stream_is_noticed(secure: Secure) -> None:
    with secure.open(chat("endless", stream=True)) as stream:
        assert stream.readline().startswith(b"data: ")
    wait_until(lambda: "client_gone" in secure.access_log, "it is noticed")
