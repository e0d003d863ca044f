from __future__ import annotations

from collections.abc import Mapping

import pytest

from corral.policy.commitments import (
    GIVE_BACK_S_MAX,
    GONE_AFTER_S,
    Account,
    Commitments,
    Device,
    Measurement,
    News,
    Overcommitted,
)
from corral.policy.placement import HOST, Kind, Placement
from tests.policy.memory_machine import GIB, MIB

GPU = "GPU-a"
NOTHING_NEW = News((), ())
TOTAL = 32 * GIB  # keeps a margin of 1 GiB


def on_gpu(gibibytes: float, host: int = 0) -> Placement:
    return Placement(Kind.SINGLE, 10, (GPU,), (int(gibibytes * GIB),), host)


def on_cpu(gibibytes: int) -> Placement:
    return Placement(Kind.CPU, 0, (), (), gibibytes * GIB)


class Desk:
    """The books of a machine with one GPU, and a short way to read the devices."""

    def __init__(self) -> None:
        self.books = Commitments()
        self.now = 0.0

    def see(
        self,
        used: float,
        processes: Mapping[int, float] | None = None,
        *,
        host: float = 4,
        host_processes: Mapping[int, float] | None = None,
        wait_s: float = 1.0,
    ) -> News:
        """The GPU uses so many GiB, of which these processes have so many; None: they are hidden."""
        self.now += wait_s
        shown = None if processes is None else {pid: int(size * GIB) for pid, size in processes.items()}
        private = {pid: int(size * GIB) for pid, size in (host_processes or {}).items()}
        gpu = Device(GPU, 0, TOTAL, int(used * GIB), shown)
        return self.books.observe([Device(HOST, 0, TOTAL, int(host * GIB), private), gpu], self.now)

    def start(self, model: str, pid: int, placement: Placement) -> None:
        self.books.reserve(model, placement)
        self.books.spawned(model, pid)

    def account(self, id: str = GPU) -> Account:
        return next(account for account in self.books.accounts() if account.id == id)

    def room(self, id: str = GPU) -> float:
        return self.account(id).room_bytes / GIB

    def hoped(self) -> float:
        return self.account().hoped_bytes / GIB


@pytest.fixture
def desk() -> Desk:
    return Desk()


# The rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "margin"),
    [(24 * GIB, 768 * MIB), (80 * GIB, GIB), (512 * MIB, 16 * MIB)],
    ids=["a-card", "a-large-card", "a-small-container"],
)
def test_a_margin_is_left_alone(total: int, margin: int) -> None:
    books = Commitments()
    books.observe([Device(HOST, 0, total, 0, {})], 0.0)
    (account,) = books.accounts()
    assert account.room_bytes == total - margin


def test_what_others_use_is_not_ours_to_promise(desk: Desk) -> None:
    desk.see(5, {7: 5})
    assert desk.room() == 32 - 1 - 5
    assert desk.account().foreign_bytes == 5 * GIB


def test_a_reservation_counts_from_the_moment_it_is_made(desk: Desk) -> None:
    desk.see(5, {})
    desk.start("m", 1, on_gpu(10))
    assert desk.room() == 32 - 1 - 5 - 10
    assert desk.books.held("m") == {GPU: 10 * GIB, HOST: 0}


def test_a_loading_process_that_is_shown_is_counted_once(desk: Desk) -> None:
    desk.see(5, {})
    desk.start("m", 1, on_gpu(10))
    desk.see(5 + 6, {1: 6})
    assert desk.room() == 32 - 1 - 5 - 10


def test_a_loading_process_that_is_hidden_counts_twice_and_the_hope_says_so(desk: Desk) -> None:
    desk.see(5)
    desk.start("m", 1, on_gpu(10))
    desk.see(5 + 6)
    assert desk.room() == 32 - 1 - 5 - 6 - 10
    assert desk.hoped() == 32 - 1 - 1 - 10


def test_a_process_that_takes_more_than_it_was_promised_counts_with_what_it_takes(desk: Desk) -> None:
    desk.see(0, {})
    desk.start("m", 1, on_gpu(10))
    desk.see(12, {1: 12})
    assert desk.room() == 32 - 1 - 12


def test_foreign_growth_can_break_the_sum_and_then_there_is_less_than_no_room(desk: Desk) -> None:
    desk.see(0, {})
    desk.start("m", 1, on_gpu(20))
    desk.see(20 + 12, {1: 20})
    assert desk.room() == -1


