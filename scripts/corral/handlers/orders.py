"""Orders to the gate itself, in a body that names a model: load it, eject it, say where it would go.

A request for tokens may be as large as the settings allow, because only an outline of it is read. An order
is parsed as a whole, and the parser lets nobody in between (10 MB of it may take most of a second: see
formats/json_outline.py). So it is small, or refused.
"""

from __future__ import annotations

from corral.formats import json_outline, openai
from corral.formats.openai import Intent
from corral.handlers.call import Call
from corral.handlers.gate import Gate
from corral.policy.authentication import Principal

BODY_MAX_BYTES = json_outline.LARGE_BYTES


async def read_order(gate: Gate, call: Call, *, if_empty: bytes = b"") -> tuple[Principal, Intent]:
    """Who orders, and what. Counts against the key's rate."""
    principal = gate.authenticate(call)
    gate.admit(call, principal)
    body = await call.exchange.body(BODY_MAX_BYTES)
    form_type = openai.form_type(call.exchange.head.header(b"content-type"))
    return principal, openai.read_intent(body or if_empty, form_type)
