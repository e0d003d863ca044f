"""The two files that settings come from: `.env`, and the config file in JSON with comments.

Both are read whole and within a limit. Here they become text and plain JSON values; what those mean
is decided elsewhere. What a broken line says is never repeated, since it may be a secret: its number
is enough to find it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from corral.errors import SettingsError

DOTENV_MAX_BYTES = 65_536
CONFIG_MAX_BYTES = 2**20

_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
_QUOTED = re.compile(r"""(?:'([^']*)'|"((?:[^"\\]|\\.)*)")\s*(?:#.*)?""")
_COMMENT_AFTER_BARE = re.compile(r"(?:^|\s)#.*")
_ESCAPE = re.compile(r'\\([\\"$nrt])')
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}
# Strings are matched so that // inside one stays. The closing quote is optional, or else one that is
# missing would be looked for again from every quote after it.
_STRING_OR_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"?|//[^\n]*')


def read_dotenv(path: Path) -> dict[str, str]:
    """The assignments in `path`; none if it is not a file (some people keep a virtualenv in `.env`)."""
    if not os.path.isfile(path):
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(_read(path, DOTENV_MAX_BYTES).split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        assignment = _ASSIGNMENT.fullmatch(line)
        value = _dotenv_value(assignment[2]) if assignment else None
        if assignment is None or value is None or "\0" in value:
            raise SettingsError(
                f"{path} line {number} can't be read; it must be NAME=value, with every quote closed, "
                "or a comment that begins with #"
            )
        found[assignment[1]] = value
    return found


def _dotenv_value(written: str) -> str | None:
    if written[:1] not in ("'", '"'):
        return _COMMENT_AFTER_BARE.sub("", written)
    quoted = _QUOTED.fullmatch(written)
    if quoted is None:
        return None
    if quoted[1] is not None:
        return quoted[1]
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), quoted[2])


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in `path`: `//` comments allowed, keys that begin with `_` left out."""
    text = _STRING_OR_COMMENT.sub(_blank_comment, _read(path, CONFIG_MAX_BYTES))

    def refuse(constant: str) -> NoReturn:
        raise SettingsError(f"{path} holds {constant}; a number must be finite")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for key, value in pairs:
            if key in keys:
                raise SettingsError(f"{path} has the key {json.dumps(key)} twice in one object; keep one")
            keys[key] = value
        return {key: value for key, value in keys.items() if not key.startswith("_")}

    try:
        config = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{path} line {error.lineno} column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError):
        # A number of thousands of digits, or thousands of brackets.
        raise SettingsError(f"{path} holds a number too long or brackets too deep to read") from None
    if not isinstance(config, dict):
        raise SettingsError(f"{path} must hold one JSON object, {{…}}")
    return config


def _blank_comment(match: re.Match[str]) -> str:
    # Spaces in a comment's place keep the column numbers of what follows.
    return " " * len(match[0]) if match[0].startswith("//") else match[0]


def _read(path: Path, max_bytes: int) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror}") from None
    if len(content) > max_bytes:
        raise SettingsError(f"{path} is larger than {max_bytes} bytes; a file of settings must be smaller")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text at byte {error.start}") from None
