"""Server-sent events (WHATWG HTML, 9.2) as Corral itself writes them: a name and one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping

CONTENT_TYPE = "text/event-stream"


def event(name: str, data: Mapping[str, object]) -> bytes:
    """One event. JSON escapes every line break, so one `data:` line always holds all of it."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
