"""GPUs that others use, that hide their processes or can't be read, and models that take more than was said."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

import pytest

from tests.end_to_end.conftest import StartMachine
from tests.end_to_end.gpus import ROOM_FOR_ONE_MIB, ROOM_FOR_TWO_MIB, TEXT, takes
from tests.end_to_end.talk import CHAT, chat, content, metric, wait_for_queue

TAKEN_MIB = 790


def test_when_others_take_the_memory_idle_models_go_and_nothing_comes(start_machine: StartMachine) -> None:
    machine = start_machine(
        {"GPU": ROOM_FOR_TWO_MIB}, dict.fromkeys("abc", takes(TAKEN_MIB)), gpu={"cpu_fallback": False}
    )
    machine.chat("a")
    machine.chat("b")
    machine.world.gpu("GPU", ROOM_FOR_TWO_MIB, foreign_mib=1000)
    machine.wait_for("one has gone", lambda: machine.states("a") == ["off"])
    assert machine.states("b") == ["ready"], "one was enough"
    assert metric(machine.corral, "router_model_evictions_total", reason="foreign") == 1
    machine.world.gpu("GPU", ROOM_FOR_TWO_MIB, foreign_mib=1900)
    machine.wait_for("the other has gone", lambda: machine.states("b") == ["off"])
    status, code, message = machine.refusal("c")
    assert (status, code, machine.starts("c")) == (503, "insufficient_vram", 0)
    assert "used by other programs" in message
    machine.world.gpu("GPU", ROOM_FOR_TWO_MIB)
    machine.chat("c")


@pytest.mark.parametrize("driver", ["hidden", "no-sizes"])
def test_where_processes_are_hidden_models_load_one_by_one_and_are_measured_by_the_difference(
    start_machine: StartMachine, driver: str
) -> None:
    machine = start_machine(
        {"GPU": 3000},
        {"a": takes(750, load_s=0.3), "b": takes(800, load_s=0.3), "c": takes(850, load_s=0.3)},
        driver=(driver,),
        system={"preload_models": ["a", "b"]},
    )
    machine.chat("c")
    machine.wait_for("all are loaded", lambda: machine.states("a", "b", "c") == ["ready"] * 3)
    sizes = {"a": 750, "b": 800, "c": 850}
    machine.wait_for("all are measured", lambda: {name: machine.vram_mib(name) for name in sizes} == sizes)
    began = sorted(event["time"] for name in sizes for event in machine.events("start", name))
    assert all(later - earlier >= 0.3 for earlier, later in zip(began, began[1:], strict=False))


def test_a_driver_that_fails_stops_all_loads_and_no_model_until_it_is_back(
    start_machine: StartMachine,
) -> None:
    machine = start_machine({"GPU": ROOM_FOR_TWO_MIB}, {"a": takes(TAKEN_MIB), "b": takes(TAKEN_MIB)})
    with ThreadPoolExecutor(1) as clients:
        machine.world.options("broken")
        answer = clients.submit(machine.chat, "a")
        wait_for_queue(machine.corral, 1, "a")
        machine.wait_for("it is said", lambda: "the GPU driver does not answer" in machine.corral.log_text)
        assert machine.starts("a") == 0
        machine.world.options()
        answer.result()
        assert machine.gpus_of("a") == "GPU"
        machine.world.options("broken")
        answer = clients.submit(machine.chat, "b")
        wait_for_queue(machine.corral, 1, "b")
        machine.chat("a")
        assert machine.starts("b") == 0
        machine.world.options()
        answer.result()
    assert machine.gpus_of("b") == "GPU"
    assert machine.corral.log_text.count("does not answer") == 2


def test_a_driver_that_fails_at_the_very_start_is_waited_for(start_machine: StartMachine) -> None:
    machine = start_machine({"GPU": ROOM_FOR_TWO_MIB}, {"a": takes(TAKEN_MIB)}, driver=("unreadable",))
    machine.world.options()
    machine.chat("a")
    assert machine.gpus_of("a") == "GPU"


# Out of memory -----------------------------------------------------------------------------------


def test_a_model_that_takes_more_than_was_said_gets_the_gpu_to_itself(start_machine: StartMachine) -> None:
    machine = start_machine({"GPU": 2100}, {"a": takes(TAKEN_MIB), "b": takes(1400)})
    machine.chat("a")
    machine.chat("b")
    assert machine.states("a", "b") == ["off", "ready"]
    assert len(machine.events("out_of_memory", "b")) == 1
    assert machine.starts("b") == 2
    machine.wait_for("it is measured", lambda: machine.vram_mib("b") == 1400)
    assert "ran out of memory; more is reserved" in machine.corral.log_text


def test_a_model_that_never_fits_is_tried_twice_and_then_fails_in_its_own_words(
    start_machine: StartMachine,
) -> None:
    machine = start_machine({"GPU": ROOM_FOR_TWO_MIB}, {"a": takes(9000)})
    status, code, message = machine.refusal("a")
    assert (status, code) == (503, "model_failed")
    assert "cudaMalloc failed: out of memory" in message
    assert machine.starts("a") == 2
    assert machine.gpu_mib("reserved", "GPU") == 0


def test_more_is_reserved_after_each_death_for_want_of_memory(start_machine: StartMachine) -> None:
    machine = start_machine({"GPU": 4000}, {"a": takes(TAKEN_MIB, out_of_memory=True, faulty_starts=1)})
    machine.chat("a")
    log = machine.corral.log_text
    print(log)


# What is learnt ----------------------------------------------------------------------------------


def test_what_a_model_has_taken_is_known_after_a_restart(start_machine: StartMachine) -> None:
    machine = start_machine({"GPU": 1500}, {"a": takes(600), "b": takes(600)})
    for model in "ab":
        machine.chat(model)
        machine.wait_for("it is measured", lambda: machine.vram_mib(model) == 600)  # noqa: B023
    # Neither would have been loaded beside the other by prediction: it takes two learnt sizes.
    assert machine.states("a", "b") == ["off", "ready"]
    machine.corral.restart()
    machine.chat("a")
    machine.chat("b")
    assert machine.states("a", "b") == ["ready", "ready"]


# All at once -------------------------------------------------------------------------------------


def test_whatever_is_asked_for_no_gpu_is_ever_promised_twice(start_machine: StartMachine) -> None:
    sizes = {"a": 600, "b": 700, "c": 780, "d": 800, "e": 1000}
    machine = start_machine(
        {"GPU-a": ROOM_FOR_TWO_MIB, "GPU-b": ROOM_FOR_ONE_MIB},
        {name: takes(mib, load_s=0.05) for name, mib in sizes.items()},
        driver=("late=150",),
    )
    with ThreadPoolExecutor(8) as clients:
        asked = islice(cycle("abacedbdce"), 60)
        answers = list(clients.map(lambda model: machine.corral.ask(CHAT, chat(model)), asked))
    assert {content(answer) for answer in answers} == {TEXT}
    assert [machine.events("out_of_memory", name) for name in sizes] == [[]] * len(sizes)
