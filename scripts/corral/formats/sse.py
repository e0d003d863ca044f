"""Server-sent events (WHATWG HTML, 9.2) as Corral itself writes them: a name and one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping

CONTENT_TYPE = b"text/event-stream"
# Told to every proxy on the way: do not gather, do not compress.
UNBUFFERED = ((b"cache-control", b"no-cache, no-transform"), (b"x-accel-buffering", b"no"))
HEADERS = ((b"content-type", CONTENT_TYPE), *UNBUFFERED)


# Ends the line and the event that an error found half written.
CUT = b"\n\n"


def comment(text: str) -> bytes:
    """A line that every reader skips, and that tells proxies that somebody is there."""
    return f": {text}\n\n".encode()


def event(name: str, data: Mapping[str, object]) -> bytes:
    """One event. JSON escapes every line break, so one `data:` line always holds all of it."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
