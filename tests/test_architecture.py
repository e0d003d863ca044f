"""The rules of the house hold, and the checker of these rules sees a planted fault of every kind."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import architecture
from tests.architecture import Fault, Rule, Tree
from tests.support import ROOT, repository_files


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree(ROOT)


def report(faults: Iterable[Fault]) -> None:
    if found := [str(fault) for fault in faults]:
        pytest.fail("\n".join(found), pytrace=False)


def test_a_module_imports_from_lower_ranks_and_its_own_room_only(tree: Tree) -> None:
    report(architecture.ranks(tree))


def test_imports_never_run_in_a_circle(tree: Tree) -> None:
    report(architecture.cycles(tree))


def test_formats_and_policy_cannot_act(tree: Tree) -> None:
    report(architecture.pure_rooms(tree))


def test_nothing_but_the_standard_library_is_needed(tree: Tree) -> None:
    report(architecture.standard_library_only(tree))


def test_tasks_are_started_in_one_place(tree: Tree) -> None:
    report(architecture.one_home(architecture.TASKS)(tree))


def test_the_environment_is_read_in_one_place(tree: Tree) -> None:
    report(architecture.one_home(architecture.ENVIRONMENT)(tree))


def test_the_clock_is_read_in_one_place(tree: Tree) -> None:
    report(architecture.one_home(architecture.CLOCK)(tree))


def test_processes_are_started_in_one_place(tree: Tree) -> None:
    report(architecture.one_home(architecture.PROCESSES)(tree))


def test_the_package_logs_and_does_not_print(tree: Tree) -> None:
    report(architecture.no_print(tree))


def test_every_module_says_what_it_is_for(tree: Tree) -> None:
    report(architecture.docstrings(tree))


def test_annotations_are_never_evaluated(tree: Tree) -> None:
    report(architecture.future_annotations(tree))


def test_functions_are_short(tree: Tree) -> None:
    report(architecture.short_functions(tree))


def test_files_are_short(tree: Tree) -> None:
    report(architecture.short_files(tree))


def test_every_source_file_has_a_test_file(tree: Tree) -> None:
    report(architecture.a_test_per_file(tree))


def test_no_file_knows_the_paths_of_one_machine() -> None:
    report(
        architecture.forbidden_words(
            ROOT,
            repository_files(),
            architecture.ONE_MACHINES_PATHS,
            "exists on one machine only: use a relative path",
        )
    )


def test_no_file_names_the_host_of_a_registry() -> None:
    report(
        architecture.forbidden_words(
            ROOT,
            repository_files(),
            architecture.REGISTRY_HOSTS,
            "is a registry's host: name the package, not its host",
        )
    )


# The checker itself -------------------------------------------------------------------------------

HEAD = (
    '"""What this module is for, in a sentence that is long enough."""\nfrom __future__ import annotations\n'
)


def planted(tmp_path: Path, files: dict[str, str]) -> Tree:
    """A small tree; the text of a Python file stands below a docstring and begins on line 3."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD + text)
    return Tree(tmp_path)


TASKS, ENVIRONMENT, CLOCK, PROCESSES = map(
    architecture.one_home,
    (architecture.TASKS, architecture.ENVIRONMENT, architecture.CLOCK, architecture.PROCESSES),
)
LONG_FUNCTION = "def long() -> None:\n" + "    pass\n" * 60


