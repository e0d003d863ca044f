"""One contestant, one figure after the other. Times are kept in seconds, sizes in bytes."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests import cold_start
from tests.bench import kernel
from tests.bench.contestants import (
    Contestant,
    Part,
    Ring,
    Target,
    await_listening,
    chat,
    first_answer,
    requests_of_many_lengths,
    stream_request,
)
from tests.bench.programs import Load, run_load
from tests.support import KEY

Figures = dict[str, float]

FEW_STREAMS, MANY_STREAMS = 200, 1000
STREAMS_SETTLE_S = 0.3  # what load.c waits when all are open
# A process is quiet when it uses less than a tenth of its core.
QUIET_PART, QUIET_S, QUIET_TIMEOUT_S = 0.1, 0.1, 60.0
# Below the default MAX_REQUEST_BODY_SIZE, and nearly all of it one string, as a picture is.
LARGE_BODY_BYTES = 10_000_000
LARGE_BODIES = 4
LARGE_BODY_STREAMS = 50


class Pace(NamedTuple):
    """How long each part takes, and how often it is done: in each round so many takes."""

    rounds: int
    starts: int
    warm_up_s: float
    requests_s: float
    streams_s: float
    chunks_per_s: float = 50.0  # of each stream
    opened_per_s: float = 1000.0  # streams
    takes: int = 1


FULL = Pace(rounds=5, starts=7, warm_up_s=0.3, requests_s=0.7, streams_s=1.0, takes=3)
QUICK = Pace(rounds=2, starts=3, warm_up_s=0.2, requests_s=0.5, streams_s=0.8)
GATE = Pace(rounds=5, starts=0, warm_up_s=0.1, requests_s=0.4, streams_s=0.6, takes=3)
# What is slow would drown in everybody else's streams, and its figures would be those of the drowning. An
# answer that takes a second on 64 connections is seldom begun and ended within less than several.
SLOW = Pace(
    rounds=2, starts=1, warm_up_s=2.0, requests_s=5.0, streams_s=3.0, chunks_per_s=2.0, opened_per_s=20.0
)


def pace_for(contestant: Contestant, pace: Pace) -> Pace:
    return SLOW if contestant.slow else pace


def _figures(ring: Ring, target: Target, load: Load) -> Figures:
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


def requests(ring: Ring, target: Target, pace: Pace, connections: int, **more: object) -> Figures:
    """Whole answers, each connection asking again as soon as it has been answered."""
    data = requests_of_many_lengths(**more)
    load = Load("requests", target.port, data, connections, pace.warm_up_s, pace.requests_s)
    return _named(f"requests_{connections}", _figures(ring, target, load))


def _streams(target: Target, pace: Pace, count: int, seconds: float, chunks_per_s: float) -> Load:
    ramp_s = pace.warm_up_s + count / pace.opened_per_s
    data = (stream_request(chunks_per_s, ramp_s + STREAMS_SETTLE_S + seconds),)
    return Load("streams", target.port, data, count, ramp_s, seconds)


def streams(ring: Ring, target: Target, pace: Pace, count: int) -> Figures:
    """So many streams at once, each at the same pace. The times are those of chunks on their way."""
    load = _streams(target, pace, count, pace.streams_s, pace.chunks_per_s)
    return _named(f"streams_{count}", _figures(ring, target, load))


def behind_it_a_real_engine(ring: Ring, target: Target, pace: Pace) -> Figures:
    """The proxy's own time, and how much later an answer of one token comes than from its engine itself.

    Whole latencies would be the engine's.
    """
    many, one, direct = (
        requests(ring, each, pace, connections, max_tokens=1)
        for each, connections in ((target, 64), (target, 1), (engine_of(target), 1))
    )
    return {
        "requests_64.cpu_s": many["requests_64.cpu_s"],
        "requests_1.cpu_s": one["requests_1.cpu_s"],
        "requests_1.added_p50_s": one["requests_1.p50_s"] - direct["requests_1.p50_s"],
    }


def engine_of(target: Target) -> Target:
    """Its engine, to be asked without it."""
    words = kernel.command_of(target.engines[0]).split()
    return Target(int(words[words.index("--port") + 1]), None, target.spawned_at)


Measure = Callable[[Ring, Target, Pace], Figures]
IN_TURN: dict[Part, Measure] = {
    Part.MANY_CONNECTIONS: partial(requests, connections=64),
    Part.ONE_CONNECTION: partial(requests, connections=1),
    Part.FEW_STREAMS: partial(streams, count=FEW_STREAMS),
    Part.MANY_STREAMS: partial(streams, count=MANY_STREAMS),
    Part.REAL_ENGINE: behind_it_a_real_engine,
}


def one_round(ring: Ring, contestant: Contestant, target: Target, pace: Pace) -> Figures:
    figures: Figures = {}
    for part, measured in IN_TURN.items():
        if part in contestant.parts:
            figures |= quietest(measured, ring, target, pace_for(contestant, pace))
    return figures


def quietest(measured: Measure, ring: Ring, target: Target, pace: Pace) -> Figures:
    """The take with the least processor time: what else the machine does adds to it, never takes from it."""

    def take() -> Figures:
        figures = measured(ring, target, pace)
        until_quiet(target)
        return figures

    return min((take() for _ in range(pace.takes)), key=processor_time_s)


def processor_time_s(figures: Figures) -> float:
    return sum(value for name, value in figures.items() if name.endswith(".cpu_s"))


def until_quiet(target: Target) -> None:
    """Wait until it has done with what was asked: its aftermath is not to be the next one's burden."""
    deadline = time.monotonic() + QUIET_TIMEOUT_S
    while target.pid is not None:
        before_ns = kernel.cpu_ns(target.pids)
        time.sleep(QUIET_S)
        if kernel.cpu_ns(target.pids) - before_ns < QUIET_PART * QUIET_S * 1e9:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"a contestant is still busy, {QUIET_TIMEOUT_S:g} s after its last request")


