"""The tables of docs/settings.md, made from the one table of settings, so that the page can't be wrong.

The prose of the page is written by hand; each table stands between two comments that name its part of
the settings. `make docs` writes the tables anew, and a test holds the page against them. What is read
and then used nowhere is found in the code and said on the page: a setting must not look like a promise.
"""

from __future__ import annotations

import ast
import enum
import re
from collections.abc import Iterable
from pathlib import Path

from corral.settings import DECLARATIONS, UNSUPPORTED_KEYS, UNSUPPORTED_VARIABLES, Declaration

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"

# Which settings stand in which table: by the group that a setting's attribute begins with.
TABLES: dict[str, tuple[str, ...]] = {
    "places": ("paths", "instance_id"),
    "server": ("server",),
    "access": ("access",),
    "logs": ("logs",),
    "herd": ("herd", "pool", "idle", "default_model", "visible"),
    "model": ("model",),
    "single": ("single",),
}
MARKED = re.compile(r"(?<=<!-- table: )(\w+)( -->\n).*?(?=<!-- end of table -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with every marked table as it should be."""
    return MARKED.sub(lambda mark: mark[1] + mark[2] + table(mark[1]), page)


def table(name: str) -> str:
    if name == "unsupported":
        return _unsupported()
    if name == "unused":
        return _unused()
    rows = [row for row in DECLARATIONS if row.attribute.partition(".")[0] in TABLES[name]]
    if name == "model":
        head = ["| in the entry of a model | default | what it is |", "|---|---|---|"]
        lines = [f"| {_names(key[len('models.*.') :] for key in row.keys)} | {_end(row)}" for row in rows]
    else:
        head = ["| variable | in the config file | default | what it is |", "|---|---|---|---|"]
        lines = [f"| {_names(row.variables)} | {_names(row.keys)} | {_end(row)}" for row in rows]
    return "\n".join([*head, *lines]) + "\n"


def _end(row: Declaration) -> str:
    about = f"{row.about} *({row.kind.expects})*".replace("|", "\\|")  # a bare | would end the cell
    return f"{_default(row)} | {about} |"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


def _default(row: Declaration) -> str:
    value = row.default
    if value is None or value == ():
        return "–"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if isinstance(value, enum.Enum):
        return f"`{value.value}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _unsupported() -> str:
    keys = (key.replace("models.*", "models.NAME") for key in UNSUPPORTED_KEYS)
    return f"Variables: {_names(UNSUPPORTED_VARIABLES)}.\nIn the config file: {_names(keys)}.\n"


def _unused() -> str:
    """Settings whose values nothing outside `settings` ever asks for."""
    groups = ("server.", "access.", "logs.", "herd.", "model.")
    asked_for = set()
    for path in (ROOT / "scripts").rglob("*.py"):
        if "settings" not in path.relative_to(ROOT).parts:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            asked_for |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    unused = [
        row
        for row in DECLARATIONS
        if row.attribute.startswith(groups) and row.attribute.partition(".")[2] not in asked_for
    ]
    return f"{_names(name for row in unused for name in (*row.variables, *row.keys))}\n"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
