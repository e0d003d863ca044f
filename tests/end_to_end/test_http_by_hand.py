"""HTTP as no client library would speak it: by hand, in pieces, too much, too slow, and in bad faith."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from corral.formats.demo_models import SCRIPT
from tests.end_to_end.talk import (
    CHAT,
    RawAnswer,
    chat,
    events,
    metric,
    request,
    streamed_text,
    wire,
)
from tests.support import Corral, ask, running_corral
from tests.waiting import wait_until

HOST = "Host: corral.test\r\n"
LIVE = f"GET /live HTTP/1.1\r\n{HOST}\r\n"
BODY_MAX_BYTES = 10 * 2**20


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, stand_in: Path, demo_files: Path) -> Iterator[Corral]:
    """Patience of half a second, and an engine that works on 256 requests at a time."""
    patience = {"CLIENT_HEADER_TIMEOUT": "0.5", "CLIENT_BODY_TIMEOUT": "0.5", "KEEPALIVE_TIMEOUT": "0.5"}
    models = {"demo": {"model_path": "demo.gguf", "flags": ["--parallel", "256"]}}
    with running_corral(
        tmp_path_factory.mktemp("impatient"),
        stand_in,
        demo_files,
        environment=patience,
        config={"models": models},
    ) as instance:
        yield instance


def text_of(answer: RawAnswer) -> str:
    assert answer.status == 200, answer.body
    text: str = json.loads(answer.body)["choices"][0]["message"]["content"]
    return text


# Good HTTP ---------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(corral: Corral) -> None:
    with wire(corral) as connection:
        root = f"GET / HTTP/1.1\r\n{HOST}\r\n".encode()
        last = f"GET /live HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n".encode()
        connection.say(LIVE.encode() + request(corral, chat()) + root + request(corral, chat()) + last)
        assert connection.hear().body == b'{"status": "ok"}'
        assert text_of(connection.hear("POST")) == SCRIPT
        assert json.loads(connection.hear().body)["name"] == "corral"
        assert text_of(connection.hear("POST")) == SCRIPT
        assert connection.hear().headers["connection"] == "close"
        assert connection.at_end()


def test_a_client_that_pipelines_and_reads_nothing_fills_nobodys_memory(impatient: Corral) -> None:
    before = metric(impatient, "process_resident_memory_bytes")
    burst = f"GET /metrics HTTP/1.1\r\n{HOST}\r\n".encode() * 1000
    with wire(impatient) as connection:
        connection.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):  # when the sockets are full, since nobody reads on
            connection.say(*[burst] * 1000)
        assert ask(f"{impatient.url}/ping").status == 200
        assert metric(impatient, "process_resident_memory_bytes") - before < 20 * 2**20


def test_a_chunked_body_is_read_whatever_its_pieces(corral: Corral) -> None:
    body = json.dumps(chat()).encode()
    first, rest = body[:20], body[20:]
    chunks = b'%x;why="not"\r\n%b\r\n%X\r\n%b\r\n0\r\nTrailer: 1\r\n\r\n' % (
        len(first),
        first,
        len(rest),
        rest,
    )
    data = request(corral, {}, framing="Transfer-Encoding: chunked") + chunks
    with wire(corral) as connection:
        for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
            connection.say(*pieces)
            assert text_of(connection.hear("POST")) == SCRIPT


def test_head_tells_what_get_would_and_sends_no_body(corral: Corral) -> None:
    key = f"Authorization: Bearer {corral.key}\r\n"
    with wire(corral) as connection:
        for path in ("/", "/v1/models", "/v1/models/demo", "/nothing-here"):
            connection.say(f"HEAD {path} HTTP/1.1\r\n{HOST}{key}\r\n")
            head = connection.hear("HEAD")
            connection.say(f"GET {path} HTTP/1.1\r\n{HOST}{key}\r\n")
            whole = connection.hear()
            assert (head.status, head.headers["content-length"]) == (whole.status, str(len(whole.body)))


def test_http_10_closes_unless_it_asks_not_to(corral: Corral) -> None:
    with wire(corral) as connection:
        connection.say("GET /live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert connection.hear().headers["connection"] == "keep-alive"
        connection.say("GET /live HTTP/1.0\r\n\r\n")
        answer = connection.hear()
        assert (answer.status, answer.version, answer.headers["connection"]) == (200, "HTTP/1.1", "close")
        assert connection.at_end()


def test_http_10_gets_its_stream_without_chunks(corral: Corral) -> None:
    with wire(corral) as connection:
        connection.say(request(corral, chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = connection.hear("POST")
    assert answer.headers["transfer-encoding"] is None
    *parts, last = events(answer.body)
    assert (streamed_text(parts), last) == (SCRIPT, "[DONE]")


@pytest.mark.parametrize(
    "path", ["/v1/models/demo", "/v1/models/d%65mo", "http://corral.test/v1/models/demo"]
)
def test_a_path_may_be_written_in_several_ways(corral: Corral, path: str) -> None:
    with wire(corral) as connection:
        connection.say(f"GET {path} HTTP/1.1\r\n{HOST}X-API-Key: {corral.key}\r\n\r\n")
        assert json.loads(connection.hear().body)["id"] == "demo"


def test_a_method_that_a_path_does_not_take_is_told_which_it_takes(corral: Corral) -> None:
    with wire(corral) as connection:
        connection.say(f"DELETE {CHAT} HTTP/1.1\r\n{HOST}\r\n")
        answer = connection.hear()
        assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
        assert answer.error()["code"] == "method_not_allowed"
        connection.say(f"OPTIONS {CHAT} HTTP/1.1\r\n{HOST}\r\n", f"OPTIONS * HTTP/1.1\r\n{HOST}\r\n")
        assert [connection.hear().status, connection.hear().status] == [204, 204]


# Expect: 100-continue ----------------------------------------------------------------------------


def curl(corral: Corral, key: str, body: Path) -> tuple[str, str]:
    """What curl received, and its own account of the conversation."""
    program = shutil.which("curl")
    assert program, "curl is needed: the README's commands use it, too"
    headers = ["-H", f"Authorization: Bearer {key}", "-H", "Expect: 100-continue"]
    command = [program, "-sv", corral.url + CHAT, *headers, "--expect100-timeout", "20"]
    ran = subprocess.run(
        [*command, "--data-binary", f"@{body}"], capture_output=True, text=True, timeout=30, check=True
    )
    return ran.stdout, ran.stderr


def test_curl_waits_for_100_continue_and_gets_it(corral: Corral, tmp_path: Path) -> None:
    large = tmp_path / "body.json"
    large.write_text(json.dumps(chat(padding="x" * 2_000_000)))
    answer, account = curl(corral, corral.key, large)
    assert "< HTTP/1.1 100 Continue" in account
    assert "< HTTP/1.1 200 OK" in account
    assert json.loads(answer)["choices"][0]["message"]["content"] == SCRIPT


def test_curl_need_not_send_a_body_that_nobody_wants(corral: Corral, tmp_path: Path) -> None:
    large = tmp_path / "body.json"
    large.write_text(json.dumps(chat(padding="x" * 2_000_000)))
    answer, account = curl(corral, "sk-not-a-key-of-this-place", large)
    assert "100 Continue" not in account
    assert "< HTTP/1.1 401 Unauthorized" in account
    assert json.loads(answer)["error"]["code"] == "invalid_api_key"


# Too much ----------------------------------------------------------------------------------------

TOO_MUCH = {
    "a long path": (f"GET /{'x' * 9000} HTTP/1.1\r\n{HOST}\r\n", 414, "uri_too_long"),
    "a long path without end": (f"GET /{'x' * 9000}", 414, "uri_too_long"),
    "a long header": (
        f"GET / HTTP/1.1\r\n{HOST}X-Long: {'x' * 9000}\r\n\r\n",
        431,
        "header_fields_too_large",
    ),
    "many headers": (
        f"GET / HTTP/1.1\r\n{HOST}" + "X-Many: 1\r\n" * 64 + "\r\n",
        431,
        "header_fields_too_large",
    ),
    "a large head": (
        f"GET / HTTP/1.1\r\n{HOST}" + f"X-Many: {'x' * 8000}\r\n" * 60 + "\r\n",
        431,
        "header_fields_too_large",
    ),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_a_head_beyond_the_limits_is_refused_and_the_connection_closed(corral: Corral, case: str) -> None:
    data, status, code = TOO_MUCH[case]
    with wire(corral) as connection:
        connection.say(data)
        answer = connection.hear()
        assert (answer.status, answer.error()["code"]) == (status, code)
        assert answer.headers["connection"] == "close"
        assert connection.at_end()


def test_a_body_beyond_the_limit_is_refused_before_it_is_sent(corral: Corral) -> None:
    with wire(corral) as connection:
        connection.say(request(corral, {}, framing=f"Content-Length: {BODY_MAX_BYTES + 1}"))
        answer = connection.hear("POST")
        assert (answer.status, answer.error()["code"]) == (413, "payload_too_large")
        assert connection.at_end()


def test_a_body_that_grows_beyond_the_limit_is_refused_when_it_does(corral: Corral) -> None:
    chunk = b"%x\r\n%b\r\n" % (2**20, b" " * 2**20)
    with wire(corral) as connection:
        connection.say(request(corral, {}, framing="Transfer-Encoding: chunked"))
        connection.say(*[chunk] * 10, b"1\r\n")
        connection.say(b" ")
        answer = connection.hear("POST")
        assert (answer.status, answer.error()["code"]) == (413, "payload_too_large")
        assert connection.at_end()


# Bad faith ---------------------------------------------------------------------------------------

# Each hides a second request. If anything between a client and Corral reads the first one differently, an
# answer to the second goes to somebody else.
SMUGGLED = "GET /ping HTTP/1.1\r\nHost: corral.test\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
POST = "POST /v1/chat/completions HTTP/1.1\r\n"
BAD_FAITH = {
    "both framings": f"{POST}{HOST}Content-Length: 5\r\n{CHUNKED}\r\n0\r\n\r\n{SMUGGLED}",
    "both, the other order": f"{POST}{HOST}{CHUNKED}Content-Length: 5\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "two lengths": f"{POST}{HOST}Content-Length: 0\r\nContent-Length: 44\r\n\r\n{SMUGGLED}",
    "two equal lengths": f"{POST}{HOST}Content-Length: 0\r\nContent-Length: 0\r\n\r\n{SMUGGLED}",
    "a list of lengths": f"{POST}{HOST}Content-Length: 0, 0\r\n\r\n{SMUGGLED}",
    "a signed length": f"{POST}{HOST}Content-Length: +0\r\n\r\n{SMUGGLED}",
    "a length in hexadecimal": f"{POST}{HOST}Content-Length: 0x0\r\n\r\n{SMUGGLED}",
    "a huge length": f"{POST}{HOST}Content-Length: {'9' * 30}\r\n\r\n",
    "an unknown coding": f"{POST}{HOST}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "chunked twice": f"{POST}{HOST}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "chunked, then identity": f"{POST}{HOST}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "chunked in HTTP/1.0": f"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "a space before the colon": f"{POST}{HOST}Content-Length : 44\r\n\r\n{SMUGGLED}",
    "a folded header": f"{POST}{HOST}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "a bare LF": f"{POST}{HOST}X: y\nContent-Length: 44\r\n\r\n{SMUGGLED}",
    "only bare LFs": "GET /ping HTTP/1.1\nHost: corral.test\n\n" + SMUGGLED,
    "a bare CR": f"{POST}{HOST}X: y\rContent-Length: 44\r\n\r\n{SMUGGLED}",
    "a NUL": f"{POST}{HOST}X: y\0\r\n\r\n{SMUGGLED}",
    "no host": "GET /ping HTTP/1.1\r\n\r\n" + SMUGGLED,
    "two hosts": f"GET /ping HTTP/1.1\r\n{HOST}{HOST}\r\n{SMUGGLED}",
    "no version": f"GET /ping\r\n\r\n{SMUGGLED}",
    "a space too many": f"GET  /ping HTTP/1.1\r\n{HOST}\r\n{SMUGGLED}",
    "a fragment of TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("case", BAD_FAITH)
def test_what_could_be_read_in_two_ways_is_not_read_at_all(corral: Corral, case: str) -> None:
    with wire(corral) as connection:
        connection.say(BAD_FAITH[case].encode("latin-1"))
        answer = connection.hear()
        assert 400 <= answer.status < 500
        assert answer.error()["type"] == "invalid_request_error"
        assert answer.headers["connection"] == "close"
        assert connection.at_end(), "the hidden request was answered"


BAD_CHUNKS = {
    "no number": b"x\r\n\r\n",
    "a sign": b"-1\r\n\r\n",
    "a prefix": b"0x0\r\n\r\n",
    "an endless number": b"0" * 100 + b"\r\n\r\n",
    "too long a chunk": b"1\r\nxy\r\n0\r\n\r\n",
    "a bare LF": b"1\nx\n0\n\n",
    "a smuggled framing in the trailer": b"0\r\nContent-Length 5\r\n\r\n",
}


@pytest.mark.parametrize("case", BAD_CHUNKS)
def test_a_body_in_broken_chunks_is_refused_and_nothing_after_it_is_read(corral: Corral, case: str) -> None:
    with wire(corral) as connection:
        head = request(corral, {}, framing="Transfer-Encoding: chunked")
        connection.say(head + BAD_CHUNKS[case] + SMUGGLED.encode())
        answer = connection.hear("POST")
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert answer.error()["code"] == "invalid_request"
        assert connection.at_end()


# Too slow ----------------------------------------------------------------------------------------


def test_a_head_that_does_not_arrive_is_not_waited_for(impatient: Corral) -> None:
    with wire(impatient) as connection:
        connection.say("GET /live HTTP/1.1\r\n")
        answer = connection.hear()
        assert (answer.status, answer.error()["code"]) == (408, "request_timeout")
        assert connection.at_end()


def test_a_head_that_drips_is_not_waited_for_either(impatient: Corral) -> None:
    with wire(impatient) as connection:
        connection.socket.settimeout(0.05)
        began = time.monotonic()
        closed = False
        while not closed:
            assert time.monotonic() - began < 5
            try:
                connection.say("X")
                closed = b"408" in connection.socket.recv(12)
            except TimeoutError:
                continue
        assert time.monotonic() - began >= 0.5


def test_a_body_that_stops_arriving_is_not_waited_for(impatient: Corral) -> None:
    with wire(impatient) as connection:
        connection.say(request(impatient, chat())[:-5])
        answer = connection.hear("POST")
        assert (answer.status, answer.error()["code"]) == (408, "request_timeout")
        assert connection.at_end()


@pytest.mark.parametrize("said", ["", LIVE], ids=["that says nothing", "between two requests"])
def test_a_connection_is_closed_without_a_word(impatient: Corral, said: str) -> None:
    with wire(impatient) as connection:
        if said:
            connection.say(said)
            assert connection.hear().status == 200
        assert connection.at_end()


# Much at once ------------------------------------------------------------------------------------


def test_hundreds_of_slow_streams_do_not_slow_down_a_probe(impatient: Corral) -> None:
    slow = request(impatient, chat(stream=True, stand_in={"tokens": 1000, "token_delay_s": 0.2}))
    with ExitStack() as stack:
        clients = []
        for _ in range(200):
            clients.append(stack.enter_context(wire(impatient)))
            clients[-1].say(slow)
        wait_until(lambda: metric(impatient, "router_active_requests") == 200, "all of them stream")
        for client in clients:
            assert b" 200 OK\r\n" in client.socket.recv(1024)
        took_s = []
        for _ in range(20):
            began = time.perf_counter()
            assert ask(f"{impatient.url}/ping").status == 200
            took_s.append(time.perf_counter() - began)
        assert metric(impatient, "router_active_requests") == 200
    assert statistics.median(took_s) < 0.05
    wait_until(lambda: metric(impatient, "router_active_requests") == 0, "all are gone", 2.0)


def test_a_form_with_a_file_reaches_the_engine_byte_by_byte(impatient: Corral) -> None:
    boundary = "----corral-boundary"
    file = bytes(range(256)) * 300 + b"\r\n--not-the-boundary\r\n"
    form = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\ndemo\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        "Content-Type: audio/wav\r\n\r\n"
    ).encode() + b"%b\r\n--%b--\r\n" % (file, boundary.encode())
    content_type = f"Content-Type: multipart/form-data; boundary={boundary}"
    with wire(impatient) as connection:
        connection.say(request(impatient, form, "/v1/audio/transcriptions", content_type))
        answer = connection.hear("POST")
    echo = json.loads(answer.body)
    assert echo["body"].encode("latin-1") == form
    assert (echo["method"], echo["path"]) == ("POST", "/v1/audio/transcriptions")
    assert echo["headers"]["content-type"] == content_type.partition(": ")[2]
    assert "authorization" not in echo["headers"]
    assert impatient.key not in json.dumps(echo)
