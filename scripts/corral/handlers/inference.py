"""A request for tokens, from its first header to its last byte: one straight function.

What decides (who may, how often, which model, when) lies in policy and fleet; what moves bytes lies in
the drivers. Here is only the order of things, and the order is the point: a request that fails early
costs little, nothing is held that is not given back, and the client always learns why.
"""

from __future__ import annotations

import logging
from functools import partial
from urllib.parse import unquote

from corral import errors
from corral.catalogue import Model
from corral.drivers import clock
from corral.drivers.http_client import Address, Answer, BackendGone
from corral.fleet import Lease
from corral.formats import http1, openai, sse
from corral.formats.openai import Intent
from corral.formats.status import ModelState
from corral.handlers.call import Call
from corral.handlers.gate import Gate
from corral.handlers.replies import JSON_TYPE, Headers

log = logging.getLogger("corral.inference")

# The engine's own errors are small; a larger one is cut off rather than held in memory.
ERROR_BODY_MAX_BYTES = 256 * 1024
# A request that was there at so many deaths of its model's process is not given to a third one.
DEATHS_MAX = 2
# What a client says to the gate and not to the engine: its key, and what we write ourselves.
NOT_FORWARDED = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"host",
        b"content-length",
        b"expect",
        b"x-request-id",
        b"x-model-load",
        b"origin",
    }
)
# What curl's -d calls every body. It is JSON, as we have seen ourselves, and as a form llama-server takes
# no more than 1 MiB of it (measured: 413 without a word).
CURLS_FORM = (b"content-type", b"application/x-www-form-urlencoded")
# What the engine says to the gate: the gate has its own Date, Server and rules for browsers.
NOT_RETURNED = frozenset({b"content-length", b"date", b"server"})
RULES_FOR_BROWSERS = b"access-control-"
LOADED_OR_LOADING = frozenset({ModelState.STARTING, ModelState.LOADING, ModelState.READY})
# Without /v1 the engine speaks an older dialect of its own on these paths.
UPSTREAM_PATHS = {path: "/v1" + path for path in ("/chat/completions", "/completions", "/embeddings")}


class EngineLost(errors.UpstreamError):
    """The process died before a byte of its answer came, and nobody had asked it to go."""

    should_retry = False

    def __init__(self, message: str, *, was_there: bool) -> None:
        super().__init__(message)
        self.was_there = was_there


async def infer(gate: Gate, call: Call) -> None:
    call.is_inference = True
    exchange = call.exchange
    principal = gate.authenticate(call)
    gate.admit(call, principal)
    asked_at = clock.monotonic()
    body = await exchange.body()
    call.waited_on_others_s = clock.monotonic() - asked_at
    intent = read_intent(call, body)
    model = gate.choose_model(intent.model, principal)
    call.model = model.name
    refuse_impossible(exchange.head.path, model)
    refuse_to_load(gate, call, model)
    exchange.expire(exchange.received_at + gate.settings.herd.request_max_s, partial(too_long, gate))
    deaths = 0
    while True:
        try:
            await serve(gate, call, model, body)
            return
        except EngineLost as lost:
            # Once more, because a crash may have had nothing to do with this request; not twice, because
            # it may. A process that was dead before the request reached it does not count.
            deaths += lost.was_there
            if deaths == DEATHS_MAX:
                raise
        log.warning("request %s is sent again: %s died before it answered", call.request_id, model.name)


async def serve(gate: Gate, call: Call, model: Model, body: bytes) -> None:
    """Wait for a slot, and use it."""
    async with gate.fleet.lease(model.name, call.request_id) as lease:
        call.queue_wait_s += lease.waited_s
        call.reached_model = True
        sent_at = clock.monotonic()
        try:
            await converse(gate, call, lease, upstream_request(call, lease.address, body))
        except BackendGone as error:  # not a byte came, as when the process dies
            if not await lease.engine_died():
                raise
            raise EngineLost(
                f"The llama-server of {model.name!r} died while it worked on this request, and will not be "
                "given it again.",
                was_there=error.was_sent,
            ) from error
        finally:
            call.waited_on_others_s += clock.monotonic() - sent_at


