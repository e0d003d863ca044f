"""GPUs that others use, that hide processes or can't be read, and models that take more than was said."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice, pairwise

import pytest

from tests.end_to_end.conftest import StartMachine
from tests.end_to_end.gpus import RESERVED_MIB, ROOM_FOR_ONE_MIB, ROOM_FOR_TWO_MIB, TEXT, takes
from tests.end_to_end.talk import CHAT, chat, content, metric, wait_for_queue

TAKEN_MIB = 790
LOAD_S = 0.3


def test_when_others_take_the_memory_idle_models_go_and_nothing_comes(start_machine: StartMachine) -> None:
    machine = start_machine(
        {"GPU": ROOM_FOR_TWO_MIB}, dict.fromkeys("abc", takes(TAKEN_MIB)), gpu={"cpu_fallback": False}
    )
    for model in "ab":
        machine.chat(model)
    machine.wait_until_measured(a=TAKEN_MIB, b=TAKEN_MIB)
    machine.world.gpu("GPU", ROOM_FOR_TWO_MIB, foreign_mib=400)
    machine.wait_for("one has gone", lambda: machine.states("a", "b") == ["off", "ready"])
    machine.wait_for("its memory is back", lambda: machine.gpu_mib("used", "GPU") == TAKEN_MIB + 400)
    machine.world.gpu("GPU", ROOM_FOR_TWO_MIB, foreign_mib=1190)
    machine.wait_for("the other has gone", lambda: machine.states("b") == ["off"])
    assert metric(machine.corral, "router_model_evictions_total", reason="foreign") == 2
    machine.world.gpu("GPU", ROOM_FOR_TWO_MIB, foreign_mib=1900)
    machine.wait_for("it is seen", lambda: machine.gpu_mib("used", "GPU") == 1900)
    status, code, message = machine.refusal("c")
    assert (status, code, machine.starts("c")) == (503, "insufficient_vram", 0)
    assert "GPU 0 37.5 MiB of 2.0 GiB, 1.9 GiB used by other programs" in message
    machine.world.gpu("GPU", ROOM_FOR_TWO_MIB)
    machine.chat("c")


@pytest.mark.parametrize("driver", ["hidden", "no-sizes"])
def test_where_processes_are_hidden_models_load_one_by_one_and_the_difference_is_theirs(
    start_machine: StartMachine, driver: str
) -> None:
    sizes_mib = {"a": 750, "b": 800, "c": 850}
    machine = start_machine(
        {"GPU": 3000},
        {name: takes(mib, load_s=LOAD_S) for name, mib in sizes_mib.items()},
        driver=(driver,),
        system={"preload_models": ["a", "b"]},
    )
    machine.chat("c")
    machine.wait_until_measured(**sizes_mib)
    began = sorted(event["time"] for name in sizes_mib for event in machine.events("start", name))
    assert [later - earlier >= LOAD_S for earlier, later in pairwise(began)] == [True, True]


def test_where_processes_are_shown_models_load_side_by_side(start_machine: StartMachine) -> None:
    machine = start_machine({"GPU": 3000}, dict.fromkeys("abc", takes(TAKEN_MIB, load_s=2 * LOAD_S)))
    machine.chat("a")
    with ThreadPoolExecutor(2) as clients:
        list(clients.map(machine.chat, "bc"))
    first, second = (machine.events("start", name)[0]["time"] for name in "bc")
    assert abs(first - second) < LOAD_S


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
    machine.wait_for("its memory is back", lambda: machine.gpu_mib("reserved", "GPU") == 0)


def test_after_a_death_for_want_of_memory_more_is_reserved(start_machine: StartMachine) -> None:
    faults = {"out_of_memory": True, "faulty_starts": 1, "load_s": LOAD_S}
    machine = start_machine({"GPU": 4000}, {"a": takes(TAKEN_MIB, **faults)})
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(machine.chat, "a")
        machine.wait_for("it is tried again", lambda: machine.starts("a") == 2)
        assert machine.gpu_mib("reserved", "GPU") == round(RESERVED_MIB * 1.1 * 1.02)
        answer.result()
    machine.wait_until_measured(a=TAKEN_MIB)


# What is learnt ----------------------------------------------------------------------------------


def test_what_a_model_has_taken_is_known_after_a_restart(start_machine: StartMachine) -> None:
    machine = start_machine({"GPU": 1500}, {"a": takes(600), "b": takes(600, load_s=LOAD_S)})
    machine.chat("a")
    machine.wait_until_measured(a=600)
    machine.chat("b")
    assert machine.states("a", "b") == ["off", "ready"], "by prediction there is room for one"
    machine.wait_until_measured(b=600)
    machine.corral.restart()
    machine.chat("a")
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(machine.chat, "b")
        machine.wait_for("it loads", lambda: machine.states("b") == ["loading"])
        assert machine.vram_mib("b") == int(600 * 1.02)
        answer.result()
    assert machine.states("a", "b") == ["ready", "ready"]


# All at once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", [("late=150",), ("late=150", "hidden")], ids=" ".join)
def test_whatever_is_asked_for_no_gpu_is_ever_promised_twice(
    start_machine: StartMachine, driver: tuple[str, ...]
) -> None:
    sizes_mib = {"a": 740, "b": 760, "c": 780, "d": 800, "e": 870}
    machine = start_machine(
        {"GPU-a": ROOM_FOR_TWO_MIB, "GPU-b": ROOM_FOR_ONE_MIB},
        {name: takes(mib, load_s=0.05) for name, mib in sizes_mib.items()},
        driver=driver,
    )
    with ThreadPoolExecutor(8) as clients:
        asked = islice(cycle("abacedbdce"), 30)
        answers = list(clients.map(lambda model: machine.corral.ask(CHAT, chat(model)), asked))
    assert {content(answer) for answer in answers} == {TEXT}
    assert [machine.events("out_of_memory", name) for name in sizes_mib] == [[]] * len(sizes_mib)
