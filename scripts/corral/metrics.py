"""Every instrument of the program, declared in one place.

An instrument is a name with a number for each set of label values. Counting happens on the way of
every request, so a series is a small object with one list or number in it, and a caller on that way
keeps the series it has asked for: `labels` is one dictionary look-up, `inc` and `observe` are less.
Only the event loop's thread may write.

What a client sends never becomes a label: models and keys come from the configuration, everything else
is `UNKNOWN`. Should that ever be forgotten, an instrument stops at `SERIES_MAX` and counts the rest as
`OTHER`, so that no client can fill the memory of the gateway or of whoever scrapes it.

Nothing is rendered here. `families` gives plain tuples, and formats/prometheus_text.py makes text of
them; it also says which shape they have.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

UNKNOWN = "unknown"
OTHER = "other"
SERIES_MAX = 10_000

Labels = tuple[tuple[str, str], ...]
Distribution = tuple[tuple[float, ...], tuple[int, ...], float]
Reading = float | Distribution
Family = tuple[str, str, str, tuple[tuple[Labels, Reading], ...]]

# Bounds in seconds. The first two are those of OpenTelemetry's conventions for generative models, which
# dashboards know; a first token may also have to wait for a queue and a cold load, hence the tail.
DURATION_BOUNDS = tuple(0.01 * 2**n for n in range(14))
FIRST_TOKEN_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0),
)
OUTPUT_TOKEN_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
LOAD_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
OVERHEAD_BOUNDS = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)


class Counter:
    """Only ever grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, amount: float = 1) -> None:
        self.value += amount

    def follow(self, total: float) -> None:
        """Take over a total that is counted elsewhere: by the kernel, by the log's own thread."""
        self.value = total

    def read(self) -> float:
        return self.value


class Gauge:
    """Goes up and down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def set(self, value: float) -> None:
        self.value = value

    def add(self, amount: float) -> None:
        self.value += amount

    def read(self) -> float:
        return self.value


class Histogram:
    """Counts observations by size. A bound belongs to the bucket below it."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> Distribution:
        """Bounds, the count in each bucket (one more than bounds), and the sum of all values."""
        return self._bounds, tuple(self._counts), self._total


class Series(Protocol):
    def read(self) -> Reading: ...


S = TypeVar("S", bound=Series)


class Instrument(Generic[S]):
    """All series of one name."""

    __slots__ = ("_label_names", "_make", "_series", "help", "kind", "name")

    def __init__(
        self, name: str, kind: str, help: str, label_names: tuple[str, ...], make: Callable[[], S]
    ) -> None:
        self.name = name
        self.kind = kind
        self.help = help
        self._label_names = label_names
        self._make = make
        self._series: dict[tuple[str, ...], S] = {}

    def labels(self, *values: str) -> S:
        """The series of these label values, in the order in which the labels were declared."""
        series = self._series.get(values)
        return self._begin(values) if series is None else series

    def _begin(self, values: tuple[str, ...]) -> S:
        if len(values) != len(self._label_names):
            raise ValueError(f"{self.name} has the labels {self._label_names}, not the values {values}")
        if len(self._series) >= SERIES_MAX:
            values = (OTHER,) * len(values)
        return self._series.setdefault(values, self._make())

    def family(self) -> Family:
        samples = tuple(
            (tuple(zip(self._label_names, values, strict=True)), series.read())
            for values, series in self._series.items()
        )
        return self.name, self.kind, self.help, samples


