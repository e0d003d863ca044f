"""The table agrees with itself, with the values it fills, and with the two files that show it to people."""

from __future__ import annotations

import dataclasses
import enum
import re
from pathlib import Path

import pytest

from corral.settings import (
    DECLARATIONS,
    Access,
    Declaration,
    Herd,
    Logs,
    ModelSettings,
    Paths,
    Server,
    declarations,
)
from tests.settings.desk import Desk

ROOT = Path(__file__).parents[2]
ENVIRONMENT_EXAMPLE = ROOT / ".env.example"
CONFIG_EXAMPLE = ROOT / "config.example.json"

# Fields that follow from others, and are nobody's to set.
DERIVED = {"paths.state", "paths.cache", "model.name", "model.parallel", "model.in_flags"}
# Rows that take part in another field.
INGREDIENTS = ("pool.", "idle.", "single.", "visible.", "instance_id", "default_model")
GROUPS = {
    "server": Server,
    "access": Access,
    "logs": Logs,
    "paths": Paths,
    "herd": Herd,
    "model": ModelSettings,
}

by_attribute = pytest.mark.parametrize("row", DECLARATIONS, ids=lambda row: row.attribute)


def test_each_field_has_one_row_and_each_row_a_field() -> None:
    fields = {f"{group}.{field.name}" for group, kind in GROUPS.items() for field in dataclasses.fields(kind)}
    rows = [row.attribute for row in DECLARATIONS if not row.attribute.startswith(INGREDIENTS)]
    assert len(rows) == len(set(rows))
    assert set(rows) == fields - DERIVED


def test_a_name_stands_in_one_row_only() -> None:
    for names in (
        [name for row in DECLARATIONS for name in row.variables],
        [key for row in DECLARATIONS for key in row.keys],
    ):
        assert len(names) == len(set(names))


@by_attribute
def test_a_row_can_be_set_and_says_what_it_means(row: Declaration) -> None:
    assert row.variables or row.keys
    assert re.fullmatch(r"[^\s].*[^\s.]", row.about)


@by_attribute
def test_a_default_is_of_its_kind(row: Declaration) -> None:
    default = row.default
    if default is None:
        return
    if isinstance(default, enum.Enum):
        default = default.value
    if isinstance(default, tuple):
        default = list(default)
    read = row.kind.from_json(default)
    assert read == (Path(default) if row.kind is declarations.PATH else row.default)


def example_variables() -> dict[str, str]:
    """Every assignment of .env.example, most of which are commented out, and its line."""
    return dict(re.findall(r"^#?([A-Z_]+)=(.*)$", ENVIRONMENT_EXAMPLE.read_text(), re.MULTILINE))


def compose_variables() -> dict[str, str]:
    """What the compose files take from the environment, and what they take when it is not there.

    A default may be another variable's, `${GATEWAY_PORT:-${PORT:-8000}}`, and is then that one's.
    """
    texts = [path.read_text() for path in ROOT.glob("docker-compose*.yml")]
    return dict(re.findall(r"\$\{([A-Z_]+):-(?:\$\{[A-Z_]+:-)?([^{}]*)\}", "\n".join(texts)))


def test_the_example_environment_shows_every_variable_and_no_other() -> None:
    declared = {name for row in DECLARATIONS for name in row.variables}
    assert set(example_variables()) == declared | compose_variables().keys()


def test_the_example_environment_shows_the_defaults_of_the_compose_files() -> None:
    assert compose_variables().items() <= example_variables().items()


def test_the_example_environment_sets_nothing_by_itself(desk: Desk) -> None:
    plain = desk.load()
    assert desk.load(dotenv=ENVIRONMENT_EXAMPLE.read_text()) == plain


def test_every_value_of_the_example_environment_is_right(desk: Desk) -> None:
    desk.program(desk.home / "llama-server")
    desk.file("config.json", "{}")
    values = example_variables() | {"LLAMA_SERVER_PATH": str(desk.home / "llama-server")}
    assert desk.load(environ=values).warnings == ()


@by_attribute
def test_the_example_environment_shows_the_default(row: Declaration) -> None:
    for name in row.variables:
        shown = example_variables()[name]
        default = row.default
        if isinstance(default, bool):
            assert row.kind.from_text(shown) is default
        elif isinstance(default, (int, float)):
            assert shown == f"{default:.15g}"
        elif isinstance(default, str):
            assert shown == default.replace("$DATA_DIR", "data")


def test_the_example_config_loads_without_a_warning(desk: Desk) -> None:
    settings = desk.load(config_path=CONFIG_EXAMPLE)
    assert settings.warnings == ()
    assert list(settings.models) == ["qwen-7b", "llama-3b", "minilm"]
    assert settings.default_model == "qwen-7b"


@by_attribute
def test_the_example_config_shows_every_key(row: Declaration) -> None:
    text = CONFIG_EXAMPLE.read_text()
    # A row with two names needs to be shown under one of them.
    assert not row.keys or any(f'"{key.rpartition(".")[2]}": ' in text for key in row.keys)
