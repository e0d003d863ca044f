"""What exists is documented, and what is documented exists: settings, routes, errors, metrics, commands."""

from __future__ import annotations

import re

import pytest

from corral import errors
from corral.errors import CorralError
from corral.handlers import routes
from corral.metrics import Metrics
from corral.settings import DECLARATIONS, UNSUPPORTED_KEYS, UNSUPPORTED_VARIABLES
from tests import settings_page
from tests.support import ROOT, repository_files

README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = settings_page.PAGE.read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def in_code(text: str) -> set[str]:
    """Everything that stands between backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))


# Settings -----------------------------------------------------------------------------------------


def test_the_tables_of_settings_are_those_of_the_declarations() -> None:
    assert settings_page.with_tables(SETTINGS) == SETTINGS, "docs/settings.md is behind: run `make docs`"


def test_every_setting_stands_on_the_page_of_settings() -> None:
    said = in_code(SETTINGS)
    names = {name for row in DECLARATIONS for name in row.variables}
    names |= {key.removeprefix("models.*.") for row in DECLARATIONS for key in row.keys}
    names |= {*UNSUPPORTED_VARIABLES, *(key.replace("*", "NAME") for key in UNSUPPORTED_KEYS)}
    assert names <= said, f"missing in docs/settings.md: {sorted(names - said)}"


# What clients see ---------------------------------------------------------------------------------


def test_every_route_stands_in_the_readme() -> None:
    said = {path for code in in_code(README) for path in re.findall(r"/[a-z0-9_/]*", code)}
    missing = routes.PATHS.keys() - said
    assert not missing, f"missing in README.md: {sorted(missing)}"


def all_errors() -> list[type[CorralError]]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, CorralError)]


@pytest.mark.parametrize("error", [pytest.param(error, id=error.code) for error in all_errors()])
def test_every_error_stands_in_the_readme_beside_its_status(error: type[CorralError]) -> None:
    rows = [
        line.split("|") for line in README.splitlines() if line.startswith("|") and f"`{error.code}`" in line
    ]
    assert len(rows) == 1
    assert str(error.status) in rows[0][1]


def test_the_readme_names_every_metric_with_its_labels_and_no_other() -> None:
    declared = {
        name + (f"{{{','.join(labels)}}}" if labels else "")
        for name, labels in ((each.name, each._label_names) for each in Metrics("0", 0)._instruments)
    }
    assert {code for code in in_code(README) if re.match(r"(router|process|python)_", code)} == declared


def test_the_readme_names_every_command_and_no_other() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    commands = [*in_code(README), *(line for block in blocks for line in block.splitlines())]
    assert {match[1] for match in map(re.compile(r"make ([a-z-]+)").match, commands) if match} == targets


# Links and names ----------------------------------------------------------------------------------


def pages() -> list[str]:
    return [name for name in repository_files() if name.endswith(".md")]


@pytest.mark.parametrize("page", pages())
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", pages())
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    named = {
        word
        for code in in_code((ROOT / page).read_text(encoding="utf-8"))
        for word in re.findall(r"\b(?:scripts|tests|docs|deploy)/[\w/.]+\.\w+", code)
    }
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_requirements_pin_what_the_project_declares() -> None:
    declared = re.findall(r'^dependencies = \["(.*)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    pinned = re.findall(r"^([a-z0-9-]+)==\S+ \\$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert pinned == declared
