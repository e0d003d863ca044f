"""What a request asks of the queue, by its headers and its body; and what it has cost in the end."""

from __future__ import annotations

from corral.formats import usage
from corral.formats.openai import Intent
from corral.handlers.call import Call
from corral.handlers.visitor import Visitor
from corral.policy.authentication import Principal
from corral.policy.scheduler import NOTHING, Usage, Wish

# What a prompt will cost is guessed from the bytes of its body: four to a token, as English has it. A
# picture has a million bytes and no million tokens.
BYTES_PER_PROMPT_TOKEN = 4
PROMPT_TOKENS_MAX = 32_768
# An event with one token in it has about so many bytes (measured: 190 to 290 with a model's short name).
BYTES_PER_EVENT = 256


def read_wish(call: Call, visitor: Visitor, intent: Intent, body_bytes: int) -> Wish:
    """What the request asks of the queue."""
    principal = visitor.principal
    call.wants_stream = intent.stream
    call.priority = visitor.priority
    prompt_tokens = -(-body_bytes // BYTES_PER_PROMPT_TOKEN)
    # By position: with names it takes twice as long.
    return Wish(
        call.model,
        call.request_id,
        queue_key(call, principal),
        visitor.priority,
        principal.max_parallel,
        principal.max_waiting,
        prompt_tokens if prompt_tokens < PROMPT_TOKENS_MAX else PROMPT_TOKENS_MAX,
        intent.max_tokens,
        visitor.timeout_s,
    )


def queue_key(call: Call, principal: Principal) -> str:
    """Whose share of a queue a request takes: its key's, or, where there are no keys, its address's."""
    return call.exchange.client if principal.by_address else principal.key_id


def charge(call: Call, wish: Wish, status: int) -> Usage | None:
    """What the request has cost, as far as it is known; None: as was estimated."""
    exchange = call.exchange
    if status >= 400:
        return NOTHING
    prompt, generated = call.tokens = usage.read(exchange.first_bytes, exchange.last_bytes)
    if exchange.is_event_stream and not exchange.finished:
        # Broken off before the engine could report. Each token came in an event of its own.
        generated = max(generated or 0, exchange.bytes_sent // BYTES_PER_EVENT)
    if prompt is None and generated is None and not exchange.finished:
        return None
    return Usage(wish.prompt_tokens if prompt is None else prompt, generated or 0)
