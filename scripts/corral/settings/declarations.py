"""Every setting in one table: what it is called in each place, what it may be, and its default.

A row says where its value goes (`attribute`, by group and field), which environment variables and
which keys of the config file give it (the first one present wins), of which kind it is, what it is
when nobody says, and what it means. Nothing else declares a name, a default or a range, so that a test
can hold the documents against this table.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from corral.settings import kinds
from corral.settings.kinds import Boolean, Choice, Items, Kind, Location, Number, Text, Whole
from corral.settings.names import MODEL_NAME_PATTERN
from corral.settings.values import PORT_MAX, Allocation, LogFormat

# A default that begins so lies in the data directory.
BELOW_DATA = "$DATA_DIR/"
# Alone among the variables it means something when it is empty: no GPU.
CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


class Declaration(NamedTuple):
    attribute: str
    variables: tuple[str, ...]
    keys: tuple[str, ...]
    kind: Kind
    default: Any  # None: there is none, or `about` says how it is found
    about: str


BOOLEAN = Boolean()
PATH = Location()
# A week: longer than any wait here, and short enough to catch milliseconds taken for seconds.
SECONDS_MAX = 604_800
PORT = Whole(1, PORT_MAX)
ANY_PORT = Whole(0, PORT_MAX)
COUNT = Whole(1, 1_000_000)
BYTES = Whole(1, 2**40)
SECONDS = Number(0, SECONDS_MAX, " of seconds")
LAYERS = Whole(-1, 9999)
CONTEXT = Whole(0, 2**24)
CACHE_TYPE = Choice(("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"))
ON_OFF_AUTO = Choice(("on", "off", "auto"))
MODEL_NAME = Text(MODEL_NAME_PATTERN, "a model name of letters, digits and . _ : / @ + -")
MODEL_NAMES = Items(MODEL_NAME, 'a list of model names such as ["qwen-7b"]')
MODEL_NAME_OR_ALL = Text(re.compile(rf"\*|{MODEL_NAME_PATTERN.pattern}"), 'a model name or "*"')
PRELOAD = Items(MODEL_NAME_OR_ALL, 'a list of model names, or ["*"]')
HOST = Text(re.compile(r"[A-Za-z0-9.:%_-]{1,255}"), "an address or a host name")
URL_PATH = Text(re.compile(r"/[A-Za-z0-9._~/-]{0,255}"), "a path that begins with / such as /health")
# A browser sends no trailing slash, so an origin written with one would never match.
ORIGIN = Text(re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s,]{1,255}"), '"*" or an origin')
ORIGINS = Items(ORIGIN, 'a list of origins such as https://chat.example (no slash at the end), or "*"')
API_KEY = Text(re.compile(r"[A-Za-z0-9_-]{8,128}"), "8 to 128 characters of A-Z a-z 0-9 _ -")
FILE_NAME = Text(re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029/]{1,255}"), "a file name without /")
FILE_NAME_PART = Text(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"),
    "up to 100 letters, digits and . _ - that begin with a letter or digit",
)
GPU_NUMBERS = Items(Whole(0, 1023), "a list of GPU numbers such as [0, 1]")
VISIBLE_DEVICES = Text(kinds.ANYTHING, "a list of GPU numbers or UUIDs")
ARGUMENT = Text(kinds.ANYTHING, "text")
SHELL_WORDS = Items(ARGUMENT, "arguments in which every quote is closed", kinds.by_shell)
FLAGS = Items(ARGUMENT, 'a list of arguments in quotes, such as ["-ngl", "99"]')


def _row(attribute: str, variables: str, keys: str, kind: Kind, default: Any, about: str) -> Declaration:
    return Declaration(attribute, tuple(variables.split()), tuple(keys.split()), kind, default, about)


# One setting in two lines reads better than the formatter's nine.
# fmt: off
_GATEWAY = (
    # Where things are
    _row("paths.data", "DATA_DIR", "", PATH, None,
         "models, logs, state and keys; default ./data, else the first there is of "
         "/data, /runpod-volume, /workspace, /repository"),
    _row("paths.config_file", "CONFIG_PATH", "", PATH, None,
         "the config file; default the first there is of ./config.json, "
         "$DATA_DIR/config.json, /app/config.json"),
    _row("paths.models", "BASE_MODELS_PATH", "system.base_models_path", PATH, None,
         "where model files lie; default $DATA_DIR/models, or /app/models if only that one holds anything"),
    _row("paths.llama_server", "LLAMA_SERVER_PATH", "system.llama_server_path", PATH, None,
         "the llama-server to run; default the first found in PATH, in /app, in the cache of built engines"),
    _row("paths.runtime", "RUNTIME_DIR", "", PATH, None,
         "the directory of the status file and of engines' sockets, on a local disk; "
         "default corral-UID-INSTANCE_ID-PORT below $XDG_RUNTIME_DIR or the temporary directory"),
    _row("instance_id", "INSTANCE_ID", "", FILE_NAME_PART, None,
         "tells the gateways that share a DATA_DIR apart; default the host name"),

    # The listeners, and what a client may send or hold
    _row("server.host", "GATEWAY_HOST", "api.host", HOST, None,
         "the address to listen on; default every interface, IPv4 and IPv6 (0.0.0.0 is IPv4 only)"),
    _row("server.port", "GATEWAY_PORT PORT", "api.port", ANY_PORT, 8000,
         "the gateway's port; 0 takes any free one"),
    _row("server.health_port", "PORT_HEALTH", "", ANY_PORT, 8001,
         "the health server's port; the gateway's own port means no second listener"),
    _row("server.health_check_path", "HEALTH_CHECK_PATH", "", URL_PATH, "/ping",
         "one more path that answers as /ping does"),
    _row("server.connections_max", "MAX_CONNECTIONS", "", COUNT, 10_000,
         "open connections; one more is answered 503, but for /live and /ping"),
    _row("server.headers_max", "MAX_HEADERS", "", Whole(1, 10_000), 64,
         "header fields of a request"),
    _row("server.header_line_max_bytes", "MAX_HEADER_LINE_SIZE", "", Whole(256, 2**20), 8192,
         "bytes of the request line or of one header line"),
    _row("server.body_max_bytes", "MAX_REQUEST_BODY_SIZE", "", BYTES, 10 * 2**20,
         "bytes of a request's body; a longer one is answered 413"),
    _row("server.header_timeout_s", "CLIENT_HEADER_TIMEOUT", "", SECONDS, 30.0,
         "seconds for a request's head to arrive"),
    _row("server.body_timeout_s", "CLIENT_BODY_TIMEOUT", "", SECONDS, 60.0,
         "seconds of silence while a request's body arrives"),
    _row("server.write_timeout_s", "CLIENT_WRITE_TIMEOUT", "", SECONDS, 60.0,
         "seconds without a byte taken by a client that reads an answer"),
    _row("server.keepalive_timeout_s", "KEEPALIVE_TIMEOUT", "", SECONDS, 75.0,
         "seconds that an idle connection is kept open"),
    _row("server.drain_timeout_s", "DRAIN_TIMEOUT_S", "", SECONDS, 30.0,
         "seconds that running requests get to finish when the gateway stops"),
    _row("server.idle_exit_s", "IDLE_EXIT_S", "", SECONDS, None,
         "seconds without a request for any model after which the gateway ends by itself, with exit code 0, "
         "or 1 where its one model has failed; default never"),
    _row("server.sse_ping_s", "SSE_PING_S", "", SECONDS, 15.0,
         "seconds of waiting after which a stream is sent a comment, and then between comments"),
    _row("server.cors_origins", "CORS_ORIGINS", "api.cors_origins", ORIGINS, (),
         'origins whose pages may call the gateway from a browser, or "*"'),
    _row("server.tls_cert_file", "TLS_CERT_FILE", "", PATH, None,
         "a certificate and its chain in PEM: the gateway's port then speaks HTTPS; re-read when it changes"),
    _row("server.tls_key_file", "TLS_KEY_FILE", "", PATH, None,
         "the certificate's private key (PEM); default in the certificate's file"),

    # Who may come in
    _row("access.enabled", "AUTH_ENABLED", "", BOOLEAN, True,
         "whether a key is needed; without, clients are limited by address and nobody is admin"),
    _row("access.keys_file", "AUTH_KEYS_FILE", "", PATH, "$DATA_DIR/api_keys.txt",
         "the file of keys"),
    _row("access.env_key", "API_KEY", "", API_KEY, None,
         "one more key, with the id env and the role admin"),
    _row("access.requests_per_minute", "MAX_REQUESTS_PER_MINUTE", "rate_limit.requests_per_minute",
         Whole(0, 1_000_000), 100,
         "requests a minute for a key that sets no limit of its own; 0 is unlimited"),
    _row("access.admin_without_auth", "ADMIN_WITHOUT_AUTH", "", BOOLEAN, False,
         "whether everybody is admin when AUTH_ENABLED is off"),

    # Logs
    _row("logs.format", "LOG_FORMAT", "", Choice(LogFormat), LogFormat.TEXT,
         "text or json"),
    _row("logs.directory", "LOG_DIR", "", PATH, "$DATA_DIR/logs",
         "where logs are written"),
    _row("logs.worker_type", "WORKER_TYPE", "", FILE_NAME_PART, None,
         "in single-model mode, the name of the log directory: llama-WORKER_TYPE"),

    # The herd: how many, how long
    _row("herd.models_max", "", "system.max_concurrent_models", Whole(1, 1000), 3,
         "models loaded at the same time, whatever the memory would allow"),
    _row("pool.size", "", "server_pool.size", Whole(1, 1000), 3,
         "the same limit by another name; the smaller one counts"),
    _row("idle.enabled", "", "system.enable_idle_timeout", BOOLEAN, True,
         "whether an idle model is unloaded"),
    _row("herd.idle_timeout_s", "", "system.idle_timeout_sec", SECONDS, 300.0,
         "seconds after its last request at which a model is idle"),
    _row("herd.request_timeout_s", "REQUEST_TIMEOUT", "system.request_timeout_sec", SECONDS, 120.0,
         "seconds of silence without progress after which a request is given up"),
    _row("herd.request_max_s", "", "system.request_max_sec", SECONDS, 3600.0,
         "seconds that a request may take in all"),
    _row("herd.queue_timeout_s", "", "system.queue_timeout_sec", SECONDS, 300.0,
         "seconds that a request may wait for its turn"),
    _row("herd.queue_max", "", "system.max_queue_size_per_model", COUNT, 500,
         "requests that may wait for one model"),
    _row("herd.aging_interval_s", "", "system.aging_interval_sec", SECONDS, 30.0,
         "seconds of waiting that lift a request by one priority class"),
    _row("herd.min_residency_s", "", "system.min_residency_sec", SECONDS, 20.0,
         "seconds that a loaded model keeps its place while others wait; less where a switch costs little"),

    # The herd: what is served
    _row("default_model", "", "default_model", MODEL_NAME, None,
         "the model of a request that names none"),
    _row("herd.preload", "", "system.preload_models", PRELOAD, (),
         'models to load at the start; ["*"] is all of them'),
    _row("herd.scan_models", "", "system.scan_models", BOOLEAN, None,
         "whether every model file is served beside the models of the config file; "
         "default true if no config file names models"),

    # The herd: how a llama-server is started
    _row("herd.port_start", "", "server_pool.port_start", PORT, 8085,
         "the first of the 500 ports for llama-servers"),
    _row("herd.backend_host", "", "server_pool.host", HOST, "127.0.0.1",
         "where llama-servers listen; localhost means 127.0.0.1"),
    _row("herd.default_parallel", "", "system.default_parallel system.parallel_requests", Whole(1, 256), 1,
         "requests that a model works on at the same time, unless its flags say otherwise"),
    _row("herd.cpu_threads", "THREADS", "system.cpu_threads", Whole(1, 4096), None,
         "threads of a llama-server; default its own choice"),
    _row("herd.flash_attention", "", "system.flash_attention", ON_OFF_AUTO, None,
         "flash attention; default llama-server's own choice"),
    _row("herd.gpu_layers", "", "server_pool.gpu_layers", LAYERS, 99,
         "layers put on the GPU, unless the model says otherwise; 0 or -1 is the CPU"),

    # The GPUs
    _row("herd.gpu_enabled", "", "gpu.enabled", BOOLEAN, True,
         "whether GPUs are looked for, used and guarded"),
    _row("herd.gpu_monitoring", "", "gpu.enable_gpu_monitoring", BOOLEAN, True,
         "whether GPU readings are shown in /health"),
    _row("herd.gpu_monitoring_interval_s", "", "gpu.monitoring_interval", SECONDS, 5.0,
         "seconds between two readings of the GPUs"),
    _row("herd.allocation_strategy", "", "gpu.gpu_allocation_strategy gpu.allocation_strategy",
         Choice(Allocation), Allocation.SINGLE_GPU_PREFERRED,
         "one GPU for a model where it fits, or every model over all of them"),
    _row("herd.cpu_fallback", "", "gpu.cpu_fallback", BOOLEAN, True,
         "whether a model that fits on no GPU runs on the CPU"),
    _row("herd.gpu_devices", "", "system.gpu_devices", GPU_NUMBERS, None,
         "numbers of the GPUs to use; default every visible one"),
    _row("herd.vram_multiplier", "", "system.vram_multiplier", Number(0, 100), 1.1,
         "the margin on a prediction of memory that no measurement has corrected yet"),
    _row("visible.cuda", CUDA_VISIBLE_DEVICES, "", VISIBLE_DEVICES, None,
         "the GPUs that Corral may see, as CUDA reads it: empty or -1 is none"),
    _row("visible.nvidia", "NVIDIA_VISIBLE_DEVICES", "", VISIBLE_DEVICES, None,
         "the same from a container's runtime: UUIDs or none limit, numbers have been applied already"),

    # Single-model mode: the environment names the one model, and any request means it
    _row("single.path", "MODEL_PATH", "", PATH, None,
         "the one model's file"),
    _row("single.file", "MODEL_NAME", "", FILE_NAME, None,
         "the one model's file in MODELS_DIR, with or without .gguf"),
    _row("single.directory", "MODELS_DIR", "", PATH, None,
         "where MODEL_NAME lies; default BASE_MODELS_PATH"),
    _row("single.n_gpu_layers", "NGL", "", LAYERS, 99,
         "layers of the one model put on the GPU; 0 or -1 is the CPU"),
    _row("single.n_ctx", "CTX", "", CONTEXT, 16_384,
         "context of the one model in tokens; 0 is what it was trained with"),
    _row("single.flags", "EXTRA_ARGS", "", SHELL_WORDS, (),
         "more arguments for llama-server, quoted as in a shell"),
    _row("single.port", "PORT_BACKEND", "", PORT, 8080,
         "the one llama-server's port, or the next above it if it is taken"),
)

_MODEL = (
    _row("model.path", "", "models.*.model_path", PATH, None,
         "the model's file, absolute or below base_models_path; required"),
    _row("model.flags", "", "models.*.flags", FLAGS, (),
         "arguments handed to llama-server as they are; they beat params"),
    _row("model.aliases", "", "models.*.aliases", MODEL_NAMES, (),
         "other names that a request may use"),
    _row("model.pinned", "", "models.*.pinned", BOOLEAN, False,
         "whether the model stays loaded once it is"),
    _row("model.queue_max", "", "models.*.max_queue", COUNT, None,
         "requests that may wait for this model; default max_queue_size_per_model"),
    _row("model.n_ctx", "", "models.*.params.n_ctx", CONTEXT, 4096,
         "context in tokens; 0 is what the model was trained with"),
    _row("model.n_gpu_layers", "", "models.*.params.n_gpu_layers", LAYERS, None,
         "layers put on the GPU; 0 or -1 is the CPU; default server_pool.gpu_layers"),
    _row("model.type_k", "", "models.*.params.type_k", CACHE_TYPE, "f16",
         "the type of the cache's keys"),
    _row("model.type_v", "", "models.*.params.type_v", CACHE_TYPE, "f16",
         "the type of the cache's values"),
    _row("model.embedding", "", "models.*.params.embedding", BOOLEAN, False,
         "whether the model embeds text"),
)
# fmt: on

DECLARATIONS: tuple[Declaration, ...] = _GATEWAY + _MODEL

# What people may bring from elsewhere and this version does not do. Each is told once, never ignored
# in silence: whoever asks for shared limits should not find out from a bill.
UNSUPPORTED_VARIABLES = ("REDIS_URL", "LOG_PROMPTS")
UNSUPPORTED_KEYS = (
    "redis",
    "cache",
    "agents",
    "backend",
    "ollama",
    "llama_cpp",
    "rate_limit.redis_url",
    "models.*.repo",
    "models.*.variant",
    "models.*.type",
)
