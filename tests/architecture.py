"""The rules of the house, checked on the syntax tree and never on a running program.

A rule takes a tree of files and yields what breaks it: the file, the line, what is wrong there and what
to do about it. The ranks say who may import whom; the homes say where the few things are done that a
reader must be able to trust (start a task, read a clock, read the environment, start a process). Rules
know nothing of pytest, so that each can be tried on a small tree with one planted fault.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

PACKAGE = "corral"
# Who may import whom: a module imports from the lines above its own, and from its own room.
RANKS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"formats", "settings", "metrics"}),
    frozenset({"catalogue"}),
    frozenset({"policy", "drivers"}),
    frozenset({"fleet"}),
    frozenset({"handlers", "agents", "health"}),
    frozenset({"app"}),
)
ENTRY_POINT_RANK = len(RANKS)
# Files of the top floor that are the start-up's own parts, and belong to its room.
PARTS_OF_APP = frozenset({"bulletin", "health_process", "logs", "program", "surroundings", "welcome"})
RANK_OF = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}

PURE_ROOMS = frozenset({"formats", "policy"})
# Time, chance, files, networks, processes, logs: what a pure room would have to be told as an argument.
IMPURE = frozenset(
    {"asyncio", "logging", "mmap", "os", "random", "secrets", "socket", "sqlite3", "subprocess"}
    | {"threading", "time", "uuid", f"{PACKAGE}.metrics"}
)

# The one module from outside, and the one file that may try to import it.
OUTSIDERS = {"pynvml": f"{PACKAGE}/drivers/gpu_probe.py"}

DOCSTRING_CHARS_MIN = 40
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 400


class Fault(NamedTuple):
    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


class Use(NamedTuple):
    """A name from elsewhere: `os.environ`, or `?.create_task` for an attribute of who knows what."""

    name: str
    line: int


@dataclass(frozen=True)
class Module:
    """One Python file, parsed."""

    name: str  # corral.formats.sse; an entry point is simply its file's name
    path: str  # below scripts/, as messages show it
    source: str
    is_package: bool

    @cached_property
    def syntax(self) -> ast.Module:
        return ast.parse(self.source, self.path)

    @property
    def room(self) -> str:
        """The second part of the name. An entry point is a room of its own."""
        parts = self.name.split(".")
        if parts[0] != PACKAGE or len(parts) == 1:
            return self.name
        return "app" if parts[1] in PARTS_OF_APP else parts[1]

    @property
    def rank(self) -> int | None:
        if self.name == PACKAGE:
            return -1  # the map: it is run before everything else, so it may import nothing
        if self.name.startswith(f"{PACKAGE}."):
            return RANK_OF.get(self.room)
        return ENTRY_POINT_RANK

    @property
    def behaves(self) -> bool:
        """Whether it has anything to test: a file of values and words alone defines no function."""
        return any(isinstance(node, FUNCTIONS) for node in ast.walk(self.syntax))

    def fault(self, line: int, message: str) -> Fault:
        return Fault(f"scripts/{self.path}", line, message)

    def imports(self) -> Iterator[Use]:
        """Every name that an import statement asks for, in full, wherever the statement stands."""
        for node in ast.walk(self.syntax):
            if isinstance(node, ast.Import):
                yield from (Use(alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = self._origin(node)
                yield from (Use(f"{origin}.{alias.name}", node.lineno) for alias in node.names)

    def _origin(self, node: ast.ImportFrom) -> str:
        """Where `from … import` looks, with the dots of a relative import spelled out."""
        if not node.level:
            return node.module or ""
        package = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
        base = package[: len(package) - node.level + 1]
        return ".".join([*base, *([node.module] if node.module else [])])

    def uses(self) -> Iterator[Use]:
        """What it imports, and every attribute of it; attributes of anything else as `?.attribute`."""
        yield from self.imports()
        known = self._known_names()
        for node in ast.walk(self.syntax):
            if isinstance(node, ast.Attribute):
                yield Use(_dotted(node, known), node.lineno)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                yield Use(known.get(node.id, node.id), node.lineno)

    def _known_names(self) -> dict[str, str]:
        known: dict[str, str] = {}
        for node in ast.walk(self.syntax):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.partition(".")[0]
                    known[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom):
                origin = self._origin(node)
                known |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}
        return known


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, known)}.{node.attr}"
    return known.get(node.id, "?") if isinstance(node, ast.Name) else "?"


class Tree:
    """Everything below a `scripts/` folder, and the names of the tests beside it."""

    def __init__(self, root: Path) -> None:
        self.modules = [_read(path, root / "scripts") for path in sorted((root / "scripts").rglob("*.py"))]
        self.by_name = {module.name: module for module in self.modules}
        self.tests = sorted(str(path.relative_to(root)) for path in (root / "tests").rglob("test_*.py"))

    def targets(self, module: Module) -> Iterator[tuple[Module, int]]:
        """The modules of this tree that `module` imports. `from a import b` means a.b if that is a module."""
        for name, line in module.imports():
            target = self.by_name.get(name) or self.by_name.get(name.rpartition(".")[0])
            if target is not None and target is not module:
                yield target, line


def _read(path: Path, scripts: Path) -> Module:
    relative = path.relative_to(scripts)
    is_package = path.name == "__init__.py"
    parts = relative.parts[:-1] if is_package else (*relative.parts[:-1], path.stem)
    return Module(".".join(parts), relative.as_posix(), path.read_text(encoding="utf-8"), is_package)


Rule = Callable[[Tree], Iterator[Fault]]


# Who may import whom ------------------------------------------------------------------------------


def ranks(tree: Tree) -> Iterator[Fault]:
    """A module imports from lower ranks and from its own room."""
    for module in tree.modules:
        if module.rank is None:
            yield module.fault(
                1, f"the room {module.room!r} has no rank: put the file into a room that has one"
            )
            continue
        for target, line in tree.targets(module):
            if target.rank is None:
                continue
            if target.rank > module.rank:
                yield module.fault(
                    line,
                    f"{module.room} imports {target.name}, which ranks above it: "
                    "move what both need down, or hand it over as an argument",
                )
            elif target.rank == module.rank and target.room != module.room:
                yield module.fault(
                    line,
                    f"{module.room} imports {target.name}, a room of equal rank: "
                    "let a higher room know both, or move what both need down",
                )


def cycles(tree: Tree) -> Iterator[Fault]:
    """Inside a room imports run one way. Only what is imported by name counts, not the packages above it."""
    imports = {module.name: list(tree.targets(module)) for module in tree.modules}
    for module in tree.modules:
        for target, line in imports[module.name]:
            way_back = _way(target.name, module.name, imports)
            # One report for each circle: at the name that comes first in the alphabet.
            if way_back and module.name == min(way_back):
                circle = " -> ".join([module.name, *way_back])
                yield module.fault(
                    line, f"imports run in a circle: {circle}. Move what both need to a third module"
                )


def _way(start: str, end: str, imports: dict[str, list[tuple[Module, int]]]) -> list[str]:
    """A shortest chain of imports from `start` to `end`, both included; empty if there is none."""
    ways, seen = [[start]], {start}
    for way in ways:
        if way[-1] == end:
            return way
        for target, _ in imports[way[-1]]:
            if target.name not in seen:
                seen.add(target.name)
                ways.append([*way, target.name])
    return []


def pure_rooms(tree: Tree) -> Iterator[Fault]:
    for module in tree.modules:
        if module.room not in PURE_ROOMS or not module.name.startswith(PACKAGE):
            continue
        for name, line in module.imports():
            for impure in sorted(IMPURE):
                if name == impure or name.startswith(f"{impure}."):
                    yield module.fault(
                        line,
                        f"{module.room} is pure and may not import {impure}: "
                        "take what it would give as an argument, and let a driver fetch it",
                    )


def standard_library_only(tree: Tree) -> Iterator[Fault]:
    own = {module.name.partition(".")[0] for module in tree.modules}
    for module in tree.modules:
        for name, line in module.imports():
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in own and OUTSIDERS.get(top) != module.path:
                yield module.fault(
                    line, f"{top} is not in the standard library: Corral runs without installing it"
                )


# One home each ------------------------------------------------------------------------------------


class Home(NamedTuple):
    """Something that is done in one place only, so that one place can be trusted to do it right."""

    what: str
    names: re.Pattern[str]
    places: tuple[str, ...]  # files, or folders that end with /
    instead: str


TASKS = Home(
    "starts a task",
    re.compile(r"(.+\.)?(create_task|ensure_future)"),
    (f"{PACKAGE}/drivers/tasks.py",),
    "call tasks.spawn or tasks.outcome, which keep the task alive and log its failure",
)
ENVIRONMENT = Home(
    "touches the environment",
    re.compile(r"os\.(environb?|getenvb?|putenv|unsetenv)"),
    (f"{PACKAGE}/settings/",),
    "declare a setting and take its value as an argument",
)
CLOCK = Home(
    "reads a clock",
    re.compile(
        r"time\.(time|monotonic|perf_counter|process_time)(_ns)?"
        r"|datetime\.(datetime\.(now|utcnow|today)|date\.today)"
    ),
    (f"{PACKAGE}/drivers/clock.py",),
    "call clock.monotonic() or clock.wall(), or take `now` as an argument",
)
PROCESSES = Home(
    "starts a process",
    re.compile(
        r"(subprocess|multiprocessing|pty)(\..+)?"
        r"|os\.(fork|forkpty|exec\w+|posix_spawnp?|spawn\w+|system|popen)"
        r"|asyncio\.create_subprocess_\w+"
    ),
    (f"{PACKAGE}/drivers/process.py", f"{PACKAGE}/drivers/exec_shim.py"),
    "call process.spawn: it ties the child's life to ours",
)


def one_home(home: Home) -> Rule:
    def rule(tree: Tree) -> Iterator[Fault]:
        for module in tree.modules:
            if any(module.path == place or _inside(module.path, place) for place in home.places):
                continue
            found = {line: name for name, line in module.uses() if home.names.fullmatch(name)}
            for line, name in sorted(found.items()):
                where = " or ".join(home.places)
                yield module.fault(line, f"{name} {home.what}, which only {where} may: {home.instead}")

    return rule


def _inside(path: str, folder: str) -> bool:
    return folder.endswith("/") and path.startswith(folder)


def no_print(tree: Tree) -> Iterator[Fault]:
    """Only what a person starts by hand prints: the entry points, and the start-up of the two processes."""
    for module in tree.modules:
        if module.rank == ENTRY_POINT_RANK or module.room in ("app", "health"):
            continue
        for name, line in module.uses():
            if name == "print":
                yield module.fault(
                    line, "print() is for entry points and the start-up screen: log it instead"
                )


# What a file looks like ---------------------------------------------------------------------------


def docstrings(tree: Tree) -> Iterator[Fault]:
    for module in tree.modules:
        if len(ast.get_docstring(module.syntax) or "") < DOCSTRING_CHARS_MIN:
            yield module.fault(
                1, "no docstring worth its name: say what the module is for and what it may touch"
            )


def future_annotations(tree: Tree) -> Iterator[Fault]:
    """Asked of a module that has anything to annotate."""
    annotated = (*FUNCTIONS, ast.ClassDef, ast.AnnAssign)
    for module in tree.modules:
        has_import = any(name == "__future__.annotations" for name, _ in module.imports())
        if not has_import and any(isinstance(node, annotated) for node in ast.walk(module.syntax)):
            yield module.fault(1, "add `from __future__ import annotations` below the docstring")


def short_functions(tree: Tree) -> Iterator[Fault]:
    for module in tree.modules:
        for node in ast.walk(module.syntax):
            if isinstance(node, FUNCTIONS):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    yield module.fault(
                        node.lineno,
                        f"{node.name} has {lines} lines, {FUNCTION_LINES_MAX} are the most: take it apart",
                    )


def short_files(tree: Tree) -> Iterator[Fault]:
    for module in tree.modules:
        lines = len(module.source.splitlines())
        if lines > FILE_LINES_MAX:
            yield module.fault(
                lines, f"{lines} lines, {FILE_LINES_MAX} are the most: make it a folder of one subject"
            )


def a_test_per_file(tree: Tree) -> Iterator[Fault]:
    """tests/ mirrors scripts/corral/. A test says in its name which file it tests, or which folder of a room.

    formats/gguf/reader.py is tested by a test_…reader….py in tests/formats/gguf/, or, as one subject with
    its neighbours, by tests/formats/test_…gguf….py.
    """
    for module in tree.modules:
        if module.is_package or not module.behaves:
            continue
        *folders, name = module.path.removesuffix(".py").split("/")
        folders = ["tests", *folders[1:]]
        wanted = [_test_of(folders, name)]
        if len(folders) > 2:
            wanted.append(_test_of(folders[:-1], folders[-1]))
        if not any(pattern.fullmatch(test) for pattern in wanted for test in tree.tests):
            yield module.fault(1, f"no test file: write {'/'.join(folders)}/test_{name}.py")


def _test_of(folders: list[str], subject: str) -> re.Pattern[str]:
    return re.compile(rf"{'/'.join(folders)}/(.+/)?test_([^/]*_)?{subject}(_[^/]*)?\.py")


# What no file may say -----------------------------------------------------------------------------

ONE_MACHINES_PATHS = re.compile(r"(?<![\w.$/~-])/(?:work|root|home)/[\w.*-]")
REGISTRY_HOSTS = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|registry\.npmjs\.org|npmjs\.com|crates\.io|proxy\.golang\.org"
    r"|repo1?\.maven\.(?:apache\.)?org|(?:deb|ftp|snapshot)\.debian\.org)\b"
)


def forbidden_words(root: Path, files: Iterable[str], words: re.Pattern[str], advice: str) -> Iterator[Fault]:
    for name in files:
        try:
            text = (root / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, IsADirectoryError):
            continue  # a picture or a submodule has no lines to read
        for number, line in enumerate(text.splitlines(), start=1):
            if match := words.search(line):
                yield Fault(name, number, f"{match[0]!r} {advice}")
