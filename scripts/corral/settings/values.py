"""The settings once they are read: frozen groups of plain values, and nothing that could still be wrong.

Paths are absolute, times are seconds, sizes are bytes. None means "no limit" or "not given", as each
field says. The comments here tell what a field means; its default, its range and the names by which
people set it stand in `declarations`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Room for the ports of llama-servers: the first and this many in all, as far as port numbers go.
BACKEND_PORTS = 500
PORT_MAX = 65_535


def last_port(first: int) -> int:
    return min(first + BACKEND_PORTS - 1, PORT_MAX)


class LogFormat(enum.Enum):
    TEXT = "text"
    JSON = "json"


class Allocation(enum.Enum):
    """How a model that could use several GPUs is placed."""

    SINGLE_GPU_PREFERRED = "single-gpu-preferred"
    DISTRIBUTE = "distribute"


@dataclass(frozen=True)
class Server:
    """The two listeners and every limit on what a client may send or hold."""

    host: str | None  # None: every interface, IPv4 and IPv6
    port: int  # 0: any free port
    health_port: int
    health_check_path: str  # answers as /ping does, beside /ping
    connections_max: int
    headers_max: int
    header_line_max_bytes: int
    body_max_bytes: int
    header_timeout_s: float
    body_timeout_s: float
    write_timeout_s: float
    keepalive_timeout_s: float
    drain_timeout_s: float
    sse_ping_s: float
    cors_origins: tuple[str, ...]
    idle_exit_s: float | None  # None: the gateway never ends by itself
    tls_cert_file: Path | None  # None: the gateway's port speaks plain HTTP
    tls_key_file: Path | None  # None: the key is in tls_cert_file


@dataclass(frozen=True)
class Access:
    enabled: bool
    keys_file: Path
    env_key: str | None = field(repr=False)  # a secret: never shown
    requests_per_minute: int  # 0: unlimited
    admin_without_auth: bool


@dataclass(frozen=True)
class Logs:
    format: LogFormat
    directory: Path
    worker_type: str | None


@dataclass(frozen=True)
class Paths:
    data: Path
    models: Path
    runtime: Path
    state: Path
    cache: Path
    config_file: Path | None
    llama_server: Path | None  # None: looked for and not found


@dataclass(frozen=True)
class Herd:
    """How llama-servers are started, queued for, placed and stopped."""

    models_max: int
    idle_timeout_s: float | None  # None: never unloaded for being idle
    request_timeout_s: float
    request_max_s: float
    queue_timeout_s: float
    queue_max: int
    preload: tuple[str, ...]  # model names, or "*" for all of them
    scan_models: bool
    port_start: int
    backend_host: str
    default_parallel: int
    cpu_threads: int | None  # None: llama-server decides
    flash_attention: str | None  # on, off, auto; None: llama-server decides
    gpu_layers: int
    gpu_devices: tuple[int, ...] | None  # None: every visible one
    gpu_enabled: bool
    gpu_monitoring: bool
    gpu_monitoring_interval_s: float
    allocation_strategy: Allocation
    cpu_fallback: bool
    vram_multiplier: float
    aging_interval_s: float
    min_residency_s: float

    @property
    def port_end(self) -> int:
        """The last port of the herd's range."""
        return last_port(self.port_start)


@dataclass(frozen=True)
class ModelSettings:
    """One model. What `flags` say is already in the other fields: on a conflict the flags have won."""

    name: str
    path: Path
    flags: tuple[str, ...]  # handed to llama-server as they are
    n_ctx: int  # 0: the length that the model was trained with
    n_gpu_layers: int  # 0: on the CPU
    type_k: str
    type_v: str
    embedding: bool
    parallel: int | None  # None: herd.default_parallel
    aliases: tuple[str, ...]
    pinned: bool
    queue_max: int | None  # None: herd.queue_max
    in_flags: frozenset[str]  # fields (and cpu_threads, flash_attention) that the flags set


@dataclass(frozen=True)
class SingleModel:
    """The mode in which environment variables name the one model and any request means it."""

    model: ModelSettings
    port: int

    @property
    def port_end(self) -> int:
        """The last port that is tried, if those from `port` on are taken."""
        return last_port(self.port)


@dataclass(frozen=True)
class Settings:
    server: Server
    access: Access
    logs: Logs
    paths: Paths
    herd: Herd
    instance_id: str
    default_model: str | None
    single_model: SingleModel | None
    models: Mapping[str, ModelSettings]
    # Device indices and UUIDs that the surroundings limit us to: None is no limit, () is no GPU at all.
    visible_devices: tuple[str, ...] | None
    warnings: tuple[str, ...]
    # What children inherit. Secrets are out, but it is still the operator's environment: never shown.
    inherited_environment: Mapping[str, str] = field(repr=False)
