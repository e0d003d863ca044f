"""The settings as a whole: the sample, what hangs together, where files are found, and a hail of nonsense."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from corral.errors import SettingsError
from corral.settings import DECLARATIONS, UNSUPPORTED_VARIABLES, Allocation, LogFormat
from tests.settings.desk import Desk

SAMPLE = """
{
  "api":    {"host": "0.0.0.0", "port": 8000, "cors_origins": []}, // the sample of every section
  "system": {"llama_server_path": "LLAMA_SERVER", "base_models_path": "/models", "max_concurrent_models": 3,
             "preload_models": ["*"], "enable_idle_timeout": true, "idle_timeout_sec": 300,
             "request_timeout_sec": 120, "queue_timeout_sec": 300, "gpu_devices": [0], "default_parallel": 1,
             "max_queue_size_per_model": 500, "vram_multiplier": 1.1},
  "gpu":    {"enabled": true, "enable_gpu_monitoring": true, "allocation_strategy": "single-gpu-preferred",
             "monitoring_interval": 5.0, "cpu_fallback": true},
  "server_pool": {"size": 3, "port_start": 8085, "host": "localhost", "gpu_layers": 99},
  "rate_limit": {"requests_per_minute": 100},
  "redis":  {"url": "redis://…", "enable_cache": false, "cache_ttl_sec": 3600, "enable_queue": false},
  "cache":  {"enabled": false, "ttl_sec": 3600, "semantic": {"model": "alias", "threshold": 0.97}},
  "agents": ["rag", "parallel"],
  "default_model": "qwen-7b",
  "models": {
    "qwen-7b":  {"model_path": "qwen-7b.gguf", "flags": ["-ngl", "99", "--ctx-size", "8192"],
                 "aliases": ["gpt-4o-mini"], "pinned": false, "max_queue": 100},
    "llama-3b": {"model_path": "llama-3b.gguf", "params": {"n_gpu_layers": 99, "n_ctx": 4096,
                 "type_k": "q8_0", "type_v": "q8_0", "embedding": false}},
    "org/phi":  {"repo": "org/name-GGUF", "variant": "*Q4_K_M*.gguf"},
    "far":      {"type": "remote", "base_url": "http://other:8000", "api_key_env": "FAR_KEY"},
    "local-ollama": {"type": "ollama", "host": "http://localhost:11434", "name": "llama3.2"}
  }
}
"""


def test_the_sample_config_loads(desk: Desk) -> None:
    program = desk.program(desk.home / "llama-server")
    desk.file("config.json", SAMPLE.replace("LLAMA_SERVER", str(program)))
    settings = desk.load()
    herd = settings.herd
    assert settings.server.host == "0.0.0.0"
    assert settings.paths.llama_server == program
    assert (herd.models_max, herd.preload, herd.idle_timeout_s) == (3, ("*",), 300.0)
    assert (herd.gpu_devices, herd.backend_host, herd.port_start) == ((0,), "127.0.0.1", 8085)
    assert settings.default_model == "qwen-7b"
    assert list(settings.models) == ["qwen-7b", "llama-3b"]
    assert settings.models["qwen-7b"].path == Path("/models/qwen-7b.gguf")
    assert settings.models["qwen-7b"].flags == ("-ngl", "99", "--ctx-size", "8192")
    file = desk.cwd / "config.json"
    assert settings.warnings == (
        f"redis in {file} is not supported yet by this version: ignored",
        f"cache in {file} is not supported yet by this version: ignored",
        f"agents in {file} is not supported yet by this version: ignored",
        f"models.org/phi in {file} has repo, not supported yet by this version: left out",
        f"models.far in {file} has type, not supported yet by this version: left out",
        f"models.local-ollama in {file} has type, not supported yet by this version: left out",
    )


def test_with_nothing_given_everything_is_default(desk: Desk) -> None:
    settings = desk.load(environ={"INSTANCE_ID": "box"})
    data = desk.cwd / "data"
    assert settings.server.host is None
    assert (settings.server.port, settings.server.health_port) == (8000, 8001)
    assert settings.server.body_max_bytes == 10_485_760
    assert settings.access.enabled is True
    assert settings.access.keys_file == data / "api_keys.txt"
    assert settings.access.env_key is None
    assert settings.access.admin_without_auth is False
    assert settings.logs.format is LogFormat.TEXT
    assert settings.logs.directory == data / "logs"
    assert settings.paths.data == data
    assert settings.paths.models == data / "models"
    assert settings.paths.state == data / "state/box"
    assert settings.paths.cache == desk.home / ".cache/corral"
    assert settings.paths.config_file is None
    assert settings.paths.llama_server is None
    assert settings.paths.runtime.name.endswith("-box-8000")
    assert settings.herd.scan_models is True
    assert settings.herd.allocation_strategy is Allocation.SINGLE_GPU_PREFERRED
    assert (settings.models, settings.default_model, settings.single_model) == ({}, None, None)
    assert settings.warnings == ()


def test_the_same_surroundings_give_equal_settings(desk: Desk) -> None:
    config = {"models": {"m": {"model_path": "m.gguf"}}}
    assert desk.load(config) == desk.load(config)


def test_data_dir_moves_what_lies_below_it(desk: Desk) -> None:
    settings = desk.load(environ={"DATA_DIR": "/volume", "INSTANCE_ID": "box", "LOG_DIR": "logs"})
    assert settings.access.keys_file == Path("/volume/api_keys.txt")
    assert settings.paths.models == Path("/volume/models")
    assert settings.paths.state == Path("/volume/state/box")
    assert settings.logs.directory == desk.cwd / "logs"


@pytest.mark.parametrize(
    ("system", "pool", "models_max"),
    [
        ({}, {}, 3),
        ({"max_concurrent_models": 2}, {}, 2),
        ({}, {"size": 1}, 1),
        ({"max_concurrent_models": 9}, {}, 3),
    ],
)
def test_the_smaller_of_the_two_caps_counts(
    desk: Desk, system: dict[str, int], pool: dict[str, int], models_max: int
) -> None:
    assert desk.load({"system": system, "server_pool": pool}).herd.models_max == models_max


def test_both_caps_together_can_be_larger_than_the_default(desk: Desk) -> None:
    config = {"system": {"max_concurrent_models": 9}, "server_pool": {"size": 8}}
    assert desk.load(config).herd.models_max == 8


@pytest.mark.parametrize(("written", "layers"), [(-1, 0), (0, 0), (30, 30)])
def test_minus_one_layers_on_the_gpu_are_none(desk: Desk, written: int, layers: int) -> None:
    assert desk.load({"server_pool": {"gpu_layers": written}}).herd.gpu_layers == layers


def test_idle_models_stay_when_the_time_out_is_off(desk: Desk) -> None:
    config = {"system": {"enable_idle_timeout": False, "idle_timeout_sec": 2}}
    assert desk.load(config).herd.idle_timeout_s is None


def test_the_other_names_of_settings_are_read_and_the_first_name_wins(desk: Desk) -> None:
    herd = desk.load(
        {"system": {"parallel_requests": 2}, "gpu": {"gpu_allocation_strategy": "distribute"}}
    ).herd
    assert (herd.default_parallel, herd.allocation_strategy) == (2, Allocation.DISTRIBUTE)
    both = {
        "system": {"parallel_requests": 2, "default_parallel": 4},
        "gpu": {"allocation_strategy": "single-gpu-preferred", "gpu_allocation_strategy": "distribute"},
    }
    herd = desk.load(both).herd
    assert (herd.default_parallel, herd.allocation_strategy) == (4, Allocation.DISTRIBUTE)


@pytest.mark.parametrize(
    ("config", "scan"),
    [
        ({}, True),
        ({"api": {"port": 9000}}, True),
        ({"models": {}}, False),
        ({"models": {"m": {"model_path": "m"}}}, False),
        ({"models": {"m": {"model_path": "m"}}, "system": {"scan_models": True}}, True),
        ({"system": {"scan_models": False}}, False),
    ],
    ids=str,
)
def test_the_disk_is_scanned_unless_the_config_file_names_the_models(
    desk: Desk, config: dict[str, Any], scan: bool
) -> None:
    assert desk.load(config).herd.scan_models is scan


def test_names_become_canonical(desk: Desk) -> None:
    config = {
        "models": {"m": {"model_path": "m", "aliases": ["gpt"]}, "n": {"model_path": "n"}},
        "default_model": "gpt",
        "system": {"preload_models": ["n", "gpt", "m"]},
    }
    settings = desk.load(config)
    assert settings.default_model == "m"
    assert settings.herd.preload == ("n", "m")


def test_all_models_are_preloaded_if_one_wish_says_so(desk: Desk) -> None:
    config = {"models": {"m": {"model_path": "m"}}, "system": {"preload_models": ["m", "*"]}}
    assert desk.load(config).herd.preload == ("*",)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {
                "models": {"qwen-7b": {"model_path": "m"}, "phi": {"model_path": "p"}},
                "default_model": "qwen-7",
            },
            'default_model in FILE is "qwen-7"; it must be one of qwen-7b, phi; did you mean qwen-7b?',
        ),
        (
            {"models": {}, "system": {"preload_models": ["m"]}},
            'system.preload_models in FILE is "m"; it must be a model of the config file, which has none',
        ),
    ],
    ids=["default_model", "preload_models"],
)
def test_a_name_that_is_no_model_is_told(desk: Desk, config: dict[str, Any], message: str) -> None:
    assert desk.refusal(config) == message.replace("FILE", f"{desk.cwd}/config.json")


def test_a_name_that_the_disk_may_hold_is_left_alone(desk: Desk) -> None:
    settings = desk.load({"default_model": "later", "system": {"preload_models": ["later"]}})
    assert (settings.default_model, settings.herd.preload) == ("later", ("later",))


def test_the_argument_beats_config_path_beats_the_file_that_is_found(desk: Desk) -> None:
    found = desk.file("config.json", '{"api": {"port": 1}}')
    named = desk.file("named.json", '{"api": {"port": 2}}')
    argument = desk.file("argument.json", '{"api": {"port": 3}}')
    assert desk.load().server.port == 1
    assert desk.load().paths.config_file == found
    assert desk.load(environ={"CONFIG_PATH": "named.json"}).server.port == 2
    settings = desk.load(environ={"CONFIG_PATH": str(named)}, config_path=Path("argument.json"))
    assert (settings.server.port, settings.paths.config_file) == (3, argument)
    assert desk.load(dotenv="CONFIG_PATH=named.json").server.port == 2


def test_a_config_file_in_the_data_directory_is_found(desk: Desk) -> None:
    desk.file("elsewhere/config.json", '{"api": {"port": 4}}')
    assert desk.load(environ={"DATA_DIR": "elsewhere"}).server.port == 4


def test_a_config_file_that_is_named_must_be_there(desk: Desk) -> None:
    missing = desk.cwd / "missing.json"
    right = "which is not a file; it must be a config file in JSON"
    assert desk.refusal(environ={"CONFIG_PATH": "missing.json"}) == f"CONFIG_PATH is {missing}, {right}"
    assert desk.refusal(config_path=Path("missing.json")) == f"-c/--config is {missing}, {right}"


def test_a_llama_server_that_is_named_must_run(desk: Desk) -> None:
    assert desk.refusal(environ={"LLAMA_SERVER_PATH": "/missing/llama-server"}) == (
        "LLAMA_SERVER_PATH is /missing/llama-server, which does not exist; it must be a llama-server to run"
    )
    assert desk.refusal({"system": {"llama_server_path": "~/llama-server"}}) == (
        f"system.llama_server_path in {desk.cwd}/config.json is {desk.home}/llama-server, "
        "which does not exist; it must be a llama-server to run"
    )


def test_a_llama_server_is_found_in_the_cache(desk: Desk) -> None:
    program = desk.program(desk.home / ".cache/corral/engine-1-cpu/llama-server")
    assert desk.load().paths.llama_server == program


@pytest.mark.parametrize("variable", UNSUPPORTED_VARIABLES)
def test_a_variable_of_another_version_is_one_warning(desk: Desk, variable: str) -> None:
    assert desk.load(environ={variable: "secret"}).warnings == (
        f"{variable} is not supported yet by this version: ignored",
    )
    assert desk.load(environ={variable: ""}).warnings == ()


def test_a_port_of_our_own_and_an_open_backend_are_warnings(desk: Desk) -> None:
    settings = desk.load({"server_pool": {"port_start": 8001, "host": "0.0.0.0"}})
    assert settings.warnings == (
        "server_pool.port_start is 8001, which Corral listens on itself: skipped",
        "server_pool.host is 0.0.0.0: llama-servers ask for no key, and others can reach them there",
    )


ALL_VARIABLES = sorted({name for row in DECLARATIONS for name in row.variables} | set(UNSUPPORTED_VARIABLES))
NASTY = (
    *(
        "",
        " ",
        "0",
        "-1",
        "1",
        "99",
        "65536",
        "1e999",
        "nan",
        "true",
        "off",
        "*",
        ",",
        "/",
        "~",
        "~/",
        "..",
        ".",
    ),
    *(
        "'",
        '"',
        "--port",
        "-c 5 -ngl all",
        "a,b",
        "http://x",
        "https://x/",
        "::",
        "GPU-1",
        "none",
        "\\",
        "{}",
    ),
    *(
        "a\0b",
        "a\nb",
        "\ud800",
        "\udc80",
        "\u2028",
        "ü",
        "🐎",
        "A" * 300,
        "9" * 5000,
        "/" * 5000,
        "a/" * 3000,
    ),
)


def nasty(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(NASTY)
    return "".join(
        chr(rng.choice((rng.randrange(128), rng.randrange(0x3000)))) for _ in range(rng.randrange(12))
    )


def survives(desk: Desk, environ: dict[str, str]) -> bool:
    """Whether these load; if not, it must be for one clear line and no other reason."""
    try:
        desk.load(environ=environ)
    except SettingsError as error:
        lines = str(error).splitlines()
    else:
        return True
    assert len(lines) == 1, lines
    return False


def test_no_value_of_any_variable_raises_anything_but_a_settings_error(desk: Desk) -> None:
    for variable in ALL_VARIABLES:
        for value in NASTY:
            survives(desk, {variable: value})


def test_no_mixture_of_values_raises_anything_but_a_settings_error(desk: Desk) -> None:
    rng = random.Random(20_261)
    survived = 0
    for _ in range(600):
        names = rng.sample([*ALL_VARIABLES, "HOME", "PATH", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"], 3)
        survived += survives(desk, {name: nasty(rng) for name in names})
    assert 20 < survived < 580  # else the hail was too soft or too hard to show anything


def test_no_config_file_raises_anything_but_a_settings_error(desk: Desk) -> None:
    rng = random.Random(20_262)
    values: tuple[Any, ...] = (
        None,
        True,
        0,
        -1,
        1,
        2.5,
        10**30,
        "",
        "a",
        "\ud800",
        [],
        ["*"],
        ["a", 1],
        {},
        {"": {}},
    )
    keys = sorted({key.replace("*", "m") for row in DECLARATIONS for key in row.keys})
    for _ in range(800):
        config: dict[str, Any] = {}
        for key in rng.sample(keys, rng.randrange(1, 4)):
            *sections, name = key.split(".")[: rng.randrange(1, 5)]
            node: Any = config
            for section in sections:
                node = node.setdefault(section, {}) if isinstance(node, dict) else {}
            if isinstance(node, dict):
                node[name] = copy.copy(rng.choice(values))
        text = json.dumps(config)
        if rng.random() < 0.2:
            cut = rng.randrange(len(text))
            text = text[:cut] + rng.choice('{}[],:"\\/\0') + text[cut + 1 :]
        desk.file("config.json", text)
        survives(desk, {})


def test_a_key_without_its_certificate_is_refused(desk: Desk) -> None:
    refusal = desk.refusal(environ={"TLS_KEY_FILE": "/etc/corral/tls.key"})
    assert refusal == "TLS_KEY_FILE is set and TLS_CERT_FILE is not; it must name the key's certificate"