@pytest.mark.parametrize(
    ("rule", "path", "text", "line"),
    [
        pytest.param(architecture.ranks, "corral/policy/a.py", "import corral.fleet\n", 3, id="upwards"),
        pytest.param(
            architecture.ranks, "corral/policy/a.py", "\nfrom corral import app", 4, id="upwards-from"
        ),
        pytest.param(
            architecture.ranks, "corral/policy/a.py", "from ..drivers import b", 3, id="to-a-neighbour"
        ),
        pytest.param(
            architecture.ranks, "corral/policy/a.py", "def f():\n from corral.fleet import F", 4, id="late"
        ),
        pytest.param(
            architecture.ranks, "corral/catalogue.py", "import corral.drivers.b", 3, id="catalogue-upwards"
        ),
        pytest.param(
            architecture.ranks, "corral/health.py", "import corral.handlers", 3, id="health-to-handlers"
        ),
        pytest.param(architecture.ranks, "corral/attic/a.py", "", 1, id="a-room-of-no-rank"),
        pytest.param(
            architecture.ranks, "corral/__init__.py", "import corral.fleet", 3, id="the-map-imports"
        ),
        pytest.param(architecture.ranks, "keys.py", "import gateway", 3, id="between-entry-points"),
        pytest.param(architecture.pure_rooms, "corral/policy/a.py", "import time", 3, id="clock-in-policy"),
        pytest.param(
            architecture.pure_rooms,
            "corral/formats/g/a.py",
            "from os.path import join",
            3,
            id="os-in-formats",
        ),
        pytest.param(
            architecture.pure_rooms, "corral/policy/a.py", "from corral.metrics import M", 3, id="metrics"
        ),
        pytest.param(
            architecture.pure_rooms, "corral/policy/a.py", "def f(): import random", 3, id="late-import"
        ),
        pytest.param(
            architecture.standard_library_only, "corral/app.py", "import requests", 3, id="third-party"
        ),
        pytest.param(
            architecture.standard_library_only, "gateway.py", "from yaml import load", 3, id="in-entry-point"
        ),
        pytest.param(
            architecture.standard_library_only,
            "corral/drivers/a.py",
            "import pynvml",
            3,
            id="pynvml-elsewhere",
        ),
        pytest.param(TASKS, "corral/app.py", "def f(loop): loop.create_task(1)", 3, id="task-of-a-loop"),
        pytest.param(TASKS, "corral/app.py", "from asyncio import ensure_future as go", 3, id="task-renamed"),
        pytest.param(ENVIRONMENT, "corral/app.py", "import os\nos.environ['A']", 4, id="environ"),
        pytest.param(ENVIRONMENT, "keys.py", "import os as o\n\no.getenv('A')", 5, id="getenv-renamed"),
        pytest.param(CLOCK, "corral/app.py", "import time\ntime.monotonic()", 4, id="monotonic"),
        pytest.param(CLOCK, "corral/app.py", "from time import time_ns", 3, id="time-from"),
        pytest.param(
            CLOCK, "corral/app.py", "from datetime import datetime\ndatetime.now()", 4, id="datetime-now"
        ),
        pytest.param(CLOCK, "corral/app.py", "import datetime\ndatetime.date.today()", 4, id="today"),
        pytest.param(PROCESSES, "corral/app.py", "import subprocess", 3, id="subprocess"),
        pytest.param(PROCESSES, "keys.py", "import os\nos.execvp('a', ['a'])", 4, id="exec-in-entry-point"),
        pytest.param(
            PROCESSES, "corral/app.py", "import asyncio\nasyncio.create_subprocess_exec()", 4, id="asyncio"
        ),
        pytest.param(architecture.no_print, "corral/fleet.py", "print('hello')", 3, id="print"),
        pytest.param(architecture.short_functions, "corral/fleet.py", "\n" + LONG_FUNCTION, 4, id="61-lines"),
        pytest.param(architecture.short_files, "corral/fleet.py", "\n" * 399, 401, id="401-lines"),
        pytest.param(architecture.a_test_per_file, "corral/fleet.py", "def f(): pass", 1, id="no-test"),
        pytest.param(
            architecture.a_test_per_file, "corral/fleet/b.py", "def f(): pass", 1, id="test-of-a-namesake"
        ),
    ],
)
def test_a_planted_fault_is_found_at_its_line(
    tmp_path: Path, rule: Rule, path: str, text: str, line: int
) -> None:
    bystanders = {
        f"scripts/{name}": ""
        for name in (
            "corral/fleet.py",
            "corral/app.py",
            "corral/drivers/b.py",
            "corral/handlers/c.py",
            "gateway.py",
        )
    }
    bystanders |= {f"tests/test_{name}.py": "" for name in ("app", "gateway")}
    bystanders |= {
        "tests/drivers/test_b.py": "",
        "tests/handlers/test_c.py": "",
        "scripts/corral/handlers/__init__.py": "",
    }
    tree = planted(tmp_path, bystanders | {f"scripts/{path}": text})
    faults = list(rule(tree))
    assert [(fault.path, fault.line) for fault in faults] == [(f"scripts/{path}", line)]
    assert str(faults[0]).startswith(f"scripts/{path}:{line}: ")


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        pytest.param(architecture.ranks, "corral/policy/a.py", "from corral import errors", id="downwards"),
        pytest.param(
            architecture.ranks, "corral/drivers/a.py", "from corral.drivers import b", id="own-room"
        ),
        pytest.param(
            architecture.ranks, "corral/policy/a.py", "import corral.catalogue", id="policy-to-catalogue"
        ),
        pytest.param(
            architecture.pure_rooms, "corral/policy/a.py", "from datetime import date", id="pure-datetime"
        ),
        pytest.param(architecture.pure_rooms, "corral/drivers/a.py", "import time", id="drivers-may-act"),
        pytest.param(
            architecture.standard_library_only, "corral/drivers/gpu_probe.py", "import pynvml", id="pynvml"
        ),
        pytest.param(
            TASKS, "corral/drivers/tasks.py", "def f(loop): loop.create_task(1)", id="home-of-tasks"
        ),
        pytest.param(
            ENVIRONMENT, "corral/settings/places.py", "import os\nos.environ", id="home-of-environment"
        ),
        pytest.param(CLOCK, "corral/drivers/clock.py", "import time\ntime.time()", id="home-of-clock"),
        pytest.param(CLOCK, "corral/drivers/a.py", "def f(record): record.time()", id="another-time"),
        pytest.param(PROCESSES, "corral/drivers/process.py", "import subprocess", id="home-of-processes"),
        pytest.param(architecture.no_print, "gateway.py", "print('hello')", id="entry-point-prints"),
        pytest.param(architecture.short_functions, "corral/a.py", LONG_FUNCTION[:-9], id="60-lines"),
        pytest.param(architecture.a_test_per_file, "corral/fleet/__init__.py", "import os", id="re-export"),
        pytest.param(
            architecture.a_test_per_file, "corral/drivers/b/c.py", "def f(): pass", id="folder-as-one"
        ),
    ],
)
def test_what_is_allowed_is_left_alone(tmp_path: Path, rule: Rule, path: str, text: str) -> None:
    files = {
        f"scripts/{name}": "" for name in ("corral/errors.py", "corral/catalogue.py", "corral/drivers/b.py")
    }
    files |= {
        "tests/test_errors.py": "",
        "tests/test_catalogue.py": "",
        "tests/drivers/test_the_b_of_it.py": "",
    }
    report(rule(planted(tmp_path, files | {f"scripts/{path}": text})))


