"""Finds each declared setting in what was given, by precedence, and says where a wrong one came from.

The environment beats `.env`, `.env` beats the config file, the config file beats the default. Within
one of them the names of a row are tried in their order. An empty variable counts as unset, because
that is what `NAME=` in a compose file or a template means; CUDA_VISIBLE_DEVICES alone means something
when empty.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from corral.errors import SettingsError
from corral.settings import places
from corral.settings.declarations import (
    API_KEY,
    CUDA_VISIBLE_DEVICES,
    DECLARATIONS,
    UNSUPPORTED_KEYS,
    Declaration,
)
from corral.settings.kinds import Kind, Misfit

SHOWN_MAX_CHARS = 80
# A key may hold a model's name, which may be long.
KEY_MAX_CHARS = 300


class Found(NamedTuple):
    value: Any
    where: str


def fit(kind: Kind, value: Any, where: str, *, as_text: bool = False) -> Any:
    """The value as its kind has it, or an error that says where it stands and what would be right."""
    try:
        return kind.from_text(value) if as_text else kind.from_json(value)
    except Misfit:
        # What was to be a secret is one, even if it can't be used.
        what = "not usable" if kind is API_KEY else shown(value)
        raise SettingsError(f"{where} is {what}; it must be {kind.expects}") from None


def shown(value: Any, max_chars: int = SHOWN_MAX_CHARS) -> str:
    """The value in a message: on one line, in ASCII, and not endless."""
    text = json.dumps(value)
    return text if len(text) <= max_chars else text[:max_chars] + "..."


def look_up(node: Any, key: str) -> tuple[bool, Any]:
    """Whether the object has the dotted key, and what it holds there."""
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False, None
        node = node[part]
    return True, node


@dataclass(frozen=True)
class Given:
    """All that was said from outside, not yet understood."""

    environ: Mapping[str, str]
    dotenv: Mapping[str, str]
    dotenv_file: Path
    cwd: Path
    config: Mapping[str, Any]
    config_file: Path | None

    def variable(self, name: str) -> Found | None:
        for source, where in ((self.environ, ""), (self.dotenv, f" in {self.dotenv_file}")):
            text = source.get(name)
            if text is not None and (text.strip() or name == CUDA_VISIBLE_DEVICES):
                return Found(text.strip(), name + where)
        return None

    def find(self, row: Declaration) -> Found | None:
        """The value that counts, of the row's kind, and where it stands; None if nobody gave one."""
        for name in row.variables:
            variable = self.variable(name)
            if variable is not None:
                value = fit(row.kind, variable.value, variable.where, as_text=True)
                return Found(self._absolute(value), variable.where)
        for key in row.keys:
            present, value = look_up(self.config, key)
            if present:
                where = self.in_config(key)
                return Found(self._absolute(fit(row.kind, value, where)), where)
        return None

    def in_config(self, key: str) -> str:
        plain = shown(key, KEY_MAX_CHARS).strip('"')
        return f"{plain} in {self.config_file}"

    def home(self) -> Path:
        return places.home(self.environ)

    def _absolute(self, value: Any) -> Any:
        return places.absolute(value, self.cwd, self.home()) if isinstance(value, Path) else value


def _children_of_keys() -> dict[str, set[str]]:
    """For every object of the config file, by its dotted path, the keys that it may have."""
    children: dict[str, set[str]] = {}
    for row in DECLARATIONS:
        for key in row.keys:
            parts = key.split(".")
            for depth, part in enumerate(parts):
                children.setdefault(".".join(parts[:depth]), set()).add(part)
    return children


_CHILDREN = _children_of_keys()


def check_keys(given: Given, node: Mapping[str, Any], pattern: str = "", at: str = "") -> list[str]:
    """A warning for each key below the object at `at` that is unknown or not supported.

    `pattern` is where the table knows that object: `models.*` for the model at `models.qwen-7b`. The
    entries of `models` are left to whoever reads them.
    """
    warnings: list[str] = []
    for key, value in node.items():
        path = f"{pattern}.{key}".lstrip(".")
        key_at = f"{at}.{key}".lstrip(".")
        where = given.in_config(key_at)
        if path in UNSUPPORTED_KEYS:
            warnings.append(f"{where} is not supported yet by this version: ignored")
        elif key not in _CHILDREN[pattern]:
            warnings.append(f"{where} is not a setting: ignored{did_you_mean(key, _CHILDREN[pattern])}")
        elif path in _CHILDREN:
            if not isinstance(value, dict):
                raise SettingsError(f"{where} is {shown(value)}; it must be an object in braces")
            if path != "models":
                warnings += check_keys(given, value, path, key_at)
    return warnings


def did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
