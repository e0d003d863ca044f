"""By what a model's files are known again, so that what was learnt of them holds for no others.

Name, size and time of change, since reading tens of gigabytes to tell two versions apart would take
longer than loading them. A file that is copied without its time is taken for a new one, which costs one
measurement.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple


class FileFacts(NamedTuple):
    """What a file is known by. Its name is without the folder, so that a model may be moved."""

    name: str
    size_bytes: int
    modified_ns: int


def fingerprint(files: Iterable[FileFacts]) -> str:
    """One text for these files, in whatever order and wherever they lie."""
    # JSON, because it keeps apart what joining would run together, and has a word for every odd character.
    return sha256(json.dumps(sorted(files)).encode("ascii")).hexdigest()
