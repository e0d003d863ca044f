"""How far the limit of descriptors is raised, and how many connections it leaves room for."""

from __future__ import annotations

import resource

import pytest

from corral.drivers import descriptors
from corral.drivers.http_server.server import TOLD_MAX


def test_the_limit_is_raised_as_far_as_we_may() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        descriptors.raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("limit", "wanted", "engines", "slots", "allowed"),
    [
        (1_048_576, 10_000, 3, 3, 10_000),
        (1_048_576, 10_000, 30, 30_000, 10_000),
        (resource.RLIM_INFINITY, 10_000, 3, 3, 10_000),
        (10_411, 10_000, 3, 3, 10_000),
        (10_410, 10_000, 3, 3, 9_999),
        (10_411, 10_000, 3, 503, 9_500),
        (10_411, 10_000, 28, 3, 9_800),
        (4096, 10_000, 3, 3000, 1_716),
        (1024, 10_000, 3, 3, 613),
        (1024, 500, 3, 3, 500),
        (1024, 10_000, 1, 1000, 222),
        (200, 10_000, 3, 3, 48),
        (20, 10_000, 3, 3, 3),
    ],
)
def test_connections_leave_descriptors_for_the_engines(
    limit: int,
    wanted: int,
    engines: int,
    slots: int,
    allowed: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _of: (limit, limit))
    assert descriptors.connections_allowed(wanted, engines=engines, slots=slots) == allowed
    kept = descriptors.OWN + descriptors.PER_ENGINE * engines
    told, busy = min(allowed, TOLD_MAX), min(allowed, slots)
    assert limit < 0 or allowed + told + busy + min(kept, limit // 2) <= limit
    assert bool(caplog.records) == (allowed < wanted)
    if caplog.records:
        enough = wanted + TOLD_MAX + slots + kept
        assert f"Allow it {enough} files (`ulimit -n`" in caplog.text
        monkeypatch.setattr(resource, "getrlimit", lambda _of: (enough, enough))
        assert descriptors.connections_allowed(wanted, engines=engines, slots=slots) == wanted
