"""Who asks, and how it wants to be served: what the words of a request's head say to the gate.

A client says the same words in request after request. So what they mean is worked out once and kept for
the next (see formats/http1/known_heads.py), and nothing here depends on anything but the head and the
principal that it belongs to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from corral import errors
from corral.formats import http1, openai
from corral.formats.priority import Priority
from corral.policy import authentication
from corral.policy.authentication import Principal


# Made once, read with every request: Python finds a slot sooner than a field of a NamedTuple.
@dataclass(frozen=True, slots=True)
class Visitor:
    principal: Principal
    priority: Priority
    timeout_s: float | None  # how long it is willing to wait for the whole of an answer
    may_load: bool  # a model for it; who would rather go elsewhere than wait for a load says no
    form_type: str | None  # the content type of a form, whose boundary it names
    fault: errors.InvalidRequest | None = None  # what makes no sense of it


def read(head: http1.RequestHead, principal: Principal) -> Visitor:
    """What a head says."""
    fault, timeout_s = None, None
    try:
        timeout_s = _timeout_s(head.header(b"x-request-timeout"))
    except errors.InvalidRequest as error:
        fault = error
    return Visitor(
        principal,
        authentication.priority_of(principal, head.header(b"x-request-priority")),
        timeout_s,
        head.fields.get(b"x-model-load", b"").lower() != b"never",
        openai.form_type(head.header(b"content-type")),
        fault,
    )


def _timeout_s(text: str | None) -> float | None:
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