class Metrics:
    """The instruments. Made once, by whoever starts the gateway, and handed to all who count."""

    def __init__(self, version: str, started_at: float) -> None:
        self._instruments: list[Instrument[Any]] = []
        self._declare_requests()
        self._declare_models()
        self._declare_process()
        self._gauge("router_info", "Version of the running gateway", "version").labels(version).set(1)
        self._gauge("process_start_time_seconds", "Start time of the process since the epoch").labels().set(
            started_at
        )

    def families(self) -> list[Family]:
        return [instrument.family() for instrument in self._instruments]

    def record_process(self, resident_bytes: int | None, cpu_s: float, gc_collected: tuple[int, ...]) -> None:
        """What the process uses just now, asked for with each scrape."""
        if resident_bytes is not None:
            self._resident_memory.labels().set(resident_bytes)
        self._cpu_seconds.labels().follow(cpu_s)
        for generation, collected in enumerate(gc_collected):
            self._gc_collected.labels(str(generation)).follow(collected)

    # Declarations: the attribute is the name without `router_` and `_total` -------------------------

    def _declare_requests(self) -> None:
        self.requests = self._counter("router_requests_total", "Total requests processed", "model", "status")
        self.rejections = self._counter(
            "router_rejections_total", "Requests refused before they reached a model", "reason", "key_id"
        )
        self.request_duration_seconds = self._histogram(
            "router_request_duration_seconds", "Whole time of a request", DURATION_BOUNDS, "model"
        )
        self.time_to_first_token_seconds = self._histogram(
            "router_time_to_first_token_seconds",
            "Time from a request to the first byte of its answer",
            FIRST_TOKEN_BOUNDS,
            "model",
        )
        self.queue_wait_seconds = self._histogram(
            "router_queue_wait_seconds",
            "Time that a request waited for its model, be it in vain",
            FIRST_TOKEN_BOUNDS,
            "model",
            "priority",
        )
        self.tokens = self._counter(
            "router_tokens_total", "Tokens that engines reported", "model", "key_id", "kind"
        )
        self.time_per_output_token_seconds = self._histogram(
            "router_time_per_output_token_seconds",
            "Time from one token of a stream to the next",
            OUTPUT_TOKEN_BOUNDS,
            "model",
        )
        self.overhead_seconds = self._histogram(
            "router_overhead_seconds", "The gateway's own share of a request's time", OVERHEAD_BOUNDS
        ).labels()
        self.last_activity_timestamp_seconds = self._gauge(
            "router_last_activity_timestamp_seconds", "When the last request for a model came or ended"
        ).labels()
        self.open_connections = self._gauge(
            "router_open_connections", "Connections of clients that are open"
        ).labels()

    def _declare_models(self) -> None:
        self.queue_depth = self._gauge("router_queue_depth", "Current queue depth per model", "model")
        self.queue_oldest_wait_seconds = self._gauge(
            "router_queue_oldest_wait_seconds", "How long the oldest request in a queue has waited", "model"
        )
        self.queue_estimated_wait_seconds = self._gauge(
            "router_queue_estimated_wait_seconds",
            "About how long a request would wait that came now",
            "model",
        )
        self.active_requests = self._gauge(
            "router_active_requests", "Requests that a model is working on", "model"
        )
        self.model_state = self._gauge(
            "router_model_state", "1 for the state that a model is in", "model", "state"
        )
        self.model_load_seconds = self._histogram(
            "router_model_load_seconds",
            "Time from a model's start to its first readiness",
            LOAD_BOUNDS,
            "model",
        )
        self.model_vram_bytes = self._gauge("router_model_vram_bytes", "VRAM usage per model", "model")
        self.vram_estimate_error_ratio = self._gauge(
            "router_vram_estimate_error_ratio",
            "How far the prediction was off: 0.1 is ten per cent too much, -0.1 too little",
            "model",
        )
        self.gpu_memory_used_bytes = self._gauge(
            "router_gpu_memory_used_bytes", "Memory in use, by whomever", "gpu"
        )
        self.gpu_memory_total_bytes = self._gauge("router_gpu_memory_total_bytes", "Memory there is", "gpu")
        self.gpu_memory_reserved_bytes = self._gauge(
            "router_gpu_memory_reserved_bytes", "Memory that is promised to models", "gpu"
        )
        self.model_restarts = self._counter(
            "router_model_restarts_total", "Starts of a model after its process died", "model"
        )
        self.model_evictions = self._counter(
            "router_model_evictions_total", "Models unloaded, by the reason", "model", "reason"
        )

    def _declare_process(self) -> None:
        self.log_lines_dropped = self._counter(
            "router_log_lines_dropped_total", "Log lines that could not be written"
        ).labels()
        self._resident_memory = self._gauge("process_resident_memory_bytes", "Resident memory of the process")
        self._cpu_seconds = self._counter(
            "process_cpu_seconds_total", "Processor time that the process has used"
        )
        self._gc_collected = self._counter(
            "python_gc_objects_collected_total", "Objects freed by the garbage collector", "generation"
        )

    def _counter(self, name: str, help: str, *labels: str) -> Instrument[Counter]:
        return self._declare(Instrument(name, "counter", help, labels, Counter))

    def _gauge(self, name: str, help: str, *labels: str) -> Instrument[Gauge]:
        return self._declare(Instrument(name, "gauge", help, labels, Gauge))

    def _histogram(
        self, name: str, help: str, bounds: tuple[float, ...], *labels: str
    ) -> Instrument[Histogram]:
        return self._declare(Instrument(name, "histogram", help, labels, lambda: Histogram(bounds)))

    def _declare(self, instrument: Instrument[S]) -> Instrument[S]:
        self._instruments.append(instrument)
        return instrument