async def converse(gate: Gate, call: Call, lease: Lease, request: bytes) -> None:
    """Ask the engine, and pass its answer on."""
    answer = await gate.client.send(
        lease.address,
        call.exchange.head.method,
        request,
        silence_s=gate.settings.herd.request_timeout_s,
        on_silence=lease.on_silence,
    )
    try:
        await pass_on(call, answer)
    finally:
        answer.close()


def refuse_impossible(path: str, model: Model) -> None:
    """What can be known to fail need not load a model first."""
    if path.endswith("/embeddings") and not model.embedding:
        raise errors.InvalidRequest(
            f"The model {model.name!r} was not set up for embeddings. Choose one that is, "
            'or set "embedding": true in its params.',
            param="model",
        )


def refuse_to_load(gate: Gate, call: Call, model: Model) -> None:
    """`X-Model-Load: never`: who would rather go elsewhere than wait for a load is told so."""
    wish = call.exchange.head.header(b"x-model-load")
    if wish is None or wish.lower() != "never":
        return
    state = gate.fleet.state(model.name)
    if state not in LOADED_OR_LOADING:
        raise errors.ModelNotLoaded(
            f"The model {model.name!r} is {state.value}, and this request forbids to load it (X-Model-Load). "
            "POST /v1/models/load loads it."
        )


def read_intent(call: Call, body: bytes) -> Intent:
    """Which model a request is for: its body says so, or, where it does not, its query."""
    head = call.exchange.head
    if head.method != "POST":
        return Intent(call.query("model"), False)
    intent = openai.read_intent(body, head.header(b"content-type") or "")
    return intent if intent.model is not None else intent._replace(model=call.query("model"))


def too_long(gate: Gate) -> errors.UpstreamTimeout:
    return errors.UpstreamTimeout(
        f"The request was not through after {gate.settings.herd.request_max_s:g} s, the most that "
        "'request_max_sec' allows. Ask for fewer tokens, or raise it."
    )


def upstream_request(call: Call, address: Address, body: bytes) -> bytes:
    """The request as the engine gets it: the client's own, less what was meant for the gate."""
    head = call.exchange.head
    headers = [
        (b"host", str(address).encode()),
        (b"x-request-id", call.request_id.encode()),
        *(
            JSON_TYPE if pair == CURLS_FORM else pair
            for pair in http1.end_to_end(head.headers)
            if pair[0] not in NOT_FORWARDED
        ),
    ]
    if body or head.method == "POST":
        headers.append((b"content-length", b"%d" % len(body)))
    return http1.request_head(head.method, upstream_target(head), headers) + body


def upstream_target(head: http1.RequestHead) -> str:
    """The path as the engine knows it, without a key that a query may carry."""
    kept = [pair for pair in head.query.split("&") if pair and unquote(pair.partition("=")[0]) != "api_key"]
    return UPSTREAM_PATHS.get(head.path, head.path) + ("?" + "&".join(kept) if kept else "")


async def pass_on(call: Call, answer: Answer) -> None:
    """The engine's answer, byte by byte as it comes; its errors in our envelope."""
    exchange, head = call.exchange, answer.head
    call.extra_headers.append((b"x-queue-wait-ms", b"%d" % (call.queue_wait_s * 1000)))
    if head.status >= 400:
        body = openai.upstream_error_body(head.status, await answer.body(ERROR_BODY_MAX_BYTES))
        exchange.respond(head.status, [JSON_TYPE, *call.extra_headers], body)
        return
    call.first_byte_at = clock.monotonic()
    own, length = call.extra_headers, head.content_length
    if head.fields.get(b"content-type", b"").lower().startswith(sse.CONTENT_TYPE):
        exchange.is_event_stream = True
        own = [*own, *sse.UNBUFFERED]
        length = None  # it may have to end with an error event of ours, which no length allows for
    exchange.start(head.status, [*returned(head, own), *own], length)
    exchange.feed_from(answer)
    try:
        await answer.pour(exchange)
    finally:
        exchange.feed_from(None)
    exchange.finish()


def returned(head: http1.ResponseHead, own: Headers) -> Headers:
    """The engine's headers as far as they go on to the client: what the gate says itself, it says alone."""
    dropped = NOT_RETURNED.union(name for name, _ in own)
    return [
        pair
        for pair in http1.end_to_end(head.headers)
        if pair[0] not in dropped and not pair[0].startswith(RULES_FOR_BROWSERS)
    ]
