"""What tests of the whole share: an engine, two small models, and Corral itself, started and stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from corral import settings
from corral.formats import demo_models
from tests import support
from tests.support import Corral, running_corral

StartCorral = Callable[..., Corral]


@pytest.fixture(scope="session")
def llama_server() -> Path:
    """The real engine. No test goes without it, so that green means green."""
    engine = settings.load().paths.llama_server
    if engine is None:
        pytest.fail("no llama-server is here: run `make engine`, or set LLAMA_SERVER_PATH", pytrace=False)
    return engine


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two demo models: `demo` recites a text, `demo-embed` embeds one."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "demo.gguf").write_bytes(demo_models.demo())
    (folder / "demo-embed.gguf").write_bytes(demo_models.demo_embed())
    return folder


@pytest.fixture
def free_port() -> int:
    return support.free_port()


@pytest.fixture
def start_corral(tmp_path: Path, llama_server: Path, demo_files: Path) -> Iterator[StartCorral]:
    """Starts instances with settings of the test's own choice; each is up when the call returns.

    start_corral(engine=…, environment={"KEEPALIVE_TIMEOUT": "1"}, config={"models": {…}}, until_up=False)
    and whatever else a Corral of support.py takes.
    """
    running: list[Corral] = []

    def start(*, engine: Path = llama_server, until_up: bool = True, **options: Any) -> Corral:
        directory = tmp_path / f"corral-{len(running)}"
        shutil.copytree(demo_files, directory / "data" / "models")
        instance = Corral(directory, engine, **options)
        running.append(instance)
        if until_up:
            instance.wait_until_up()
        return instance

    yield start
    for instance in running:
        instance.finish()


@pytest.fixture(scope="session")
def corral(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, demo_files: Path
) -> Iterator[Corral]:
    """One instance with the real engine and both demo models, for every test that leaves it as it is."""
    with running_corral(tmp_path_factory.mktemp("corral"), llama_server, demo_files) as instance:
        yield instance
