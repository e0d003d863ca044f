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
from corral.formats import json_outline, openai, sse
from corral.formats.openai import Intent
from corral.formats.status import ModelState
from corral.handlers.call import Call
from corral.handlers.gate import Gate
from corral.handlers.passage import Returned
from corral.handlers.replies import JSON_TYPE
from corral.handlers.visitor import Visitor
from corral.handlers.wishes import charge, read_wish
from corral.policy.scheduler import NOTHING, Wish

log = logging.getLogger("corral.inference")

# The engine's own errors are small; a larger one is not held in memory, but answered with one of ours.
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
    visitor = gate.recognise(call)
    gate.admit(call, visitor.principal)
    if visitor.fault is not None:
        raise visitor.fault
    limit_time(gate, call, visitor)
    body = exchange.whole_body()
    if body is None:
        asked_at = clock.monotonic()
        body = await gate.receive(exchange)
        call.waited_on_others_s = clock.monotonic() - asked_at
    call.body = body
    small = len(body) < json_outline.LARGE_BYTES
    intent = read_intent(call, visitor, body if small else await outline_of(visitor, body))
    model = gate.choose_model(intent.model, visitor.principal)
    call.model = model.name
    asked_at = gate.recorder.last_activity_at = clock.monotonic()
    if not model.embedding and exchange.head.path.endswith("/embeddings"):
        raise no_embeddings(model)  # what can be known to fail need not load a model first
    if not visitor.may_load:
        refuse_to_load(gate, model)
    wish = read_wish(call, visitor, intent, len(body))
    del body  # the call has it, and lets go of it as soon as it can
    deaths = 0
    while True:
        try:
            await serve(gate, call, wish, asked_at)
            return
        except EngineLost as lost:
            # Once more, because a crash may have had nothing to do with this request; not twice, because
            # it may. A process that was dead before the request reached it does not count.
            deaths += lost.was_there
            if deaths == DEATHS_MAX:
                raise
        call.lost_s = clock.monotonic() - asked_at - call.queue_wait_s
        log.warning("request %s is sent again: %s died before it answered", call.request_id, model.name)


async def serve(gate: Gate, call: Call, wish: Wish, asked_at: float) -> None:
    """Wait for a slot, and use it."""
    with gate.fleet.lease(wish, asked_at) as lease:
        if lease.waits:
            await wait_for_turn(gate, call, lease)
        call.queue_wait_s = lease.waited_s - call.lost_s
        lease.open()
        call.reached_model = True
        sent_at = clock.monotonic()
        try:
            await converse(gate, call, lease)
        except BackendGone as error:  # not a byte came, as when the process dies
            lease.engine_goes_on = lease.engine_goes_on and error.was_sent
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


async def wait_for_turn(gate: Gate, call: Call, lease: Lease) -> None:
    if call.wants_stream and call.exchange.head.path in STREAMS:
        lease.on_waiting = gate.settings.server.sse_ping_s, partial(say_queued, call)
    call.is_queued = True
    try:
        await lease.granted()
    finally:
        call.is_queued = False
        # Who has waited in vain has waited too.
        call.queue_wait_s = clock.monotonic() - lease.ticket.arrived_at - call.lost_s


async def converse(gate: Gate, call: Call, lease: Lease) -> None:
    """Ask the engine, and pass its answer on."""
    head = call.exchange.head
    # Of a stream it notices at once that nobody reads it. Whatever else it has been asked it goes on with.
    lease.engine_goes_on = not call.wants_stream and head.method == "POST"
    answer = await gate.client.send(
        lease.address,
        head.method,
        gate.passage.request_head(head, lease.address, call.id_line, len(call.body)),
        call.body,
        silence_s=gate.settings.herd.request_timeout_s,
        on_silence=lease.on_silence,
    )
    try:
        if not passed_on_whole(gate, call, answer):
            call.let_go_of_body()  # who has begun to answer is not asked again
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
        exchange.start(200, sse.HEADERS, lines=call.lines)
    exchange.write(sse.comment(f"queued position={position}"), aside=True)
    exchange.flush()


def no_embeddings(model: Model) -> errors.InvalidRequest:
    return errors.InvalidRequest(
        f"The model {model.name!r} was not set up for embeddings. Choose one that is, "
        'or set "embedding": true in its params.',
        param="model",
    )


