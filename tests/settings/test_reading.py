"""Precedence, place by place and name by name, and the messages that say where a wrong value stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from corral.settings import Settings
from tests.settings.desk import Desk


class Contest(NamedTuple):
    """One setting with three givers: the value that each gives, and what the settings then hold."""

    variable: str
    key: str
    given: tuple[str, str, Any]  # environment, .env, config file
    held: tuple[Any, Any, Any, Any]  # by environment, .env, config file, default
    read: Callable[[Settings], Any]


CONTESTS = [
    Contest(
        "GATEWAY_HOST",
        "api.host",
        ("10.0.0.1", "10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.3", None),
        lambda settings: settings.server.host,
    ),
    Contest(
        "GATEWAY_PORT",
        "api.port",
        ("9001", "9002", 9003),
        (9001, 9002, 9003, 8000),
        lambda settings: settings.server.port,
    ),
    Contest(
        "MAX_REQUESTS_PER_MINUTE",
        "rate_limit.requests_per_minute",
        ("1", "2", 3),
        (1, 2, 3, 100),
        lambda settings: settings.access.requests_per_minute,
    ),
    Contest(
        "REQUEST_TIMEOUT",
        "system.request_timeout_sec",
        ("1.5", "2", 3),
        (1.5, 2.0, 3.0, 120.0),
        lambda settings: settings.herd.request_timeout_s,
    ),
    Contest(
        "CORS_ORIGINS",
        "api.cors_origins",
        ("*", "https://a.example, https://b.example:8443", ["https://c.example"]),
        (("*",), ("https://a.example", "https://b.example:8443"), ("https://c.example",), ()),
        lambda settings: settings.server.cors_origins,
    ),
    Contest(
        "BASE_MODELS_PATH",
        "system.base_models_path",
        ("/models/1", "/models/2", "/models/3"),
        (Path("/models/1"), Path("/models/2"), Path("/models/3"), Path("CWD/data/models")),
        lambda settings: settings.paths.models,
    ),
    Contest(
        "THREADS",
        "system.cpu_threads",
        ("1", "2", 3),
        (1, 2, 3, None),
        lambda settings: settings.herd.cpu_threads,
    ),
]


def nested(key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.partition(".")
    return {section: {name: value}}


@pytest.mark.parametrize("contest", CONTESTS, ids=lambda contest: contest.variable)
def test_environment_beats_dotenv_beats_config_file_beats_default(desk: Desk, contest: Contest) -> None:
    environment, dotenv, config = contest.given
    expected = [
        desk.cwd / value.relative_to("CWD") if isinstance(value, Path) and value.parts[0] == "CWD" else value
        for value in contest.held
    ]
    results = [desk.load({}, dotenv="")]
    results.append(desk.load(nested(contest.key, config)))
    results.append(desk.load(nested(contest.key, config), dotenv=f"{contest.variable}='{dotenv}'"))
    results.append(
        desk.load(
            nested(contest.key, config),
            {contest.variable: environment},
            dotenv=f"{contest.variable}='{dotenv}'",
        )
    )
    assert [contest.read(each) for each in reversed(results)] == expected


def test_gateway_port_beats_port_wherever_they_stand(desk: Desk) -> None:
    assert desk.load(environ={"PORT": "1", "GATEWAY_PORT": "2"}).server.port == 2
    assert desk.load(environ={"PORT": "1"}, dotenv="GATEWAY_PORT=2").server.port == 2
    assert desk.load({"api": {"port": 3}}, {"PORT": "1"}, dotenv="").server.port == 1


def test_a_name_that_does_not_count_is_not_judged(desk: Desk) -> None:
    # Where containers are linked, PORT may be an address.
    assert desk.load(environ={"PORT": "tcp://10.0.0.1:80", "GATEWAY_PORT": "2"}).server.port == 2


@pytest.mark.parametrize("nothing", ["", "  ", "\t"])
def test_an_empty_variable_counts_as_unset(desk: Desk, nothing: str) -> None:
    assert desk.load(environ={"GATEWAY_PORT": nothing}).server.port == 8000
    assert desk.load(environ={"GATEWAY_PORT": nothing, "PORT": "1"}).server.port == 1
    assert desk.load(environ={"GATEWAY_PORT": nothing}, dotenv="GATEWAY_PORT=2").server.port == 2
    assert desk.load(environ={"API_KEY": nothing}).access.env_key is None


def test_an_empty_cuda_visible_devices_hides_every_gpu(desk: Desk) -> None:
    assert desk.load().visible_devices is None
    assert desk.load(environ={"CUDA_VISIBLE_DEVICES": ""}).visible_devices == ()
    assert desk.load(environ={"NVIDIA_VISIBLE_DEVICES": ""}).visible_devices is None


def test_white_space_around_a_variable_is_not_part_of_it(desk: Desk) -> None:
    assert desk.load(environ={"API_KEY": " sk-12345678\n"}).access.env_key == "sk-12345678"


def test_a_wrong_value_is_told_with_its_place_itself_and_what_would_be_right(desk: Desk) -> None:
    assert desk.refusal(environ={"GATEWAY_PORT": "eighty"}) == (
        'GATEWAY_PORT is "eighty"; it must be a whole number from 0 to 65535'
    )
    assert desk.refusal(dotenv="PORT=99999") == (
        f'PORT in {desk.cwd}/.env is "99999"; it must be a whole number from 0 to 65535'
    )
    assert desk.refusal({"api": {"port": "8000"}}, dotenv="") == (
        f'api.port in {desk.cwd}/config.json is "8000"; it must be a whole number from 0 to 65535'
    )


def test_a_secret_that_cannot_be_used_is_not_shown(desk: Desk) -> None:
    expected = "is not usable; it must be 8 to 128 characters of A-Z a-z 0-9 _ -"
    assert desk.refusal(environ={"API_KEY": "geheim!"}) == f"API_KEY {expected}"
    assert desk.refusal(dotenv="API_KEY=geheim!") == f"API_KEY in {desk.cwd}/.env {expected}"


def test_a_long_value_is_cut_in_the_message(desk: Desk) -> None:
    message = desk.refusal(environ={"GATEWAY_PORT": "9" * 4000})
    assert message == f'GATEWAY_PORT is "{"9" * 79}...; it must be a whole number from 0 to 65535'


@pytest.mark.parametrize("section", ["api", "system", "gpu", "server_pool", "rate_limit", "models"])
@pytest.mark.parametrize("value", [1, "x", [], None], ids=repr)
def test_a_section_must_be_an_object(desk: Desk, section: str, value: Any) -> None:
    message = desk.refusal({section: value})
    assert message.startswith(f"{section} in {desk.cwd}/config.json is ")
    assert message.endswith("; it must be an object in braces")


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        ({"apis": {}}, "apis in FILE is not a setting: ignored; did you mean api?"),
        ({"xyz": 1}, "xyz in FILE is not a setting: ignored"),
        (
            {"system": {"idle_timout_sec": 3}},
            "system.idle_timout_sec in FILE is not a setting: ignored; did you mean idle_timeout_sec?",
        ),
        (
            {"models": {"m": {"model_path": "m.gguf", "pined": True}}},
            "models.m.pined in FILE is not a setting: ignored; did you mean pinned?",
        ),
        (
            {"models": {"m": {"model_path": "m.gguf", "params": {"ctx": 1}}}},
            "models.m.params.ctx in FILE is not a setting: ignored; did you mean n_ctx?",
        ),
        ({"redis": {"url": "redis://:pw@h"}}, "redis in FILE is not supported yet by this version: ignored"),
        (
            {"rate_limit": {"redis_url": "redis://:pw@h"}},
            "rate_limit.redis_url in FILE is not supported yet by this version: ignored",
        ),
        ({"new\nline\u2028": 1}, r"new\nline\u2028 in FILE is not a setting: ignored"),
        ({"gpu.enabled": False}, "gpu.enabled in FILE is not a setting: ignored"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_key_without_effect_is_one_warning(desk: Desk, config: dict[str, Any], warning: str) -> None:
    settings = desk.load(config)
    assert settings.warnings == (warning.replace("FILE", f"{desk.cwd}/config.json"),)


def test_keys_that_begin_with_an_underscore_are_passed_over(desk: Desk) -> None:
    config = {"_comment": 1, "api": {"_why": []}, "models": {"_m": 3, "m": {"model_path": "m", "_x": 1}}}
    settings = desk.load(config)
    assert settings.warnings == ()
    assert list(settings.models) == ["m"]
