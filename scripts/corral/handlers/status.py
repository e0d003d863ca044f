"""How the gate is: for probes, for Prometheus, and for people. Nothing here wakes or loads a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from corral import errors
from corral.drivers import clock, process_facts
from corral.formats import http1, prometheus_text
from corral.formats.status import ModelState, StatusDocument, body, ping_code, ready
from corral.handlers.call import Call
from corral.handlers.gate import Gate
from corral.handlers.replies import JSON_TYPE, send_json


class Teller(Protocol):
    """Who knows what the status file says. The gate does, and before it whoever stands in its place."""

    @property
    def status(self) -> Callable[[], StatusDocument]: ...


async def root(gate: Gate, call: Call) -> None:
    send_json(call, {"name": "corral", "version": gate.version})


async def ping(teller: Teller, call: Call) -> None:
    """For load balancers: the same codes as on the health port."""
    call.exchange.respond(ping_code(teller.status()), (), lines=call.lines)


async def is_ready(teller: Teller, call: Call) -> None:
    if ready(teller.status()):
        send_json(call, {"status": "ready"})
    else:
        send_json(call, {"status": "not ready"}, status=503)


async def is_alive(_teller: Teller, call: Call) -> None:
    send_json(call, {"status": "ok"})


LIFE = ("/live", "/healthz")


def must_be_answered(check_path: str, head: http1.RequestHead) -> bool:
    """What is answered however many others ask: where it is not, a platform kills.

    Some know no other question than /ping, and no other port to ask it on.
    """
    return head.path in (*LIFE, "/ping", check_path) and head.method in ("GET", "HEAD")


PROBES: dict[str, Callable[[Teller, Call], Coroutine[Any, Any, None]]] = {
    **dict.fromkeys(LIFE, is_alive),
    "/ping": ping,
    "/ready": is_ready,
    "/readyz": is_ready,
}


async def health(gate: Gate, call: Call) -> None:
    """Brief for everybody; with a key also what runs."""
    document = gate.status()
    brief = {
        "status": "ok" if ready(document) else "not ready",
        "version": gate.version,
        "uptime_seconds": round(clock.monotonic() - gate.started_at, 3),
    }
    try:
        gate.authenticate(call)
    except errors.InvalidApiKey:
        send_json(call, brief)
        return
    states = gate.fleet.statuses()
    more = {
        "active_models": sum(each.state is ModelState.READY for each in states.values()),
        "active_requests": gate.fleet.queue.active,
        **body(document),
    }
    send_json(call, brief | more)


async def metrics(gate: Gate, call: Call) -> None:
    """One scrape: figures that are cheaper to ask for than to keep are asked for now."""
    instruments = gate.metrics
    for name in gate.catalogue.models:
        queue = gate.fleet.queue.stats(name)
        instruments.queue_depth.labels(name).set(queue.waiting)
        instruments.queue_oldest_wait_seconds.labels(name).set(queue.oldest_wait_s)
        instruments.queue_estimated_wait_seconds.labels(name).set(queue.next_wait_s)
        instruments.active_requests.labels(name).set(queue.running)
    gate.fleet.memory.publish()
    gate.recorder.flush()
    instruments.open_connections.set(gate.open_connections())
    instruments.log_lines_dropped.follow(gate.dropped_log_lines())
    instruments.record_process(*process_facts.own_usage())
    families = instruments.families()
    accept = call.exchange.head.header(b"accept") or ""
    if "application/json" in accept:
        text = json.dumps(prometheus_text.to_json(families)).encode()
        call.exchange.respond(200, [JSON_TYPE], text, call.lines)
        return
    content_type = (b"content-type", prometheus_text.CONTENT_TYPE.encode())
    text = prometheus_text.render(families)
    call.exchange.respond(200, [content_type], text, call.lines)
