"""Our reading and writing against the standard library's own server and client side.

The library is more lenient than we are, so it judges only messages that both take: those must mean the
same to both.
"""

from __future__ import annotations

import http.client
import http.server
import io
import socket
from typing import Any, cast

import pytest

from corral.formats.http1 import LAST_CHUNK, RequestHead, ResponseHead, chunk, request_head, response_head
from tests.formats.http1.feeding import read_answers, read_requests
from tests.formats.http1.samples import ANSWERS, REQUESTS


class BytesSocket:
    """As much of a socket as http.client asks for."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def library_answer(data: bytes, method: str) -> tuple[http.client.HTTPResponse, bytes]:
    response = http.client.HTTPResponse(cast(socket.socket, BytesSocket(data)), method=method)
    response.begin()
    return response, response.read()


class LibraryRequest(http.server.BaseHTTPRequestHandler):
    """The library's server side, over bytes instead of a socket."""

    protocol_version = "HTTP/1.1"

    def __init__(self, data: bytes) -> None:
        self.rfile = io.BytesIO(data)
        self.wfile = io.BytesIO()
        self.raw_requestline = self.rfile.readline()
        self.understood = self.parse_request()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_means_the_same_to_the_library(name: str) -> None:
    method, data, eof = ANSWERS[name]
    # The library skips 100 only, not the other interim answers.
    data = data.replace(b"103 Early Hints", b"100 Continue")
    theirs, body = library_answer(data, method)
    (ours,) = read_answers([data], [method], eof=eof).messages
    head = ours.head
    assert isinstance(head, ResponseHead)
    assert (head.status, head.reason.decode("latin-1").strip()) == (theirs.status, theirs.reason)
    assert head.version[0] * 10 + head.version[1] == theirs.version
    assert [(n.decode(), v.decode("latin-1")) for n, v in head.headers] == [
        (n.lower(), v) for n, v in theirs.getheaders() if n.lower() != "content-length"
    ]
    length = theirs.getheader("content-length")
    assert ours.content_length == (None if length is None else int(length))
    assert ours.body == body
    assert head.keep_alive is not theirs.will_close or method == "HEAD" or head.status in (204, 304)


# The library takes an empty line for a request.
@pytest.mark.parametrize("name", [name for name in REQUESTS if name != "empty lines first"])
def test_a_request_means_the_same_to_the_library(name: str) -> None:
    theirs = LibraryRequest(REQUESTS[name])
    assert theirs.understood
    (ours,) = read_requests([REQUESTS[name]]).messages
    head = ours.head
    assert isinstance(head, RequestHead)
    assert (head.method, head.target) == (theirs.command, theirs.path)
    if name != "close":  # the library does not read Connection as a list
        assert head.keep_alive is not theirs.close_connection
    ours_alone = {"host"} if name == "absolute form" else set()
    assert {n.decode(): v.decode("latin-1") for n, v in head.headers if n.decode() not in ours_alone} == {
        n.lower(): v.strip()
        for n, v in theirs.headers.items()
        if n.lower() not in ours_alone | {"content-length"}
    }
    length = theirs.headers["content-length"]
    assert ours.content_length == (None if length is None else int(length))


@pytest.mark.parametrize("status", [200, 201, 400, 401, 404, 413, 429, 431, 500, 501, 502, 503, 504, 505])
def test_the_library_reads_what_we_write(status: int) -> None:
    headers = [(b"content-type", b"application/json"), (b"x-name", b"J\xfcrgen"), (b"x-empty", b"")]
    length = response_head(status, [*headers, (b"content-length", b"5")]) + b"hello"
    chunked = (
        response_head(status, [*headers, (b"transfer-encoding", b"chunked")])
        + chunk(b"he")
        + chunk(b"")
        + chunk(b"llo")
        + LAST_CHUNK
    )
    for data in (length, chunked):
        response, body = library_answer(data, "GET")
        assert (response.status, response.version, body) == (status, 11, b"hello")
        assert response.reason == http.HTTPStatus(status).phrase
        assert response.getheader("x-name") == "J\xfcrgen"
        assert response.getheader("x-empty") == ""
        assert not response.will_close


def test_the_library_reads_the_requests_we_write() -> None:
    request = LibraryRequest(request_head("POST", "/v1/x?y=1", [(b"host", b"h"), (b"content-length", b"0")]))
    assert request.understood
    assert (request.command, request.path, request.request_version) == ("POST", "/v1/x?y=1", "HTTP/1.1")
    assert request.headers.items() == [("host", "h"), ("content-length", "0")]