@pytest.mark.parametrize(
    ("placement", "problem"),
    [
        (on_gpu(27), f"needs {27 * GIB} bytes on {GPU}"),
        (on_gpu(1, host=28 * GIB), f"needs {28 * GIB} bytes on {HOST}"),
        (Placement(Kind.SINGLE, 1, ("GPU-lost",), (0,), 0), "on GPU-lost"),
    ],
    ids=["no-room-on-the-gpu", "no-room-on-the-host", "a-device-that-was-not-read"],
)
def test_a_reservation_that_would_break_the_rule_is_refused(
    desk: Desk, placement: Placement, problem: str
) -> None:
    desk.see(5, {})
    with pytest.raises(Overcommitted, match=problem):
        desk.books.reserve("m", placement)
    assert "m" not in desk.books


def test_a_model_holds_memory_once(desk: Desk) -> None:
    desk.see(0, {})
    desk.start("m", 1, on_gpu(1))
    with pytest.raises(Overcommitted, match="'m' holds memory already"):
        desk.books.reserve("m", on_gpu(1))


# Measuring ----------------------------------------------------------------------------------------


def test_a_loaded_model_is_measured_and_the_rest_of_its_reservation_comes_free(desk: Desk) -> None:
    desk.see(5, {})
    desk.start("m", 1, on_gpu(10))
    desk.books.loaded("m")
    assert desk.books.unsettled == ("m",)
    assert desk.see(5 + 8, {1: 8}) == News((Measurement("m", {GPU: 8 * GIB}),), ())
    assert desk.room() == 32 - 1 - 5 - 8
    assert not desk.books.unsettled
    assert desk.see(5 + 8, {1: 8}) == NOTHING_NEW


def test_the_most_that_a_loaded_model_ever_took_is_kept_for_it(desk: Desk) -> None:
    desk.see(0, {})
    desk.start("m", 1, on_gpu(10))
    desk.books.loaded("m")
    desk.see(8, {1: 8})
    desk.see(9, {1: 9})
    desk.see(6, {1: 6})
    assert desk.room() == 32 - 1 - 9


def test_a_list_that_misses_a_model_for_a_moment_changes_nothing(desk: Desk) -> None:
    desk.see(0, {})
    desk.start("m", 1, on_gpu(10))
    desk.books.loaded("m")
    desk.see(8, {1: 8})
    desk.see(8, {})
    assert desk.room() == 32 - 1 - 8


def test_where_processes_are_hidden_a_model_is_what_the_device_gained(desk: Desk) -> None:
    desk.see(5)
    desk.start("m", 1, on_gpu(10))
    desk.see(5 + 4)
    desk.books.loaded("m")
    assert desk.see(5 + 8) == News((Measurement("m", {GPU: 8 * GIB}),), ())
    assert desk.room() == 32 - 1 - 5 - 8


def test_a_gain_too_small_to_be_the_model_teaches_nothing(desk: Desk) -> None:
    desk.see(9)
    desk.start("m", 1, on_gpu(10))
    desk.books.loaded("m")
    assert desk.see(9 + 10 - 6) == NOTHING_NEW
    assert desk.books.unsettled == ()
    assert desk.books.held("m")[GPU] == 10 * GIB
    assert desk.room() == 32 - 1 - 3 - 10


def test_where_processes_are_hidden_nothing_begins_beside_a_load(desk: Desk) -> None:
    desk.see(0)
    desk.start("m", 1, on_gpu(10))
    desk.see(4)
    assert desk.account().closed
    with pytest.raises(Overcommitted):
        desk.books.reserve("n", on_gpu(1))
    desk.books.loaded("m")
    desk.see(10)
    assert not desk.account().closed


def test_where_processes_are_hidden_nothing_begins_or_is_measured_beside_a_release(desk: Desk) -> None:
    desk.see(0)
    desk.start("old", 1, on_gpu(10))
    desk.books.loaded("old")
    desk.see(10)
    desk.start("new", 2, on_gpu(8))
    desk.books.stopping("old")
    desk.books.reaped("old", desk.now)
    desk.books.loaded("new")
    assert desk.see(18) == NOTHING_NEW
    assert desk.account().closed
    assert desk.see(8) == NOTHING_NEW  # was it the old one's memory that came back, or part of the new one's?
    news = desk.see(8, wait_s=GIVE_BACK_S_MAX)
    assert news == News((Measurement("new", {GPU: 8 * GIB}),), ("old",))