def test_a_circle_is_found_once_however_long(tmp_path: Path) -> None:
    tree = planted(
        tmp_path,
        {
            "scripts/corral/policy/a.py": "from corral.policy.b import x",
            "scripts/corral/policy/b.py": "from corral.policy import c",
            "scripts/corral/policy/c.py": "def f():\n    from . import a",
            "scripts/corral/policy/d.py": "from corral.policy import a, b, c",
        },
    )
    (fault,) = architecture.cycles(tree)
    assert (fault.path, fault.line) == ("scripts/corral/policy/a.py", 3)
    assert "corral.policy.a -> corral.policy.b -> corral.policy.c -> corral.policy.a" in fault.message


def test_a_package_and_its_parts_make_a_circle_only_if_a_part_asks_the_package(tmp_path: Path) -> None:
    package = {"scripts/corral/formats/g/__init__.py": "from corral.formats.g.a import x"}
    report(architecture.cycles(planted(tmp_path, package | {"scripts/corral/formats/g/a.py": "x = 1"})))
    asking = planted(tmp_path, package | {"scripts/corral/formats/g/a.py": "from corral.formats.g import x"})
    assert len(list(architecture.cycles(asking))) == 1


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        pytest.param(architecture.docstrings, "x = 1\n", id="no-docstring"),
        pytest.param(architecture.docstrings, '"""Too short."""\n', id="a-short-one"),
        pytest.param(architecture.future_annotations, "def f(a: int): pass\n", id="no-future-import"),
    ],
)
def test_a_bare_module_is_found(tmp_path: Path, rule: Rule, text: str) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/gateway.py").write_text(text)
    assert [(fault.path, fault.line) for fault in rule(Tree(tmp_path))] == [("scripts/gateway.py", 1)]


def test_forbidden_words_are_found_in_any_text_and_pictures_are_passed_over(tmp_path: Path) -> None:
    home = "/" + "home/ann/models"
    (tmp_path / "notes.md").write_text(f"fine: https://host/home/page, $HOME/x\nnot fine: {home}\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff" + home.encode())
    found = architecture.forbidden_words(
        tmp_path, ["notes.md", "picture.png"], architecture.ONE_MACHINES_PATHS, "is bad"
    )
    assert [(fault.path, fault.line) for fault in found] == [("notes.md", 2)]
    (tmp_path / "notes.md").write_text("get it from files.pythonhosted" + ".org/packages\n")
    found = architecture.forbidden_words(tmp_path, ["notes.md"], architecture.REGISTRY_HOSTS, "is bad")
    assert [fault.line for fault in found] == [1]
