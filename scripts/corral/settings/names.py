"""Which names a model may have, and what a file is called when nobody named it.

A name travels in JSON, in URLs, in metrics labels and on command lines; on disk its `/` and `:` become
`_`. So it is a narrow alphabet that begins with a letter or a digit, and short enough for a file name.
"""

from __future__ import annotations

import re

MODEL_NAME_MAX_CHARS = 200
MODEL_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")

_FOREIGN = re.compile(r"[^A-Za-z0-9._:/@+-]")
_BEFORE_THE_FIRST = re.compile(r"^[^A-Za-z0-9]+")


def model_name_problem(name: str) -> str | None:
    """What is wrong with a model's name, to follow "it", or None."""
    if len(name) > MODEL_NAME_MAX_CHARS:
        return f"is longer than {MODEL_NAME_MAX_CHARS} characters"
    if not MODEL_NAME_PATTERN.fullmatch(name):
        return "must begin with a letter or digit and go on with letters, digits and . _ : / @ + -"
    return None


def model_name_from_file(stem: str) -> str:
    """A valid name for a file whose name, without its ending, is `stem`."""
    name = _BEFORE_THE_FIRST.sub("", _FOREIGN.sub("-", stem))
    return name[:MODEL_NAME_MAX_CHARS] or "model"