@pytest.mark.parametrize("processes", [{}, {4711: 3}], ids=["nobody", "pids-of-another-namespace"])
def test_a_list_that_lacks_a_loaded_model_is_believed_no_more(
    desk: Desk, processes: Mapping[int, float]
) -> None:
    desk.see(3, processes)
    desk.start("m", 1, on_gpu(10))
    desk.books.loaded("m")
    assert desk.see(3 + 9, processes) == News((Measurement("m", {GPU: 9 * GIB}),), ())
    desk.start("n", 2, on_gpu(10))
    assert desk.account().closed


def test_of_two_that_loaded_at_once_unseen_none_is_given_what_may_be_the_others(desk: Desk) -> None:
    desk.see(0, {})
    desk.start("m", 1, on_gpu(10))
    desk.start("n", 2, on_gpu(10))
    desk.books.loaded("m")
    assert desk.see(10 + 5, {}).measured == (Measurement("m", {GPU: 10 * GIB}),)
    desk.books.loaded("n")
    desk.see(20, {})
    assert desk.room() == 32 - 1 - 20


def test_a_model_on_two_gpus_is_measured_when_both_can_be_read() -> None:
    books = Commitments()
    gpus = [Device(f"GPU-{index}", index, TOTAL, 0, {}) for index in (0, 1)]
    host = Device(HOST, 0, TOTAL, 0, {})
    books.observe([*gpus, host], 0.0)
    books.reserve("m", Placement(Kind.SPREAD, 10, ("GPU-0", "GPU-1"), (4 * GIB, 2 * GIB), 0, (2, 1)))
    books.spawned("m", 1)
    books.loaded("m")
    first = Device("GPU-0", 0, TOTAL, 3 * GIB, {1: 3 * GIB})
    second = Device("GPU-1", 1, TOTAL, GIB, {1: GIB})
    assert books.observe([first, host], 1.0) == NOTHING_NEW
    measured = Measurement("m", {"GPU-0": 3 * GIB, "GPU-1": GIB})
    assert books.observe([second, first, host], 2.0) == News((measured,), ())
    assert [account.id for account in books.accounts()] == ["GPU-0", "GPU-1", HOST]


def test_on_the_host_the_reservation_stays_because_mapped_weights_are_not_counted_as_used(
    desk: Desk,
) -> None:
    desk.see(0, {}, host=4)
    desk.start("m", 1, on_cpu(10))
    desk.books.loaded("m")
    assert desk.see(0, {}, host=4 + 2, host_processes={1: 2}) == News((Measurement("m", {}),), ())
    assert desk.room(HOST) == 32 - 1 - 4 - 10


# Leaving ------------------------------------------------------------------------------------------


def loaded(desk: Desk, model: str, pid: int, size: int) -> None:
    """On a GPU that shows processes, of which this is the only one."""
    desk.see(0, {})
    desk.start(model, pid, on_gpu(size))
    desk.books.loaded(model)
    desk.see(size, {pid: size})


def test_a_model_that_stops_keeps_its_memory_until_the_driver_has_given_it_back(desk: Desk) -> None:
    loaded(desk, "m", 1, 10)
    desk.books.stopping("m")
    assert desk.books.leaving == ("m",)
    assert desk.see(10, {1: 10}) == NOTHING_NEW
    desk.books.reaped("m", desk.now)
    assert desk.see(10, {}, wait_s=0.5) == NOTHING_NEW
    assert desk.room() == 32 - 1 - 10
    assert desk.see(0.5, {}, wait_s=0.5) == News((), ("m",))
    assert "m" not in desk.books
    assert desk.room() == 32 - 1 - 0.5


def test_a_release_that_cannot_be_seen_is_confirmed_by_time_and_the_reading_is_the_truth(
    desk: Desk,
) -> None:
    loaded(desk, "m", 1, 10)
    desk.books.reaped("m", desk.now)
    assert desk.see(10, {}, wait_s=GIVE_BACK_S_MAX - 0.1) == NOTHING_NEW
    assert desk.see(10, {}, wait_s=0.1) == News((), ("m",))
    assert desk.room() == 32 - 1 - 10


def test_a_reading_from_before_its_end_releases_nobody(desk: Desk) -> None:
    desk.see(0, {})
    desk.start("m", 1, on_cpu(10))
    desk.books.reaped("m", desk.now + 1.0)
    assert desk.see(0, {}, wait_s=1.0) == NOTHING_NEW
    assert desk.see(0, {}, wait_s=0.1) == News((), ("m",))


