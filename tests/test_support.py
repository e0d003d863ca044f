"""The harness itself: a test that leaves a process behind, or a gateway that fails, must not go unseen."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import StartCorral
from tests.support import Corral, processes_naming
from tests.waiting import moments, wait_until


def instance(directory: Path, demo_files: Path, engine: Path, **environment: str) -> Corral:
    shutil.copytree(demo_files, directory / "data" / "models")
    return Corral(directory, engine, environment=environment)


def test_a_process_left_behind_fails_the_test_and_is_ended(
    tmp_path: Path, demo_files: Path, llama_server: Path
) -> None:
    corral = instance(tmp_path, demo_files, llama_server)
    corral.wait_until_up()
    with subprocess.Popen(["sleep", "60"], env={"LEFT_BY": str(tmp_path)}) as left:
        wait_until(lambda: left.pid in processes_naming(tmp_path), "the process has its environment")
        with pytest.raises(AssertionError, match=rf"still running: \{{{left.pid}: 'sleep 60"):
            corral.finish()
        assert left.wait(10) == -9


def test_a_gateway_that_cannot_start_fails_at_once_with_its_own_words(
    tmp_path: Path, demo_files: Path, llama_server: Path
) -> None:
    corral = instance(tmp_path, demo_files, llama_server, MAX_HEADERS="many")
    with pytest.raises(AssertionError, match=r"ended with 1(?s:.*)MAX_HEADERS"):
        corral.wait_until_up()
    with pytest.raises(AssertionError, match="ended with 1"):
        corral.finish()


def test_a_gateway_that_is_killed_takes_its_children_along(start_corral: StartCorral) -> None:
    corral = start_corral(config={"system": {"preload_models": ["*"]}})
    assert len(processes_naming(corral.directory)) == 4, "gateway, health server and two llama-servers"
    corral.kill()  # that they go is seen to at the end of every test


def test_moments_are_in_the_order_of_the_facts_whichever_was_the_first() -> None:
    later = iter([False, False, True])
    second, first = moments(lambda: next(later), lambda: True)
    assert first < second
