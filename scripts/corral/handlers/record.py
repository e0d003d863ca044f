"""What is kept of a request when it is over: a line in the access log, a few numbers in the metrics.

Real status codes, refusals included. Nothing of a prompt, nothing of a key, no query string.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from corral import errors
from corral.drivers import clock
from corral.drivers.log_files import LogFile
from corral.handlers.call import Call
from corral.metrics import UNKNOWN, Metrics
from corral.settings import LogFormat

# What nginx writes for a client that left before its answer: no code of HTTP's own says it. One that
# left in the middle has had its status, so the last column says it in both cases.
CLIENT_GONE_STATUS = 499
CLIENT_GONE = "client_gone"


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


class Recorder:
    def __init__(self, access_log: LogFile, form: LogFormat, metrics: Metrics) -> None:
        self._access_log = access_log
        self._line = json_line if form is LogFormat.JSON else text_line
        self._metrics = metrics
        self._seconds = clock.PerSecond(clock.iso_second)
        # When the last request for a model came or ended, for who measures idleness.
        self.last_activity_at = clock.monotonic()

    def finished(self, call: Call) -> None:
        """A request is over, however it ended."""
        exchange = call.exchange
        duration_s = clock.monotonic() - exchange.received_at
        status = exchange.status or (CLIENT_GONE_STATUS if call.gone else 500)
        self._write(
            Entry(
                call.key_id,
                exchange.head.method,
                exchange.head.path,
                status,
                call.model,
                duration_s,
                call.queue_wait_s,
                exchange.bytes_sent,
                exchange.client,
                call.request_id,
                CLIENT_GONE if call.gone else None if call.error is None else call.error.code,
            )
        )
        if call.is_inference:
            self._count(call, status, duration_s)

    def refused(self, client: str, error: errors.CorralError) -> None:
        """Bytes that were no HTTP request, or a connection too many."""
        self._write(Entry("-", "-", "-", error.status, client=client, error=error.code))
        self._metrics.rejections.labels(error.code, "-").inc()

    def _write(self, entry: Entry) -> None:
        now = clock.wall()
        when = f"{self._seconds.at(now)}.{int(now * 1000) % 1000:03d}Z"
        self._access_log.write(self._line(when, entry))

    def _count(self, call: Call, status: int, duration_s: float) -> None:
        """The figures of a request for tokens. Probes and scrapes are no traffic and are not counted."""
        metrics = self._metrics
        model = call.model or UNKNOWN
        metrics.requests.labels(model, outcome(call, status)).inc()
        metrics.request_duration_seconds.labels(model).observe(duration_s)
        if call.model:  # not for strangers: whoever scans the internet must not keep a machine awake
            metrics.last_activity_timestamp_seconds.set(clock.wall())
            self.last_activity_at = clock.monotonic()
        if call.error is not None and not call.reached_model:
            metrics.rejections.labels(call.error.code, call.key_id).inc()
        if call.reached_model:
            metrics.queue_wait_seconds.labels(model, call.priority.name.lower()).observe(call.queue_wait_s)
        self._count_tokens(call, model)
        if call.first_byte_at is not None:
            waited_s = call.first_byte_at - call.exchange.received_at
            metrics.time_to_first_token_seconds.labels(model).observe(waited_s)
            others_s = call.queue_wait_s + call.waited_on_others_s
            metrics.overhead_seconds.observe(max(0.0, duration_s - others_s))

    def _count_tokens(self, call: Call, model: str) -> None:
        prompt, generated = call.tokens
        if prompt:
            self._metrics.tokens.labels(model, call.key_id, "prompt").inc(prompt)
        if not generated:
            return
        self._metrics.tokens.labels(model, call.key_id, "completion").inc(generated)
        if call.exchange.is_event_stream and call.first_byte_at is not None and generated > 1:
            seconds = clock.monotonic() - call.first_byte_at
            self._metrics.time_per_output_token_seconds.labels(model).observe(seconds / (generated - 1))


def outcome(call: Call, status: int) -> str:
    if call.gone:
        return "cancelled"
    if call.error is not None and not call.reached_model:
        return "rejected"
    return "success" if status < 400 and call.error is None else "error"


def text_line(when: str, entry: Entry) -> bytes:
    return (
        f"{when} | {entry.key_id} | {entry.method} {entry.path} | {entry.status} | {entry.model or '-'} | "
        f"{entry.duration_s * 1000:.1f} ms | {entry.bytes_sent} B | {entry.client} | {entry.request_id} | "
        f"{entry.error or '-'}\n"
    ).encode()


def json_line(when: str, entry: Entry) -> bytes:
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
