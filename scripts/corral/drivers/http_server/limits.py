"""What a server takes of its clients: sizes, counts and times. The caller chooses them."""

from __future__ import annotations

from dataclasses import dataclass

from corral.formats import http1

# Of 10,000 clients each may send 10 MiB, and no machine has 100 GiB to spare for that.
BODIES_MAX_BYTES = 512 * 2**20


@dataclass(frozen=True)
class ServerLimits:
    head: http1.Limits
    body_max_bytes: int
    bodies_max_bytes: int  # of all large ones together
    connections_max: int
    header_timeout_s: float
    body_timeout_s: float
    write_timeout_s: float
    keepalive_timeout_s: float
