"""What is kept of a request when it is over: a line in the access log, a few numbers in the metrics.

Real status codes, refusals included. Nothing of a prompt, nothing of a key, no query string.

Nobody waits for this, so it is done for all requests of one turn of the event loop together: the same
few functions over and over cost about half of what they cost in between other things (measured).
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import NamedTuple

from corral import errors
from corral.drivers import clock
from corral.drivers.log_files import LogFile
from corral.formats.priority import Priority
from corral.handlers.call import Call
from corral.metrics import SERIES_MAX, UNKNOWN, Counter, Histogram, Metrics
from corral.settings import LogFormat

log = logging.getLogger("corral.record")

# What nginx writes for a client that left before its answer: no code of HTTP's own says it. One that
# left in the middle has had its status, so the last column says it in both cases.
CLIENT_GONE_STATUS = 499
CLIENT_GONE = "client_gone"


SUCCESS = "success"
PRIORITIES = {priority: priority.name.lower() for priority in Priority}


# An Entry's fields without their names: to make one with them takes three times as long.
Row = tuple[str, str, str, int, str, float, float, int, str, str, str | None]


class Entry(NamedTuple):
    """One line of the access log."""

    key_id: str
    method: str
    path: str
    status: int
    model: str = ""
    duration_s: float = 0.0
    queue_wait_s: float = 0.0
    bytes_sent: int = 0
    client: str = "-"
    request_id: str = "-"
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """What is counted for one model, one key and one priority, asked for once."""

    succeeded: Counter
    duration_seconds: Histogram
    queue_wait_seconds: Histogram
    time_to_first_token_seconds: Histogram
    time_per_output_token_seconds: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter


class Recorder:
    def __init__(self, access_log: LogFile, form: LogFormat, metrics: Metrics) -> None:
        self._access_log = access_log
        self._line = json_line if form is LogFormat.JSON else text_line
        self._metrics = metrics
        self._seconds = clock.PerSecond(clock.iso_second)
        self._over: list[Call] = []
        self._series: dict[tuple[str, str, Priority], Series] = {}
        # When the last request for a model came or ended: idleness began anew.
        self.last_activity_at = clock.monotonic()
        self._published_at = self.last_activity_at

    def finished(self, call: Call) -> None:
        """A request is over, however it ended. It is written down when whoever is ready now is served."""
        call.ended_at = clock.monotonic()
        if not self._over:
            asyncio.get_running_loop().call_soon(self.flush)
        self._over.append(call)

    def flush(self) -> None:
        """Write down what is over."""
        over, self._over = self._over, []
        if over:
            when, lines = self._now(), []
            for call in over:
                try:
                    status = status_of(call)
                    lines.append(self._line(when, row_of(call, status)))
                    if call.is_inference:
                        self._count(call, status)
                except Exception:  # one request's fault must not cost the others their lines
                    log.exception("request %s could not be recorded", call.request_id)
            self._access_log.write(b"".join(lines))
        if self.last_activity_at != self._published_at:
            self._published_at = self.last_activity_at
            ago_s = clock.monotonic() - self.last_activity_at
            self._metrics.last_activity_timestamp_seconds.set(clock.wall() - ago_s)

    def refused(self, client: str, error: errors.CorralError) -> None:
        """Bytes that were no HTTP request, or a connection too many."""
        refusal = Entry("-", "-", "-", error.status, client=client, error=error.code)
        self._access_log.write(self._line(self._now(), refusal))
        self._metrics.rejections.labels(error.code, "-").inc()

    def _now(self) -> str:
        now = clock.wall()
        return f"{self._seconds.at(now)}.{int(now * 1000) % 1000:03d}Z"

    def _count(self, call: Call, status: int) -> None:
        """The figures of a request for tokens. Probes and scrapes are no traffic and are not counted."""
        if not call.reached_model:
            self._count_refused(call, status)
            return
        self.last_activity_at = call.ended_at
        where = call.model, call.key_id, call.priority
        series = self._series.get(where) or self._begin(where)
        received_at, ended_at = call.exchange.received_at, call.ended_at
        result = outcome(call, status)
        if result is SUCCESS:
            series.succeeded.inc()
        else:
            self._metrics.requests.labels(call.model, result).inc()
        series.duration_seconds.observe(ended_at - received_at)
        series.queue_wait_seconds.observe(call.queue_wait_s)
        prompt, generated = call.tokens
        if prompt:
            series.prompt_tokens.inc(prompt)
        if generated:
            series.completion_tokens.inc(generated)
        first_byte_at = call.first_byte_at
        if first_byte_at is not None:
            series.time_to_first_token_seconds.observe(first_byte_at - received_at)
            own_s = ended_at - received_at - call.queue_wait_s - call.waited_on_others_s
            self._metrics.overhead_seconds.observe(own_s if own_s > 0.0 else 0.0)
            if generated and generated > 1 and call.exchange.is_event_stream:
                each_s = (ended_at - first_byte_at) / (generated - 1)
                series.time_per_output_token_seconds.observe(each_s)

    def _count_refused(self, call: Call, status: int) -> None:
        """It never came to a model, or not to one that there is."""
        model = call.model or UNKNOWN
        self._metrics.requests.labels(model, outcome(call, status)).inc()
        self._metrics.request_duration_seconds.labels(model).observe(
            call.ended_at - call.exchange.received_at
        )
        if call.queue_wait_s:
            waits = self._metrics.queue_wait_seconds.labels(model, PRIORITIES[call.priority])
            waits.observe(call.queue_wait_s)
        if call.model:  # not for strangers: whoever scans the internet must not keep a machine awake
            self.last_activity_at = call.ended_at
        if call.error_code is not None:
            self._metrics.rejections.labels(call.error_code, call.key_id).inc()

    def _begin(self, where: tuple[str, str, Priority]) -> Series:
        model, key_id, priority = where
        metrics = self._metrics
        if len(self._series) >= SERIES_MAX:
            self._series.clear()
        series = self._series[where] = Series(
            metrics.requests.labels(model, SUCCESS),
            metrics.request_duration_seconds.labels(model),
            metrics.queue_wait_seconds.labels(model, PRIORITIES[priority]),
            metrics.time_to_first_token_seconds.labels(model),
            metrics.time_per_output_token_seconds.labels(model),
            metrics.tokens.labels(model, key_id, "prompt"),
            metrics.tokens.labels(model, key_id, "completion"),
        )
        return series


def row_of(call: Call, status: int) -> Row:
    exchange = call.exchange
    head = exchange.head
    return (
        call.key_id,
        head.method,
        head.path,
        status,
        call.model,
        call.ended_at - exchange.received_at,
        call.queue_wait_s,
        exchange.bytes_sent,
        exchange.client,
        call.request_id,
        CLIENT_GONE if call.gone else call.error_code,
    )


def status_of(call: Call) -> int:
    return call.exchange.status or (CLIENT_GONE_STATUS if call.gone else 500)


def outcome(call: Call, status: int) -> str:
    if call.gone:
        return "cancelled"
    if call.error_code is None:
        return SUCCESS if status < 400 else "error"
    return "error" if call.reached_model else "rejected"


def text_line(when: str, row: Row) -> bytes:
    key_id, method, path, status, model, duration_s, _waited_s, sent, client, request_id, error = row
    return (
        f"{when} | {key_id} | {method} {path} | {status} | {model or '-'} | {duration_s * 1000:.1f} ms | "
        f"{sent} B | {client} | {request_id} | {error or '-'}\n"
    ).encode()


def json_line(when: str, row: Row) -> bytes:
    entry = Entry._make(row)
    document = {
        "time": when,
        "key_id": entry.key_id,
        "method": entry.method,
        "path": entry.path,
        "status": entry.status,
        "model": entry.model or None,
        "duration_ms": round(entry.duration_s * 1000, 1),
        "queue_ms": round(entry.queue_wait_s * 1000, 1),
        "bytes": entry.bytes_sent,
        "client": entry.client,
        "request_id": entry.request_id,
        "error": entry.error,
    }
    return json.dumps(document).encode() + b"\n"