def gated(ring: Ring, target: Target, pace: Pace = GATE) -> Figures:
    """The two figures that the budget is held with."""
    parts = (IN_TURN[Part.MANY_CONNECTIONS], IN_TURN[Part.FEW_STREAMS])
    many, few = (quietest(part, ring, target, pace) for part in parts)
    return many | few


# What needs a process of its own ------------------------------------------------------------------


def start(ring: Ring, contestant: Contestant) -> Figures:
    """From the process's start until it takes a connection, and until a first question is answered."""
    with contestant.start(ring) as target:
        names = ("start.listening_s", "start.health_port_s")
        figures = dict(zip(names, await_listening(target), strict=False))  # not everybody has a health port
        answered_s = first_answer(target)
        if Part.FIRST_ANSWER in contestant.parts:
            figures["start.first_answer_s"] = answered_s
        # Of what serves: without Corral's health server, which is a process of its own, and nginx's master.
        return figures | {"start.resident_bytes": max(kernel.resident_bytes([pid]) for pid in target.pids)}


def started_cold(engine: Path, pace: Pace) -> Figures:
    """Of `make cold-start`: by the entrypoint, on whatever cores there are, the model loaded on demand."""
    starts_ms = cold_start.median(engine, pace.starts, preload=False)
    return {f"cold_start.{name}_s": each / 1000 for name, each in starts_ms._asdict().items()}


def memory(ring: Ring, contestant: Contestant) -> Figures:
    """What an open stream keeps in memory, of a process that has answered requests before."""
    if Part.STREAM_MEMORY not in contestant.parts:
        return {}
    pace = pace_for(contestant, QUICK)
    count = MANY_STREAMS if Part.MANY_STREAMS in contestant.parts else FEW_STREAMS
    with contestant.start(ring) as target:
        await_listening(target)
        first_answer(target)
        requests(ring, target, pace, 64)
        until_quiet(target)
        pids = target.pids
        before_bytes = kernel.resident_bytes(pids)
        load = _streams(target, pace, count, 1.0, chunks_per_s=2.0)
        result = run_load(ring.programs, ring.load_core, load, lambda: kernel.resident_bytes(pids))
        return {"memory.stream_bytes": (result["readings"][1] - before_bytes) / count}


def large_bodies(ring: Ring, contestant: Contestant, target: Target, pace: Pace) -> Figures:
    """The longest that a chunk of other streams is held up while bodies of 10 MB come, and without them."""
    longest: Figures = {}
    if Part.LARGE_BODIES not in contestant.parts:
        return longest
    pace = pace_for(contestant, pace)
    for name, meanwhile in (("quiet", lambda: None), ("large", partial(_send_large_bodies, target))):
        load = _streams(target, pace, LARGE_BODY_STREAMS, 2.0, pace.chunks_per_s)
        result = run_load(ring.programs, ring.load_core, load, meanwhile=meanwhile)
        longest[f"stall.{name}_s"] = result["max_ns"] / 1e9
        until_quiet(target)
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
