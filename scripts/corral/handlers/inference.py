"""A request for tokens, from its first header to its last byte: one straight function.

What decides (who may, how often, which model, when) lies in policy and fleet; what moves bytes lies in
the drivers. Here is only the order of things, and the order is the point: a request that fails early
costs little, nothing is held that is not given back, and the client always learns why.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from corral import errors
from corral.catalogue import Model
from corral.drivers import clock
from corral.drivers.http_client import Answer, BackendGone
from corral.fleet import EngineLost, Lease
from corral.formats import http1, json_outline, openai, sse
from corral.formats.openai import Intent
from corral.formats.status import ModelState
from corral.handlers.call import Call
from corral.handlers.gate import Gate
from corral.handlers.replies import JSON_TYPE
from corral.handlers.wishes import charge, read_wish
from corral.policy.scheduler import NOTHING, Wish

log = logging.getLogger("corral.inference")

# The engine's own errors are small; a larger one is cut off rather than held in memory.
ERROR_BODY_MAX_BYTES = 256 * 1024
# A request that was there at so many deaths of its model's process is not given to a third one.
DEATHS_MAX = 2
# Where a stream that waits may be sent comments: their readers skip them.
STREAMS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"}
    | {"/chat/completions", "/completions", "/invocations"}
)
LOADED_OR_LOADING = frozenset({ModelState.STARTING, ModelState.LOADING, ModelState.READY})


async def infer(gate: Gate, call: Call) -> None:
    call.is_inference = True
    exchange = call.exchange
    principal = gate.authenticate(call)
    gate.admit(call, principal)
    body = exchange.whole_body()
    if body is None:
        asked_at = clock.monotonic()
        body = await gate.receive(exchange)
        call.waited_on_others_s = clock.monotonic() - asked_at
    small = len(body) < json_outline.LARGE_BYTES
    intent = read_intent(call, body if small else await outline_of(call, body))
    model = gate.choose_model(intent.model, principal)
    call.model = model.name
    gate.recorder.active()
    refuse_impossible(exchange.head.path, model)
    refuse_to_load(gate, call, model)
    wish = read_wish(call, principal, intent, len(body))
    limit_time(gate, call, wish)
    asked_at = clock.monotonic()
    deaths = 0
    while True:
        try:
            await serve(gate, call, wish, asked_at, body)
            return
        except EngineLost as lost:
            # Once more, because a crash may have had nothing to do with this request; not twice, because
            # it may. A process that was dead before the request reached it does not count.
            deaths += lost.was_there
            if deaths == DEATHS_MAX:
                raise
        log.warning("request %s is sent again: %s died before it answered", call.request_id, model.name)


async def serve(gate: Gate, call: Call, wish: Wish, asked_at: float, body: bytes) -> None:
    """Wait for a slot, and use it."""
    place = gate.fleet.lease(wish, asked_at)
    if call.wants_stream and call.exchange.head.path in STREAMS:
        place.on_waiting = gate.settings.server.sse_ping_s, partial(say_queued, call)
    async with place as lease:
        call.queue_wait_s = lease.waited_s  # a second time: until it was let through for good
        call.reached_model = True
        sent_at = clock.monotonic()
        try:
            await converse(gate, call, lease, body)
        except BackendGone as error:  # not a byte came, as when the process dies
            if not await lease.engine_died():
                raise
            lease.usage = NOTHING
            raise EngineLost(
                f"The llama-server of {wish.model!r} died while it worked on this request, and will not be "
                "given it again.",
                was_there=error.was_sent,
            ) from error
        finally:
            call.waited_on_others_s += clock.monotonic() - sent_at


async def converse(gate: Gate, call: Call, lease: Lease, body: bytes) -> None:
    """Ask the engine, and pass its answer on."""
    head = call.exchange.head
    # Of a stream it notices at once that nobody reads it. Whatever else it has been asked it goes on with.
    lease.engine_goes_on = not call.wants_stream and head.method == "POST"
    answer = await gate.client.send(
        lease.address,
        head.method,
        gate.passage.request_head(head, lease.address, call.request_id, len(body)),
        body,
        silence_s=gate.settings.herd.request_timeout_s,
        on_silence=lease.on_silence,
    )
    try:
        await pass_on(gate, call, answer)
        lease.engine_goes_on = False
    finally:
        answer.close()
        lease.usage = charge(call, lease.ticket.wish, answer.head.status)


def say_queued(call: Call, position: int) -> None:
    """A stream that waits long is told where it stands, lest a proxy on the way give up on it.

    Its status is out with that, so whatever fails from now on becomes an event of the stream.
    """
    exchange = call.exchange
    if not exchange.started:
        exchange.is_event_stream = True
        exchange.start(200, [*sse.HEADERS, *call.extra_headers])
    exchange.write(sse.comment(f"queued position={position}"), aside=True)
    exchange.flush()


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
    wish = call.exchange.head.fields.get(b"x-model-load")
    if wish is None or wish.lower() != b"never":
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


async def outline_of(call: Call, body: bytes) -> bytes:
    """What has to be parsed of a large body, found while others have their turns too."""
    if openai.is_form(call.exchange.head.header(b"content-type") or ""):
        return body
    steps = json_outline.outline(body)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            outline: bytes = done.value
            return outline
        await asyncio.sleep(0)


def limit_time(gate: Gate, call: Call, wish: Wish) -> None:
    """No request takes longer than the settings allow, or than its client is willing to wait."""
    allowed_s, why = gate.settings.herd.request_max_s, "'request_max_sec' allows"
    if wish.timeout_s is not None and wish.timeout_s < allowed_s:
        allowed_s, why = wish.timeout_s, "its X-Request-Timeout allows"
    call.exchange.expire(call.exchange.received_at + allowed_s, partial(too_long, call, allowed_s, why))


def too_long(call: Call, allowed_s: float, why: str) -> errors.CorralError:
    kind = errors.UpstreamTimeout if call.reached_model else errors.QueueTimeout
    return kind(
        f"The request was not through after {allowed_s:g} s, the most that {why}. "
        "Ask for fewer tokens, or allow more time."
    )


async def pass_on(gate: Gate, call: Call, answer: Answer) -> None:
    """The engine's answer, byte by byte as it comes; its errors in our envelope."""
    exchange, head = call.exchange, answer.head
    if head.status >= 400:
        body = await answer.body(ERROR_BODY_MAX_BYTES)
        if exchange.started:
            raise openai.upstream_error(head.status, body)
        note_wait(call)
        answer_body = openai.upstream_error_body(head.status, body)
        exchange.respond(head.status, [JSON_TYPE, *call.extra_headers], answer_body)
        return
    call.first_byte_at = clock.monotonic()
    is_event_stream = head.fields.get(b"content-type", b"").lower().startswith(sse.CONTENT_TYPE)
    whole = None if is_event_stream or exchange.started else answer.whole()
    if whole is not None:
        note_wait(call)
        lines = gate.passage.returned(head, is_event_stream=False)
        exchange.respond(head.status, call.extra_headers, whole, lines)
        return
    if not exchange.started:
        start_like(gate, call, head, is_event_stream)
    elif not is_event_stream:
        raise errors.UpstreamError("The engine answered a request for a stream with something else.")
    exchange.feed_from(answer)
    try:
        await answer.pour(exchange)
    finally:
        exchange.feed_from(None)
    exchange.finish()


def start_like(gate: Gate, call: Call, head: http1.ResponseHead, is_event_stream: bool) -> None:
    """Begin our answer as the engine began its own."""
    note_wait(call)
    exchange, own, length = call.exchange, call.extra_headers, head.content_length
    if is_event_stream:
        exchange.is_event_stream = True
        own = [*own, *sse.UNBUFFERED]
        length = None  # it may have to end with an error event of ours, which no length allows for
    lines = gate.passage.returned(head, is_event_stream=is_event_stream)
    exchange.start(head.status, own, length, lines)


def note_wait(call: Call) -> None:
    call.extra_headers.append((b"x-queue-wait-ms", b"%d" % (call.queue_wait_s * 1000)))
