"""Answers as bytes: JSON, the error envelope with its headers, and what browsers ask for first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from corral import errors
from corral.drivers.http_server import Exchange
from corral.formats import anthropic, openai, sse
from corral.handlers.call import Call

Headers = list[tuple[bytes, bytes]]

JSON_TYPE = (b"content-type", b"application/json")
# How an error looks inside a stream, by its dialect; OpenAI's elsewhere.
ERROR_EVENTS = {"/v1/messages": anthropic.error_event, "/v1/responses": openai.responses_error_event}


def send_json(call: Call, document: Mapping[str, Any], status: int = 200) -> None:
    call.exchange.respond(status, [JSON_TYPE], openai.encode(document), call.lines)


def send_error(call: Call, error: errors.CorralError) -> None:
    """The error as a whole answer, or, if one has begun, as its honest end."""
    call.error_code = error.code
    exchange = call.exchange
    if not exchange.started:
        headers, body = error_page(error)
        exchange.respond(error.status, headers, body, call.lines)
    elif not exchange.finished:
        if exchange.is_event_stream:
            event = ERROR_EVENTS.get(exchange.head.path, openai.error_event)(error)
            exchange.write(event if exchange.at_event_boundary else sse.CUT + event)
            exchange.close_after()
            exchange.finish()
        else:
            exchange.break_off()


def error_page(error: errors.CorralError) -> tuple[Headers, bytes]:
    """Headers and body of an error. Retry-After counts in whole seconds, so it is rounded up.

    Whoever is told when to come back is not told to stay away.
    """
    headers: Headers = [JSON_TYPE]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after_s)))
        headers.append((b"retry-after-ms", b"%d" % math.ceil(error.retry_after_s * 1000)))
    elif error.should_retry is False:
        headers.append((b"x-should-retry", b"false"))
    headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in error.headers]
    return headers, openai.error_body(error)


# Browsers (the Fetch standard's CORS protocol) ---------------------------------------------------

EXPOSED = (
    b"x-request-id, retry-after, retry-after-ms, x-queue-wait-ms, x-ratelimit-limit-requests, "
    b"x-ratelimit-remaining-requests, x-ratelimit-reset-requests"
)


def cors_headers(exchange: Exchange, allowed: tuple[str, ...]) -> Headers:
    """What lets a page of an allowed origin read an answer; nothing for anybody else."""
    origin = exchange.head.header(b"origin")
    if not allowed:
        return []
    # To a cache the answers for two origins are two answers, and so is the one for none.
    headers = [] if "*" in allowed else [(b"vary", b"origin")]
    if origin is not None and ("*" in allowed or origin in allowed):
        headers += [
            (b"access-control-allow-origin", b"*" if "*" in allowed else origin.encode("latin-1")),
            (b"access-control-expose-headers", EXPOSED),
        ]
    return headers


def send_options(call: Call, methods: tuple[str, ...]) -> None:
    """The answer to OPTIONS, a preflight or not."""
    allow = ", ".join(methods).encode()
    headers = [(b"allow", allow)]
    if b"\r\naccess-control-allow-origin: " in call.lines:
        asked = call.exchange.head.fields.get(
            b"access-control-request-headers", b"authorization, content-type"
        )
        headers += [
            (b"access-control-allow-methods", allow),
            (b"access-control-allow-headers", asked),
            (b"access-control-max-age", b"600"),
        ]
    call.exchange.respond(204, headers, lines=call.lines)
