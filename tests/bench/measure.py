"""One contestant, one figure after the other. Times are kept in seconds, sizes in bytes."""

from __future__ import annotations

import http.client
import json
from functools import partial
from typing import NamedTuple

from tests.bench import kernel
from tests.bench.contestants import (
    Contestant,
    Ring,
    Target,
    await_listening,
    chat,
    first_answer,
    request,
    stream_request,
)
from tests.bench.programs import Load, run_load
from tests.support import KEY

Figures = dict[str, float]

CHUNKS_PER_S = 50.0
FEW_STREAMS, MANY_STREAMS = 200, 1000
# Below the default MAX_REQUEST_BODY_SIZE, and nearly all of it one string, as a picture is.
LARGE_BODY_BYTES = 10_000_000
LARGE_BODIES = 4
LARGE_BODY_STREAMS = 50


class Pace(NamedTuple):
    """How long each part takes, and how often it is done."""

    rounds: int
    starts: int
    warm_up_s: float
    requests_s: float
    streams_s: float


FULL = Pace(rounds=5, starts=7, warm_up_s=0.5, requests_s=2.0, streams_s=3.0)
QUICK = Pace(rounds=2, starts=3, warm_up_s=0.2, requests_s=0.5, streams_s=0.8)
GATE = Pace(rounds=5, starts=0, warm_up_s=0.2, requests_s=0.7, streams_s=1.0)


def _load(ring: Ring, target: Target, kind: str, data: bytes, connections: int, pace: Pace) -> Figures:
    seconds = pace.streams_s if kind == "streams" else pace.requests_s
    warm_up_s = pace.warm_up_s if kind == "requests" else pace.warm_up_s + connections / 1000
    load = Load(kind, target.port, data, connections, warm_up_s, seconds)
    result = run_load(ring.programs, ring.load_core, load, lambda: kernel.cpu_ns(target.pids))
    before_ns, after_ns = result["readings"]
    each_s = (after_ns - before_ns) / 1e9 / max(1, result["count"])
    return {
        "cpu_s": each_s,
        "per_s": result["count"] / result["seconds"],
        "p50_s": result["p50_ns"] / 1e9,
        "p99_s": result["p99_ns"] / 1e9,
        "first_byte_p50_s": result["first_byte_p50_ns"] / 1e9,
        "first_byte_p99_s": result["first_byte_p99_ns"] / 1e9,
    }


def _named(prefix: str, figures: Figures) -> Figures:
    return {f"{prefix}.{name}": value for name, value in figures.items()}


def requests(ring: Ring, target: Target, connections: int, pace: Pace) -> Figures:
    """Whole answers, each connection asking again as soon as it has been answered."""
    figures = _load(ring, target, "requests", request(chat()), connections, pace)
    return _named(f"requests_{connections}", figures)


def streams(ring: Ring, target: Target, count: int, pace: Pace) -> Figures:
    """So many streams at once, each with CHUNKS_PER_S. The times are those of chunks on their way."""
    figures = _load(ring, target, "streams", stream_request(CHUNKS_PER_S), count, pace)
    return _named(f"streams_{count}", figures)


def one_round(ring: Ring, target: Target, pace: Pace) -> Figures:
    return {
        **requests(ring, target, 64, pace),
        **requests(ring, target, 1, pace),
        **streams(ring, target, FEW_STREAMS, pace),
        **streams(ring, target, MANY_STREAMS, pace),
    }


def gated(ring: Ring, target: Target, pace: Pace = GATE) -> Figures:
    """The two figures that the budget is held with."""
    return requests(ring, target, 64, pace) | streams(ring, target, FEW_STREAMS, pace)


# What needs a process of its own ------------------------------------------------------------------


def start(ring: Ring, contestant: Contestant) -> Figures:
    """From the process's start until it takes a connection, and until a first question is answered."""
    with contestant.start(ring) as target:
        figures = {
            "start.listening_s": await_listening(target),
            "start.first_answer_s": first_answer(target),
        }
        # Of what serves: without Corral's health server, which is a process of its own, and nginx's master.
        return figures | {"start.resident_bytes": max(kernel.resident_bytes([pid]) for pid in target.pids)}


def memory(ring: Ring, contestant: Contestant) -> Figures:
    """What an open stream keeps in memory, of a process that has answered requests before."""
    with contestant.start(ring) as target:
        await_listening(target)
        first_answer(target)
        requests(ring, target, 64, QUICK)
        pids = target.pids
        before_bytes = kernel.resident_bytes(pids)
        load = Load("streams", target.port, stream_request(2), MANY_STREAMS, 1.0, 1.0)
        result = run_load(ring.programs, ring.load_core, load, lambda: kernel.resident_bytes(pids))
        return {"memory.stream_bytes": (result["readings"][1] - before_bytes) / MANY_STREAMS}


def large_bodies(ring: Ring, target: Target) -> Figures:
    """The longest that a chunk of other streams is held up while bodies of 10 MB come, and without them."""
    longest = {}
    for name, meanwhile in (("quiet", lambda: None), ("large", partial(_send_large_bodies, target))):
        load = Load("streams", target.port, stream_request(CHUNKS_PER_S), LARGE_BODY_STREAMS, 0.3, 2.0)
        result = run_load(ring.programs, ring.load_core, load, meanwhile=meanwhile)
        longest[f"stall.{name}_s"] = result["max_ns"] / 1e9
    return longest


def _send_large_bodies(target: Target) -> None:
    """One after the other, each as a client with an image in its question sends it."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * LARGE_BODY_BYTES}}
    body = json.dumps(chat(messages=[{"role": "user", "content": [picture]}]))
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    for _ in range(LARGE_BODIES):
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"a large body is answered with {answer.status}: {answer.read()!r}")
        answer.read()
        connection.close()
