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
    ("limit", "wanted", "allowed"),
    [
        (1_048_576, 10_000, 10_000),
        (resource.RLIM_INFINITY, 10_000, 10_000),
        (10_512, 10_000, 10_000),
        (10_511, 10_000, 9_999),
        (1024, 10_000, 512),
        (1024, 500, 500),
        (600, 10_000, 172),
        (200, 10_000, 50),
        (20, 10_000, 5),
    ],
)
def test_connections_leave_descriptors_for_the_engines(
    limit: int,
    wanted: int,
    allowed: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _of: (limit, limit))
    assert descriptors.connections_allowed(wanted) == allowed
    assert limit < 0 or allowed + min(allowed, TOLD_MAX) + min(descriptors.KEPT, limit // 2) <= limit
    assert bool(caplog.records) == (allowed < wanted)
    if caplog.records:
        assert f"Allow it {wanted + 512} files (`ulimit -n`" in caplog.text
