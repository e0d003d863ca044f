"""What only the tests of the whole need: an engine that has faults to order, and models that are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.end_to_end.gpus import Machine
from tests.stand_in_launcher import write_launcher
from tests.support import Corral, free_port, running_corral

StartMachine = Callable[..., Machine]


class Hopeless(NamedTuple):
    """Two instances with a model that dies whenever it is loaded, which is from the start."""

    herd: Corral
    single: Corral


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An executable stand-in for llama-server: it answers without a model, and fails as it is told to."""
    return write_launcher(tmp_path_factory.mktemp("stand-in"))


@pytest.fixture(scope="session")
def broken_files(tmp_path_factory: pytest.TempPathFactory, demo_files: Path) -> Path:
    """A folder of model files that are none."""
    folder = tmp_path_factory.mktemp("broken")
    demo = (demo_files / "demo.gguf").read_bytes()
    (folder / "truncated.gguf").write_bytes(demo[: len(demo) // 2])
    (folder / "garbage.gguf").write_bytes(bytes(range(256)) * 4096)
    (folder / "empty.gguf").write_bytes(b"")
    return folder


@pytest.fixture(scope="session", autouse=True)
def hopeless(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, demo_files: Path, broken_files: Path
) -> Iterator[Hopeless]:
    """A model is given up after a quarter of a minute, so these begin while other tests run."""
    garbage = str(broken_files / "garbage.gguf")
    with (
        running_corral(
            tmp_path_factory.mktemp("hopeless"),
            llama_server,
            demo_files,
            config={
                "system": {"preload_models": ["doomed"]},
                "models": {"doomed": {"model_path": garbage}, "demo": {"model_path": "demo.gguf"}},
            },
        ) as herd,
        running_corral(
            tmp_path_factory.mktemp("single"),
            llama_server,
            demo_files,
            environment={"MODEL_PATH": garbage, "PORT_BACKEND": str(free_port())},
            until_up=False,
        ) as single,
    ):
        yield Hopeless(herd, single)


@pytest.fixture
def start_machine(tmp_path: Path, stand_in: Path) -> Iterator[StartMachine]:
    """A machine with GPUs, and a gateway that is up: start_machine({"GPU-a": mib}, {"a": takes(mib)})."""
    machines: list[Machine] = []

    def start(gpus: Mapping[str, int], models: Mapping[str, Any], **options: Any) -> Machine:
        machines.append(Machine(tmp_path / f"machine-{len(machines)}", stand_in, gpus, models, **options))
        machines[-1].corral.wait_until_up()
        return machines[-1]

    yield start
    for machine in machines:
        machine.corral.finish()
