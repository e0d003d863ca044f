"""The policy with a fault in it: a copy of the package, in which one piece of the source is another."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from corral.policy import scheduler as sound

PACKAGE = sound.__name__
FILES = ("ticket", "actions", "queue", "pace", "switching", "model", "places", "scheduler", "__init__")


class Fault(NamedTuple):
    what: str
    file: str
    right: str
    wrong: str


def plant(fault: Fault) -> ModuleType:
    """A package of its own, beside the sound one."""
    alias = f"faulty_{fault.what.replace('-', '_')}"
    folder = Path(sound.__file__).parent
    package = sys.modules[alias] = ModuleType(alias)
    package.__path__ = []
    for file in FILES:
        source = (folder / f"{file}.py").read_text(encoding="utf-8")
        if file == fault.file:
            found = source.count(fault.right)
            assert found == 1, f"{fault.what}: what it replaces stands there {found} times; say it anew"
            source = source.replace(fault.right, fault.wrong)
        module = package
        if file != "__init__":
            module = sys.modules[f"{alias}.{file}"] = ModuleType(f"{alias}.{file}")
            setattr(package, file, module)
        exec(compile(source.replace(PACKAGE, alias), f"<{fault.what}: {file}>", "exec"), module.__dict__)
    return package