def refuse_to_load(gate: Gate, model: Model) -> None:
    """`X-Model-Load: never`: who would rather go elsewhere than wait for a load is told so."""
    state = gate.fleet.state(model.name)
    if state not in LOADED_OR_LOADING:
        raise errors.ModelNotLoaded(
            f"The model {model.name!r} is {state.value}, and this request forbids to load it (X-Model-Load). "
            "POST /v1/models/load loads it."
        )


def read_intent(call: Call, visitor: Visitor, body: bytes) -> Intent:
    """Which model a request is for: its body says so, or, where it does not, its query."""
    if call.exchange.head.method != "POST":
        return Intent(call.query("model"), False)
    intent = openai.read_intent(body, visitor.form_type)
    return intent if intent.model is not None else intent._replace(model=call.query("model"))


async def outline_of(visitor: Visitor, body: bytes) -> bytes:
    """What has to be parsed of a large body, found while others have their turns too."""
    if visitor.form_type is not None:
        return body
    steps = json_outline.outline(body)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            outline: bytes = done.value
            return outline
        await asyncio.sleep(0)


def limit_time(gate: Gate, call: Call, visitor: Visitor) -> None:
    """No request takes longer than the settings allow, or than its client is willing to wait."""
    allowed_s, why = gate.settings.herd.request_max_s, "'request_max_sec' allows"
    if visitor.timeout_s is not None and visitor.timeout_s < allowed_s:
        allowed_s, why = visitor.timeout_s, "its X-Request-Timeout allows"
    call.exchange.expire(call.exchange.received_at + allowed_s, partial(too_long, call, allowed_s, why))


def too_long(call: Call, allowed_s: float, why: str) -> errors.CorralError:
    """What a request that has used up its time is told: what it has come to, and what may help."""
    limit = f"{allowed_s:g} s, the most that {why}"
    if not call.model:
        message = (
            f"The request's body was not here and read after {limit}. Send it faster, or allow more time."
        )
        return errors.RequestTimeout(message)
    if call.is_queued or not call.reached_model:
        message = f"No slot of {call.model!r} came free within {limit}. Try again later, or allow more time."
        return errors.QueueTimeout(message)
    message = f"The answer was not through after {limit}. Ask for fewer tokens, or allow more time."
    return errors.UpstreamTimeout(message)


def passed_on_whole(gate: Gate, call: Call, answer: Answer) -> bool:
    """Pass on an answer that has come whole, as nearly every one that is no stream does."""
    head = answer.head
    if head.status >= 400:
        return False
    call.first_byte_at = clock.monotonic()
    if call.exchange.started:
        return False
    returned = gate.passage.returned(head)
    body = None if returned.is_event_stream else answer.whole()
    if body is None:
        return False
    call.exchange.respond(head.status, (), body, returned.lines + call.lines + wait_line(call))
    return True


async def pass_on(gate: Gate, call: Call, answer: Answer) -> None:
    """The engine's answer, byte by byte as it comes; its errors in our envelope."""
    exchange, head = call.exchange, answer.head
    if head.status >= 400:
        body = await answer.body(ERROR_BODY_MAX_BYTES)
        if exchange.started:
            raise openai.upstream_error(head.status, body)
        answer_body = openai.upstream_error_body(head.status, body)
        exchange.respond(head.status, [JSON_TYPE], answer_body, call.lines + wait_line(call))
        return
    returned = gate.passage.returned(head)
    if not exchange.started:
        start_like(call, answer, returned)
    elif not returned.is_event_stream:
        raise errors.UpstreamError("The engine answered a request for a stream with something else.")
    exchange.feed_from(answer)
    try:
        await answer.pour(exchange)
    finally:
        exchange.feed_from(None)
    exchange.finish()


def start_like(call: Call, answer: Answer, returned: Returned) -> None:
    """Begin our answer as the engine began its own."""
    exchange = call.exchange
    exchange.is_event_stream = returned.is_event_stream
    # A stream may have to end with an error event of ours, which no length allows for.
    length = None if returned.is_event_stream else answer.content_length
    exchange.start(answer.head.status, (), length, returned.lines + call.lines + wait_line(call))


def wait_line(call: Call) -> bytes:
    return b"x-queue-wait-ms: %d\r\n" % (call.queue_wait_s * 1000)
