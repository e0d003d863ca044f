"""Answers as bytes: the error's headers by value, and errors that come when an answer has begun."""

from __future__ import annotations

import json

import pytest

from corral import errors
from corral.handlers import replies
from tests.handlers.gatehouse import request
from tests.handlers.unwired import call_for


def test_a_document_is_json_with_its_length_and_the_calls_own_headers() -> None:
    call, wire = call_for(request("/x", headers={"x-request-id": "mine"}))
    replies.send_json(call, {"name": "ü", "odd": "\ud800"}, status=201)
    head, _, body = wire.sent.partition(b"\r\n\r\n")
    assert head.splitlines() == [
        b"HTTP/1.1 201 Created",
        b"date: now",
        b"x-request-id: mine",
        b"content-length: %d" % len(body),
        b"content-type: application/json",
    ]
    assert body == '{"name": "ü", "odd": "?"}'.encode()


@pytest.mark.parametrize(
    ("retry_after_s", "seconds", "milliseconds"),
    [
        (0.0, b"0", b"0"),
        (0.0001, b"1", b"1"),
        (1.0, b"1", b"1000"),
        (1.0004, b"2", b"1001"),
        (59.2, b"60", b"59200"),
    ],
)
def test_a_wait_is_rounded_up_in_seconds_and_told_exactly_beside(
    retry_after_s: float, seconds: bytes, milliseconds: bytes
) -> None:
    headers, _ = replies.error_page(errors.QueueFull("full", retry_after_s=retry_after_s))
    assert dict(headers) == {
        b"content-type": b"application/json",
        b"retry-after": seconds,
        b"retry-after-ms": milliseconds,
    }


def test_where_waiting_is_in_vain_the_client_is_told_unless_it_is_told_to_wait() -> None:
    given_up = dict(replies.error_page(errors.ModelFailed("dead"))[0])
    assert given_up == {b"content-type": b"application/json", b"x-should-retry": b"false"}
    coming = dict(replies.error_page(errors.ModelFailed("dead", retry_after_s=2.0))[0])
    assert b"x-should-retry" not in coming
    assert coming[b"retry-after"] == b"2"


def test_an_error_brings_its_own_headers_along() -> None:
    error = errors.InvalidApiKey("no", headers=(("www-authenticate", "Bearer"),))
    headers, body = replies.error_page(error)
    assert (b"www-authenticate", b"Bearer") in headers
    assert json.loads(body)["error"]["code"] == "invalid_api_key"


def test_an_error_before_an_answer_is_the_answer() -> None:
    call, wire = call_for(request("/x"))
    error = errors.NotFound("nothing here")
    replies.send_error(call, error)
    assert wire.sent.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert wire.sent.endswith(b"\r\n\r\n" + replies.error_page(error)[1])
    assert call.error_code == error.code
    assert call.exchange.finished
    assert not call.exchange.closes


@pytest.mark.parametrize(
    ("said", "gap"), [(b"", b""), (b"data: 1\n\n", b""), (b"data: 1\n", b"\n\n"), (b"dat", b"\n\n")]
)
def test_an_error_inside_a_stream_of_events_is_its_last_event(said: bytes, gap: bytes) -> None:
    call, wire = call_for(request("/x"))
    exchange = call.exchange
    exchange.start(200, [])
    exchange.is_event_stream = True
    exchange.write(said)
    exchange.flush()
    begun = len(wire.sent)
    replies.send_error(call, errors.UpstreamError("broke"))
    size, _, rest = wire.sent[begun:].partition(b"\r\n")
    event = rest[: int(size, 16)]
    assert rest[int(size, 16) :] == b"\r\n0\r\n\r\n"
    assert event.startswith(gap + b'data: {"error"')
    assert exchange.closes


@pytest.mark.parametrize(
    ("path", "event"),
    [
        ("/v1/messages", b'event: error\ndata: {"type": "error", "error": {"type": "api_error", '),
        ("/v1/responses", b'event: error\ndata: {"type": "error", "code": "upstream_error", '),
        ("/v1/completions", b'data: {"error": {"message": "broke", '),
    ],
)
@pytest.mark.parametrize(("said", "gap"), [(b"data: 1\n\n", b""), (b"data: 1", b"\n\n")])
def test_an_error_inside_a_stream_is_in_the_dialect_of_its_path(
    path: str, event: bytes, said: bytes, gap: bytes
) -> None:
    call, wire = call_for(request(path))
    call.exchange.start(200, [])
    call.exchange.is_event_stream = True
    call.exchange.write(said)
    replies.send_error(call, errors.UpstreamError("broke"))
    assert said + b"\r\n" in wire.sent
    assert wire.sent.partition(said + b"\r\n")[2].partition(b"\r\n")[2].startswith(gap + event)


def test_an_error_inside_another_body_leaves_it_without_an_end() -> None:
    call, wire = call_for(request("/x"))
    call.exchange.start(200, [])
    call.exchange.write(b'{"half')
    replies.send_error(call, errors.UpstreamError("broke"))
    assert wire.sent.endswith(b'\r\n\r\n6\r\n{"half\r\n')
    assert call.exchange.closes


def test_an_error_after_the_end_changes_nothing() -> None:
    call, wire = call_for(request("/x"))
    replies.send_json(call, {})
    sent = wire.sent
    replies.send_error(call, errors.UpstreamError("too late"))
    assert wire.sent == sent


# Browsers ----------------------------------------------------------------------------------------

VARY = (b"vary", b"origin")
EXPOSE = (b"access-control-expose-headers", replies.EXPOSED)


@pytest.mark.parametrize(
    ("allowed", "origin", "headers"),
    [
        ((), "https://a", []),
        (("https://a",), None, [VARY]),
        (("https://a",), "https://b", [VARY]),
        (("https://a",), "https://a.evil", [VARY]),
        (("https://a",), "HTTPS://A", [VARY]),
        (
            ("https://b", "https://a"),
            "https://a",
            [VARY, (b"access-control-allow-origin", b"https://a"), EXPOSE],
        ),
        (("*",), None, []),
        (("*",), "https://a", [(b"access-control-allow-origin", b"*"), EXPOSE]),
        (("*", "https://a"), "null", [(b"access-control-allow-origin", b"*"), EXPOSE]),
    ],
)
def test_a_page_may_read_an_answer_if_its_origin_is_allowed(
    allowed: tuple[str, ...], origin: str | None, headers: list[tuple[bytes, bytes]]
) -> None:
    call, _ = call_for(request("/x", headers={} if origin is None else {"origin": origin}))
    assert replies.cors_headers(call.exchange, allowed) == headers
