from __future__ import annotations

import math

import pytest

from corral import errors
from corral.drivers import clock
from corral.fleet.abandoned import Abandoned
from corral.fleet.lease import EngineLost, Lease
from corral.fleet.managed import ManagedModel, failure, queue_timeout, shutting_down, status
from corral.fleet.watchman import Watchman
from corral.formats.status import ModelState, model_entry
from corral.policy.lifecycle import Deaths
from corral.policy.scheduler import Scheduler, Terms, Ticket, Wish
from tests.fleet.herd import FakeEngine, FakeMemory
from tests.fleet.test_lease import FakeDoor

MIB = 1 << 20


def test_a_model_that_is_off_says_nothing_more() -> None:
    assert model_entry(status(ManagedModel("a"), 0)) == {"status": "off"}


def test_a_model_that_runs_says_where_and_how_much_it_takes() -> None:
    model = ManagedModel("a", ModelState.READY, engine=FakeEngine("a", 8085))
    assert model_entry(status(model, 4096 * MIB)) == {
        "status": "ready",
        "port": 8085,
        "vram_mb": 4096,
        "pid": FakeEngine("a", 8085).pid,
    }


@pytest.mark.parametrize("state", [ModelState.BACKOFF, ModelState.FAILED])
def test_a_model_in_trouble_says_why(state: ModelState) -> None:
    model = ManagedModel("a", state, last_words="exit code 1 | no such tensor")
    assert model_entry(status(model, 0)) == {"status": state.value, "detail": "exit code 1 | no such tensor"}


def test_a_failure_that_may_pass_says_when_to_come_back() -> None:
    model = ManagedModel(
        "a", ModelState.BACKOFF, retry_at=clock.monotonic() + 2.0, last_words="no such tensor"
    )
    error = failure(model)
    assert "'a' could not be loaded. Its last words: no such tensor" in error.message
    assert error.retry_after_s == pytest.approx(2.0, abs=0.5)


def test_a_failure_for_good_says_so() -> None:
    model = ManagedModel("a", ModelState.FAILED, deaths=Deaths(5), last_words="no such tensor")
    error = failure(model)
    assert "died 5 times in a row and was given up" in error.message
    assert (error.code, error.should_retry, error.retry_after_s) == ("model_failed", False, None)


def test_a_spell_counts_only_while_it_was_ready_and_the_longest_is_kept() -> None:
    model = ManagedModel("a")
    model.spell_is_over(100.0)
    assert model.good_spell_s == 0.0
    for ready_at, over_at in ((10.0, 80.0), (90.0, 95.0)):
        model.ready_at = ready_at
        model.spell_is_over(over_at)
    assert (model.good_spell_s, model.ready_at) == (70.0, math.inf)


def test_who_waited_in_vain_is_told_for_how_long_and_with_how_many() -> None:
    error = queue_timeout(Ticket(Wish("a", "id"), 10.0, 40.0), now=40.2, others=3)
    assert isinstance(error, errors.QueueTimeout)
    assert "No slot of 'a' came free within 30 s, and 3 more requests wait" in error.message


def test_a_stop_is_announced_as_something_that_passes() -> None:
    assert shutting_down().retry_after_s == 5


def test_a_granted_lease_learns_where_its_slot_is_or_that_there_is_none_any_more() -> None:
    engine, model = FakeEngine("a", 8085), ManagedModel("a")
    lease = Lease(FakeDoor(), Ticket(Wish("a", "id"), 10.0, 40.0))
    with pytest.raises(EngineLost, match="'a' went away in the moment it was needed") as lost:
        model.hand_over(lease)
    assert not lost.value.was_there
    model.engine, model.watchman = engine, Watchman("a", engine, lambda: 0)
    model.hand_over(lease)
    assert (lease.address, lease.engine) == (engine.address, engine)
    assert lease.on_silence == model.watchman.suspect


def test_without_its_engine_a_model_has_nothing_left_but_what_is_to_be_let_go() -> None:
    engine = FakeEngine("a", 8085)
    abandoned = Abandoned(
        "a", engine, Scheduler({}, 1, FakeMemory(), Terms(30.0, 20.0, 300.0), 0.0), print, 120.0
    )
    model = ManagedModel("a", engine=engine, abandoned=abandoned)
    assert model.lose_engine() is abandoned
    assert (model.engine, model.watchman, model.abandoned) == (None, None, None)
    assert model.lose_engine() is None
