"""A llama-fit-params beside llama-server: what it says is reserved as well, and it is in nobody's way."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from corral.policy.memory import CONTEXT_BYTES
from tests.end_to_end.gpus import LAYERS, PREDICTED_MIB, RESERVED_MIB, Machine, takes
from tests.end_to_end.talk import metric
from tests.policy.memory.files import MIB
from tests.stand_in_launcher import write_launcher
from tests.support import Corral
from tests.waiting import is_running

# What the guard's own sums come to, without the driver's part; and 500 MiB more.
AGREES = "CUDA0 367 64 53"
FINDS_MORE, MORE_MIB = "CUDA0 867 64 53", 500
FINDS_LESS = "CUDA0 100 6 5"
SAYS_NOTHING_YET = "exec sleep 60"

StartPlanned = Callable[[str], "Planned"]


class Planned(Machine):
    """A machine with one GPU and one model, and a planner whose script the test has written."""

    def __init__(self, root: Path, script: str) -> None:
        root.mkdir()
        self.asked = root / "asked"
        engine = write_launcher(root)
        planner = engine.with_name("llama-fit-params")
        record = f'echo "$$ $CUDA_VISIBLE_DEVICES $*" >> {shlex.quote(str(self.asked))}'
        # It takes a context of the GPU, as the real one does, until it ends.
        context = f'echo "GPU {CONTEXT_BYTES // MIB}" > "$STAND_IN_NVML/use/$$"'
        planner.write_text(f"#!/bin/sh\n{context}\n{record}\n{script}\n")
        planner.chmod(0o755)
        super().__init__(root / "machine", engine, {"GPU": 8000}, {"a": takes(790, load_s=0.4)})
        self._engine = engine

    def questions(self) -> list[list[str]]:
        """Pid, GPU and arguments of each planner."""
        return [line.split() for line in self.asked.read_text().splitlines()] if self.asked.exists() else []

    def again(self) -> Corral:
        """Another gateway, after this one's end, with all that it has left."""
        directory = self.corral.directory
        config = json.loads((directory / "data" / "config.json").read_text())
        return Corral(directory, self._engine, environment=self.world.environment(), config=config)

    def wait_for_opinion(self) -> None:
        words = "a: llama-fit-params finds"
        self.wait_for("its answer is taken", lambda: words in self.corral.log_text)


@pytest.fixture
def start_planned(tmp_path: Path) -> Iterator[StartPlanned]:
    machines: list[Planned] = []

    def start(script: str) -> Planned:
        machines.append(Planned(tmp_path / f"planned-{len(machines)}", script))
        machines[-1].corral.wait_until_up()
        return machines[-1]

    yield start
    for machine in machines:
        machine.corral.finish()


def says(row: str) -> str:
    return f"echo a log line >&2; echo {row}; echo Host 1 0 9"


def reserved_mib(machine: Machine, corral: Corral | None = None) -> int:
    """What is promised to the model while it loads for the first time."""
    corral = corral or machine.corral
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(corral.ask, "/v1/models/load", {"model": "a"})
        machine.wait_for("it takes memory", lambda: metric(corral, "router_gpu_memory_used_bytes", gpu="GPU"))
        size = round(metric(corral, "router_gpu_memory_reserved_bytes", gpu="GPU") / MIB)
        assert answer.result().status == 200
    return size


def test_what_it_finds_beyond_the_prediction_is_reserved_and_kept(start_planned: StartPlanned) -> None:
    machine = start_planned(says(FINDS_MORE))
    machine.wait_for_opinion()
    [(_, gpu, *arguments)] = machine.questions()
    assert gpu == "GPU"
    assert arguments[:6] == ["--fit-print", "on", "-m", arguments[3], "-ngl", str(LAYERS)]
    assert Path(arguments[3]).name == "a.gguf"
    machine.wait_for("its context is given back", lambda: not machine.gpu_mib("used", "GPU"))
    machine.corral.stop()
    again = machine.again()
    try:
        again.wait_until_up()
        expected = (PREDICTED_MIB + MORE_MIB) * RESERVED_MIB / PREDICTED_MIB
        assert reserved_mib(machine, again) == pytest.approx(expected, abs=2)
    finally:
        again.finish()
    assert len(machine.questions()) == 1


@pytest.mark.parametrize("row", [AGREES, FINDS_LESS], ids=["as much", "less"])
def test_without_more_the_reservation_is_as_predicted(start_planned: StartPlanned, row: str) -> None:
    machine = start_planned(says(row))
    machine.wait_for_opinion()
    assert reserved_mib(machine) == RESERVED_MIB


def test_one_that_hangs_gives_way_to_a_request(start_planned: StartPlanned) -> None:
    machine = start_planned(SAYS_NOTHING_YET)
    machine.wait_for("it hangs", machine.questions)
    began = time.monotonic()
    machine.chat("a")
    assert time.monotonic() - began < 5
    pids = [int(pid) for pid, *_ in machine.questions()]
    assert not is_running(pids[0])
    # The model has been measured now, and that is better than any opinion.
    machine.wait_until_measured(a=790)
    assert len(machine.questions()) == 1


def test_one_that_hangs_does_not_hold_up_the_end(start_planned: StartPlanned) -> None:
    machine = start_planned(SAYS_NOTHING_YET)
    machine.wait_for("it hangs", machine.questions)
    began = time.monotonic()
    assert machine.corral.stop() == 0
    assert time.monotonic() - began < 3
    assert not is_running(int(machine.questions()[0][0]))
