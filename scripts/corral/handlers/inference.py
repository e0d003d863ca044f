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
from corral.fleet import Lease
from corral.formats import json_outline, openai, sse
from corral.formats.openai import Intent
from corral.formats.status import ModelState
from corral.handlers.call import Call
from corral.handlers.gate import Gate
from corral.handlers.replies import JSON_TYPE

log = logging.getLogger("corral.inference")

# The engine's own errors are small; a larger one is cut off rather than held in memory.
ERROR_BODY_MAX_BYTES = 256 * 1024
# A request that was there at so many deaths of its model's process is not given to a third one.
DEATHS_MAX = 2
LOADED_OR_LOADING = frozenset({ModelState.STARTING, ModelState.LOADING, ModelState.READY})


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
    body = exchange.whole_body()
    if body is None:
        asked_at = clock.monotonic()
        body = await exchange.body()
        call.waited_on_others_s = clock.monotonic() - asked_at
    small = len(body) < json_outline.LARGE_BYTES
    intent = read_intent(call, body if small else await outline_of(call, body))
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
            await converse(gate, call, lease, body)
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


async def converse(gate: Gate, call: Call, lease: Lease, body: bytes) -> None:
    """Ask the engine, and pass its answer on."""
    head = call.exchange.head
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


def too_long(gate: Gate) -> errors.UpstreamTimeout:
    return errors.UpstreamTimeout(
        f"The request was not through after {gate.settings.herd.request_max_s:g} s, the most that "
        "'request_max_sec' allows. Ask for fewer tokens, or raise it."
    )


async def pass_on(gate: Gate, call: Call, answer: Answer) -> None:
    """The engine's answer, byte by byte as it comes; its errors in our envelope."""
    exchange, head = call.exchange, answer.head
    own = call.extra_headers
    own.append((b"x-queue-wait-ms", b"%d" % (call.queue_wait_s * 1000)))
    if head.status >= 400:
        body = openai.upstream_error_body(head.status, await answer.body(ERROR_BODY_MAX_BYTES))
        exchange.respond(head.status, [JSON_TYPE, *own], body)
        return
    call.first_byte_at = clock.monotonic()
    is_event_stream = head.fields.get(b"content-type", b"").lower().startswith(sse.CONTENT_TYPE)
    lines = gate.passage.returned(head, is_event_stream=is_event_stream)
    whole = None if is_event_stream else answer.whole()
    if whole is not None:
        exchange.respond(head.status, own, whole, lines)
        return
    length = head.content_length
    if is_event_stream:
        exchange.is_event_stream = True
        own = [*own, *sse.UNBUFFERED]
        length = None  # it may have to end with an error event of ours, which no length allows for
    exchange.start(head.status, own, length, lines)
    exchange.feed_from(answer)
    try:
        await answer.pour(exchange)
    finally:
        exchange.feed_from(None)
    exchange.finish()
