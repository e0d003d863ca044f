"""The Anthropic dialect, as far as the gate speaks it itself: an error inside a stream that has begun."""

from __future__ import annotations

from corral import errors
from corral.formats.openai import encode

# Anthropic's word for each of our types of error; its clients raise by the type.
TYPES = {"server_error": "api_error", "insufficient_quota": "rate_limit_error"}


def error_event(error: errors.CorralError) -> bytes:
    inner = {"type": TYPES.get(error.type, error.type), "message": error.message}
    return b"event: error\ndata: " + encode({"type": "error", "error": inner}) + b"\n\n"
