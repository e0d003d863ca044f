"""The instruments: what they count, how they are labelled, and that their text is what scrapers expect."""

from __future__ import annotations

import math

import pytest

from corral import metrics
from corral.formats import prometheus_text
from corral.metrics import Metrics

PROMISED = {
    "router_requests_total": "counter",
    "router_rejections_total": "counter",
    "router_request_duration_seconds": "histogram",
    "router_time_to_first_token_seconds": "histogram",
    "router_queue_wait_seconds": "histogram",
    "router_tokens_total": "counter",
    "router_time_per_output_token_seconds": "histogram",
    "router_model_load_seconds": "histogram",
    "router_overhead_seconds": "histogram",
    "router_queue_depth": "gauge",
    "router_queue_oldest_wait_seconds": "gauge",
    "router_queue_estimated_wait_seconds": "gauge",
    "router_active_requests": "gauge",
    "router_model_state": "gauge",
    "router_model_vram_bytes": "gauge",
    "router_vram_estimate_error_ratio": "gauge",
    "router_gpu_memory_used_bytes": "gauge",
    "router_gpu_memory_total_bytes": "gauge",
    "router_gpu_memory_reserved_bytes": "gauge",
    "router_model_restarts_total": "counter",
    "router_model_evictions_total": "counter",
    "router_last_activity_timestamp_seconds": "gauge",
    "router_open_connections": "gauge",
    "router_log_lines_dropped_total": "counter",
    "router_info": "gauge",
    "process_start_time_seconds": "gauge",
    "process_resident_memory_bytes": "gauge",
    "process_cpu_seconds_total": "counter",
    "python_gc_objects_collected_total": "counter",
}


@pytest.fixture
def instruments() -> Metrics:
    return Metrics(version="1.2.3", started_at=1_800_000_000.5)


def lines(instruments: Metrics) -> set[str]:
    """What a scrape shows, after the strict reader has agreed to it."""
    text = prometheus_text.render(instruments.families())
    prometheus_text.parse(text)
    return set(text.decode().splitlines())


def test_every_promised_instrument_is_there_once_with_its_kind(instruments: Metrics) -> None:
    declared = [(name, kind) for name, kind, _, _ in instruments.families()]
    assert len(declared) == len(set(declared))
    assert dict(declared) == PROMISED


def test_names_follow_the_conventions(instruments: Metrics) -> None:
    for name, kind, help, _ in instruments.families():
        assert name.endswith("_total") == (kind == "counter"), name
        assert help, name


def test_the_lines_that_dashboards_were_promised(instruments: Metrics) -> None:
    instruments.requests.labels("m1", "success").inc()
    instruments.rejections.labels("rate_limit_exceeded", "alice").inc()
    instruments.queue_depth.labels("m1").set(3)
    instruments.model_state.labels("m1", "ready").set(1)
    instruments.last_activity_timestamp_seconds.set(1_800_000_001.25)
    assert lines(instruments) >= {
        "# HELP router_requests_total Total requests processed",
        'router_requests_total{model="m1",status="success"} 1',
        'router_rejections_total{reason="rate_limit_exceeded",key_id="alice"} 1',
        "# HELP router_queue_depth Current queue depth per model",
        'router_queue_depth{model="m1"} 3',
        'router_model_state{model="m1",state="ready"} 1',
        "router_last_activity_timestamp_seconds 1800000001.25",
        'router_info{version="1.2.3"} 1',
        "process_start_time_seconds 1800000000.5",
        "router_open_connections 0",
        'router_overhead_seconds_bucket{le="+Inf"} 0',
    }


def test_counters_add_and_gauges_move_both_ways(instruments: Metrics) -> None:
    series = instruments.requests.labels("m1", "error")
    series.inc()
    series.inc(2)
    instruments.open_connections.add(5)
    instruments.open_connections.add(-2)
    instruments.log_lines_dropped.follow(7)
    assert lines(instruments) >= {
        'router_requests_total{model="m1",status="error"} 3',
        "router_open_connections 3",
        "router_log_lines_dropped_total 7",
    }


def test_the_same_labels_are_the_same_series(instruments: Metrics) -> None:
    assert instruments.requests.labels("m", "error") is instruments.requests.labels("m", "error")
    assert instruments.requests.labels("m", "error") is not instruments.requests.labels("m", "success")


@pytest.mark.parametrize("values", [(), ("m",), ("m", "error", "more")], ids=["none", "too-few", "too-many"])
def test_a_wrong_number_of_labels_is_a_mistake_that_says_so(
    instruments: Metrics, values: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="router_requests_total has the labels"):
        instruments.requests.labels(*values)


@pytest.mark.parametrize(
    ("value", "bucket"),
    [
        pytest.param(0.0, 0, id="nothing"),
        pytest.param(0.01, 0, id="on-the-first-bound"),
        pytest.param(0.010001, 1, id="just-above-it"),
        pytest.param(81.92, 13, id="on-the-last-bound"),
        pytest.param(3600.0, 14, id="beyond-all"),
    ],
)
def test_an_observation_falls_into_the_bucket_whose_bound_it_does_not_exceed(
    instruments: Metrics, value: float, bucket: int
) -> None:
    series = instruments.request_duration_seconds.labels("m")
    series.observe(value)
    bounds, counts, total = series.read()
    assert [index for index, count in enumerate(counts) if count] == [bucket]
    assert len(counts) == len(bounds) + 1
    assert total == value


def test_the_bounds_are_those_that_dashboards_know() -> None:
    doubling = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
    assert doubling == metrics.DURATION_BOUNDS
    assert metrics.FIRST_TOKEN_BOUNDS[0] == 0.001
    assert metrics.FIRST_TOKEN_BOUNDS[-5:] == (10.0, 20.0, 40.0, 80.0, 160.0)


@pytest.mark.parametrize(
    "bounds",
    [
        metrics.DURATION_BOUNDS,
        metrics.FIRST_TOKEN_BOUNDS,
        metrics.OUTPUT_TOKEN_BOUNDS,
        metrics.LOAD_BOUNDS,
        metrics.OVERHEAD_BOUNDS,
    ],
    ids=["duration", "first-token", "output-token", "load", "overhead"],
)
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
    assert math.isfinite(bounds[-1])


def test_a_flood_of_labels_ends_in_one_series(instruments: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SERIES_MAX", 3)
    for number in range(10):
        instruments.requests.labels(f"m{number}", "error").inc()
    instruments.requests.labels("m0", "error").inc()
    found = {line for line in lines(instruments) if line.startswith("router_requests_total{")}
    assert found == {
        'router_requests_total{model="m0",status="error"} 2',
        'router_requests_total{model="m1",status="error"} 1',
        'router_requests_total{model="m2",status="error"} 1',
        'router_requests_total{model="other",status="other"} 7',
    }


def test_what_the_process_uses_is_shown_as_far_as_it_is_known(instruments: Metrics) -> None:
    instruments.record_process(resident_bytes=None, cpu_s=1.5, gc_collected=(3, 4))
    shown = lines(instruments)
    assert shown >= {
        "process_cpu_seconds_total 1.5",
        'python_gc_objects_collected_total{generation="0"} 3',
        'python_gc_objects_collected_total{generation="1"} 4',
    }
    assert not any(line.startswith("process_resident_memory_bytes ") for line in shown)
    instruments.record_process(resident_bytes=4096, cpu_s=2, gc_collected=(5, 4))
    assert lines(instruments) >= {
        "process_resident_memory_bytes 4096",
        "process_cpu_seconds_total 2",
        'python_gc_objects_collected_total{generation="0"} 5',
    }
