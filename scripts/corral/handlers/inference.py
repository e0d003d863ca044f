"""A request for tokens, from its first header to its last byte: one straight function.

What decides (who may, how often, which model, when) lies in policy and fleet; what moves bytes lies in
the drivers. Here is only the order of things, and the order is the point: a request that fails early
costs little, nothing is held that is not given back, and the client always learns why.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from urllib.parse import unquote

from corral import errors
from corral.catalogue import Model
from corral.drivers import clock
from corral.drivers.http_client import Address, Answer, BackendGone
from corral.fleet import Lease
from corral.formats import http1, openai, sse, usage
from corral.formats.openai import Intent
from corral.formats.status import ModelState
from corral.handlers.call import Call
from corral.handlers.gate import Gate
from corral.handlers.replies import JSON_TYPE, Headers
from corral.policy import authentication
from corral.policy.authentication import Principal
from corral.policy.scheduler import NOTHING, Usage, Wish

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
        b"x-request-priority",
        b"x-request-timeout",
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
# What a prompt will cost is guessed from the bytes of its body: four to a token, as English has it. A
# picture has a million bytes and no million tokens.
BYTES_PER_PROMPT_TOKEN = 4
PROMPT_TOKENS_MAX = 32_768
# An event with one token in it has about so many bytes (measured: 190 to 290 with a model's short name).
BYTES_PER_EVENT = 256
# Where a stream that waits may be sent comments: their readers skip them.
STREAMS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"}
    | {"/chat/completions", "/completions", "/invocations"}
)
# Without /v1 the engine speaks an older dialect of its own on these paths. /invocations is the one path on
# which SageMaker lets requests in: there it is a chat.
UPSTREAM_PATHS = {path: "/v1" + path for path in ("/chat/completions", "/completions", "/embeddings")}
UPSTREAM_PATHS["/invocations"] = "/v1/chat/completions"


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
            await converse(gate, call, lease, upstream_request(call, lease.address, body))
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


async def converse(gate: Gate, call: Call, lease: Lease, request: bytes) -> None:
    """Ask the engine, and pass its answer on."""
    # Of a stream it notices at once that nobody reads it. Whatever else it has been asked it goes on with.
    lease.engine_goes_on = not call.wants_stream and call.exchange.head.method == "POST"
    answer = await gate.client.send(
        lease.address,
        call.exchange.head.method,
        request,
        silence_s=gate.settings.herd.request_timeout_s,
        on_silence=lease.on_silence,
    )
    try:
        await pass_on(call, answer)
        lease.engine_goes_on = False
    finally:
        answer.close()
        lease.usage = charge(call, lease.ticket.wish, answer.head.status)


def read_wish(call: Call, principal: Principal, intent: Intent, body_bytes: int) -> Wish:
    """What the request asks of the queue."""
    head = call.exchange.head
    call.wants_stream = intent.stream
    call.priority = authentication.priority_of(principal, head.header(b"x-request-priority"))
    return Wish(
        model=call.model,
        request_id=call.request_id,
        key_id=queue_key(call, principal),
        priority=call.priority,
        max_parallel=principal.max_parallel,
        max_waiting=principal.max_waiting,
        prompt_tokens=min(PROMPT_TOKENS_MAX, -(-body_bytes // BYTES_PER_PROMPT_TOKEN)),
        max_tokens=intent.max_tokens,
        timeout_s=read_timeout(head.header(b"x-request-timeout")),
    )


def queue_key(call: Call, principal: Principal) -> str:
    """Whose share of a queue a request takes: its key's, or, where there are no keys, its address's."""
    return call.exchange.client if principal.by_address else principal.key_id


def read_timeout(text: str | None) -> float | None:
    """`X-Request-Timeout`: how many seconds the client is willing to wait for the whole of it."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise errors.InvalidRequest(
            f"X-Request-Timeout must be a number of seconds above 0, not {text[:40]!r}."
        )
    return seconds


def charge(call: Call, wish: Wish, status: int) -> Usage | None:
    """What the request has cost, as far as it is known; None: as was estimated."""
    exchange = call.exchange
    if status >= 400:
        return NOTHING
    prompt, generated = call.tokens = usage.read(exchange.first_bytes, exchange.last_bytes)
    if exchange.is_event_stream and not exchange.finished:
        # Broken off before the engine could report. Each token came in an event of its own.
        generated = max(generated or 0, exchange.bytes_sent // BYTES_PER_EVENT)
    if prompt is None and generated is None:
        return None
    return Usage(wish.prompt_tokens if prompt is None else prompt, generated or 0)


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
    if not exchange.started:
        start_like(call, head, is_event_stream)
    elif not is_event_stream:
        raise errors.UpstreamError("The engine answered a request for a stream with something else.")
    exchange.feed_from(answer)
    try:
        await answer.pour(exchange)
    finally:
        exchange.feed_from(None)
    exchange.finish()


def start_like(call: Call, head: http1.ResponseHead, is_event_stream: bool) -> None:
    """Begin our answer as the engine began its own."""
    note_wait(call)
    exchange, own, length = call.exchange, call.extra_headers, head.content_length
    if is_event_stream:
        exchange.is_event_stream = True
        own = [*own, *sse.UNBUFFERED]
        length = None  # it may have to end with an error event of ours, which no length allows for
    exchange.start(head.status, [*returned(head, own), *own], length)


def note_wait(call: Call) -> None:
    call.extra_headers.append((b"x-queue-wait-ms", b"%d" % (call.queue_wait_s * 1000)))


def returned(head: http1.ResponseHead, own: Headers) -> Headers:
    """The engine's headers as far as they go on to the client: what the gate says itself, it says alone."""
    dropped = NOT_RETURNED.union(name for name, _ in own)
    return [
        pair
        for pair in http1.end_to_end(head.headers)
        if pair[0] not in dropped and not pair[0].startswith(RULES_FOR_BROWSERS)
    ]
