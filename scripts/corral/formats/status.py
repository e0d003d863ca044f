"""The status document: what the gateway says about itself, for whoever asks without disturbing it.

The gateway writes one as a small JSON file; the health process reads it, and both answer probes from
it. The words for a model's state and for the server's, the codes of `/ping`, the body of `/status` and
the events of its stream are therefore written once, here, so that two ports can't disagree. The file
has a single writer and readers of the same version, so a document that is not exactly as expected is
refused, never guessed at.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

T = TypeVar("T")
# Name and data of one event in a stream of statuses.
StatusEvent = tuple[str, dict[str, object]]
# How often such a stream shows that it is open.
HEARTBEAT_S = 30.0

# Ten thousand models come to about one MiB. More is not a status file of ours.
DOCUMENT_BYTES_MAX = 4 * 1024 * 1024
PID_MAX = 2**31 - 1


class ModelState(enum.Enum):
    """The words of a model's life, in the order in which it passes through them."""

    OFF = "off"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


# For the way of a request: an enum's members take four times as long to look up as a name (on Python 3.11).
READY: Final = ModelState.READY
OFF: Final = ModelState.OFF


class Phase(enum.Enum):
    """Where the gateway is between its first and its last breath."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class ServerState(enum.Enum):
    """One word for the whole server. The last four only an observer of the file can come to."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    STALE = "stale"
    GONE = "gone"
    UNREADABLE = "unreadable"
    UNKNOWN = "unknown"


# 204 keeps a platform waiting, 200 brings traffic, 503 takes it away. UNKNOWN is a health process that
# runs alone, with no gateway to report on: the machine itself is alive.
PING_CODES: Mapping[ServerState, int] = {
    ServerState.STARTING: 204,
    ServerState.READY: 200,
    ServerState.DRAINING: 503,
    ServerState.FAILED: 503,
    ServerState.STALE: 503,
    ServerState.GONE: 503,
    ServerState.UNREADABLE: 503,
    ServerState.UNKNOWN: 200,
}

_OWN_KEYS = frozenset({"status", "port", "vram_mb"})


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model as the world may see it. `extra` holds more keys for those who look closer."""

    state: ModelState
    port: int | None = None
    vram_mb: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _OWN_KEYS.isdisjoint(self.extra):
            raise ValueError(f"a model's extra keys may not be among {sorted(_OWN_KEYS)}")


@dataclass(frozen=True, slots=True)
class StatusDocument:
    """All that the status file says.

    `pid_started` is the writer's start time in the kernel's ticks, which tells it from a later process
    that was given the same pid; None where the kernel does not say. `written_at` is wall time.
    """

    instance: str
    pid: int
    pid_started: int | None
    written_at: float
    phase: Phase
    preload_settled: bool
    single_model_failed: bool
    models: Mapping[str, ModelStatus]


class View(NamedTuple):
    """What the world may see: one word for the server, and its models."""

    server: ServerState
    models: Mapping[str, ModelStatus]


def server_state(document: StatusDocument) -> ServerState:
    """What the document says of the server. An ending outranks a failure, a failure an unfinished start."""
    if document.phase is Phase.DRAINING:
        return ServerState.DRAINING
    if document.single_model_failed:
        return ServerState.FAILED
    if document.phase is Phase.STARTING or not document.preload_settled:
        return ServerState.STARTING
    return ServerState.READY


def ping_code(document: StatusDocument) -> int:
    return PING_CODES[server_state(document)]


def ready(document: StatusDocument) -> bool:
    """For platforms that take any 2xx as ready: here a 204 would lie."""
    return ping_code(document) == 200


def body(document: StatusDocument) -> dict[str, object]:
    """The answer of `/status`, in the writer's own words."""
    return view_body(View(server_state(document), document.models))


def view_body(view: View) -> dict[str, object]:
    summary: dict[str, int] = {}
    for model in view.models.values():
        summary[model.state.value] = summary.get(model.state.value, 0) + 1
    return {
        "server": {"status": view.server.value},
        "models": {alias: model_entry(model) for alias, model in view.models.items()},
        "summary": summary,
    }