def test_of_two_that_have_died_both_are_released_when_both_have_given_back(desk: Desk) -> None:
    loaded(desk, "m", 1, 10)
    desk.start("n", 2, on_gpu(4))
    desk.books.loaded("n")
    desk.see(14, {1: 10, 2: 4})
    for model in ("m", "n"):
        desk.books.stopping(model)
        desk.books.reaped(model, desk.now)
    assert desk.see(4, {}) == NOTHING_NEW
    assert desk.see(0, {}) == News((), ("m", "n"))


def test_one_that_died_while_it_loaded_is_released_when_the_device_is_as_before(desk: Desk) -> None:
    desk.see(3)
    desk.start("m", 1, on_gpu(10))
    desk.see(3 + 6)
    desk.books.reaped("m", desk.now)
    assert desk.see(3 + 6) == NOTHING_NEW
    assert desk.see(3) == News((), ("m",))


def test_what_a_dead_process_had_taken_unseen_is_hoped_for(desk: Desk) -> None:
    desk.see(0, {})
    desk.start("m", 1, on_gpu(10))
    desk.see(2, {1: 2})
    desk.books.reaped("m", desk.now)
    desk.see(9, {})
    assert desk.room() == 32 - 1 - 10 - 7
    assert desk.hoped() == 32 - 1 - 10


def test_a_process_that_cannot_be_reaped_keeps_its_memory_and_nobody_waits_for_it(desk: Desk) -> None:
    loaded(desk, "m", 1, 10)
    desk.books.stopping("m")
    desk.books.unreapable("m")
    assert desk.see(10, {1: 10}, wait_s=1000.0) == NOTHING_NEW
    assert desk.books.leaving == ()
    assert desk.room() == 32 - 1 - 10
    desk.books.reaped("m", desk.now)
    assert desk.see(0, {}) == News((), ("m",))


def test_an_unreapable_one_that_is_hidden_counts_once_and_closes_nothing(desk: Desk) -> None:
    desk.see(3)
    desk.start("m", 1, on_gpu(10))
    desk.see(3 + 6)
    desk.books.stopping("m")
    desk.books.unreapable("m")
    assert not desk.account().closed
    assert desk.room() == 32 - 1 - 3 - 10


def test_a_process_that_was_never_started_leaves_nothing_behind(desk: Desk) -> None:
    desk.see(0, {})
    desk.books.reserve("m", on_gpu(10))
    desk.books.released("m")
    assert desk.books.held("m") == {}
    assert desk.room() == 32 - 1


def test_a_word_that_it_is_ready_comes_too_late_for_a_model_that_was_told_to_stop(desk: Desk) -> None:
    desk.see(0, {})
    desk.start("m", 1, on_gpu(10))
    desk.books.stopping("m")
    desk.books.loaded("m")
    assert desk.books.leaving == ("m",)


def test_a_dead_process_pid_may_be_anothers(desk: Desk) -> None:
    loaded(desk, "m", 1, 10)
    desk.books.reaped("m", desk.now)
    desk.see(12, {1: 12})
    assert desk.books.held("m")[GPU] == 10 * GIB


# Devices that come and go -------------------------------------------------------------------------


def test_a_device_that_cannot_be_read_has_no_account_and_is_gone_after_a_while(desk: Desk) -> None:
    desk.see(0, {})
    host = Device(HOST, 0, TOTAL, 0, {})
    desk.books.observe([host], desk.now + 1.0)
    assert [account.id for account in desk.books.accounts()] == [HOST]
    assert desk.books.unreadable == (GPU,)
    desk.books.observe([host], desk.now + GONE_AFTER_S)
    assert not desk.books.unreadable
    assert desk.books.has_gpus


def test_a_machine_without_gpus_has_none() -> None:
    books = Commitments()
    books.observe([Device(HOST, 0, TOTAL, 0, {})], 0.0)
    assert not books.has_gpus


def test_what_was_last_seen_of_a_model_is_told_hidden_or_not(desk: Desk) -> None:
    desk.see(5)
    desk.start("m", 1, on_gpu(10))
    desk.see(5 + 4, host_processes={1: 1})
    assert desk.books.observed("m") == {GPU: 4 * GIB, HOST: GIB}