def view_events(before: View | None, after: View) -> Iterator[StatusEvent]:
    """What a stream of statuses says next; nothing if no word has changed.

    Everything comes first of all, and again when the server itself has changed or a model has left.
    """
    if before is None:
        yield full_status(after)
        return
    if before.server is not after.server or not before.models.keys() <= after.models.keys():
        yield full_status(after)
    for alias, model in after.models.items():
        known = before.models.get(alias)
        if known is None or known.state is not model.state:
            yield model_update(alias, model)


def full_status(view: View) -> StatusEvent:
    return "full_status", view_body(view)


def model_update(alias: str, model: ModelStatus) -> StatusEvent:
    return "model_update", {"alias": alias, **model_entry(model)}


def model_entry(model: ModelStatus) -> dict[str, object]:
    entry: dict[str, object] = {"status": model.state.value}
    if model.port is not None:
        entry["port"] = model.port
    if model.vram_mb is not None:
        entry["vram_mb"] = model.vram_mb
    entry.update(model.extra)
    return entry


def to_json(document: StatusDocument) -> bytes:
    return json.dumps(
        {
            "instance": document.instance,
            "pid": document.pid,
            "pid_started": document.pid_started,
            "written_at": float(document.written_at),
            "phase": document.phase.value,
            "preload_settled": document.preload_settled,
            "single_model_failed": document.single_model_failed,
            "models": {alias: model_entry(model) for alias, model in document.models.items()},
        },
        allow_nan=False,
        separators=(",", ":"),
    ).encode("ascii")


def from_json(payload: bytes) -> StatusDocument:
    """Read a document back. Anything else than what `to_json` writes is a ValueError."""
    if len(payload) > DOCUMENT_BYTES_MAX:
        raise ValueError(f"the status document has more than {DOCUMENT_BYTES_MAX} bytes")
    try:
        fields = json.loads(payload, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("the status document is nested too deeply") from None
    if type(fields) is not dict:
        raise ValueError("the status document is not a JSON object")
    document = StatusDocument(
        instance=_take(fields, "instance", str),
        pid=_take(fields, "pid", int),
        pid_started=_take_whole_or_none(fields, "pid_started"),
        written_at=_take(fields, "written_at", float),
        phase=Phase(_take(fields, "phase", str)),
        preload_settled=_take(fields, "preload_settled", bool),
        single_model_failed=_take(fields, "single_model_failed", bool),
        models={alias: _model_from(entry) for alias, entry in _take(fields, "models", dict).items()},
    )
    if not 0 < document.pid <= PID_MAX:
        raise ValueError(f"the status document names a writer that can't be: pid {document.pid}")
    if fields:
        raise ValueError(f"the status document has keys that nobody knows: {sorted(fields)}")
    return document


def _model_from(entry: object) -> ModelStatus:
    if type(entry) is not dict:
        raise ValueError("a model's entry in the status document is not a JSON object")
    return ModelStatus(
        state=ModelState(_take(entry, "status", str)),
        port=_take_whole_or_none(entry, "port"),
        vram_mb=_take_whole_or_none(entry, "vram_mb"),
        extra=entry,
    )


def _take(fields: dict[str, Any], key: str, kind: type[T]) -> T:
    """Take out a value of exactly this type: to Python True is a whole number, to JSON it is not."""
    value = fields.pop(key, None)
    if type(value) is not kind:
        raise ValueError(f"{key} in the status document is {value!r:.80}, not {kind.__name__}")
    return value


def _take_whole_or_none(fields: dict[str, Any], key: str) -> int | None:
    if fields.get(key) is None:
        fields.pop(key, None)
        return None
    value = _take(fields, key, int)
    if value < 0:
        raise ValueError(f"{key} in the status document is below zero: {value}")
    return value


def _finite(text: str) -> float:
    """JSON has no infinity; Python reads one from `Infinity`, and also from `1e999`."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.80} in the status document is no finite number")
    return value
