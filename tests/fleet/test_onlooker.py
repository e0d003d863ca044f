"""Onlookers miss nothing as long as they keep up, and hold little when they don't."""

from __future__ import annotations

import pytest

from corral.drivers import tasks
from corral.fleet.onlooker import CHANGES_MAX, Change, Gallery, Onlooker
from corral.formats.status import ModelState, ModelStatus
from tests.in_a_loop import in_a_loop, turns
from tests.waiting import eventually

OFF, READY = ModelStatus(ModelState.OFF), ModelStatus(ModelState.READY, port=8085)


class Reader:
    """Waits for news once."""

    def __init__(self, onlooker: Onlooker, within_s: float | None = None) -> None:
        self.error: BaseException | None = None
        self.strand = tasks.Strand(onlooker.news(within_s), self._ended)
        self.strand.step()

    def _ended(self, error: BaseException | None) -> None:
        self.error = error

    @property
    def waits(self) -> bool:
        return not self.strand.done


@in_a_loop
async def test_changes_are_taken_once_and_in_order() -> None:
    onlooker = Onlooker()
    changes = [Change("a", OFF), Change("b", READY), Change("a", READY)]
    for change in changes:
        onlooker.tell(change)
    assert onlooker.take() == changes
    assert onlooker.take() == []


@in_a_loop
async def test_a_reader_is_woken_by_a_change_but_not_within_the_fleets_own_step() -> None:
    onlooker = Onlooker()
    reader = Reader(onlooker)
    await turns()
    assert reader.waits
    onlooker.tell(Change("a", OFF))
    onlooker.tell(Change("a", READY))
    assert reader.waits
    await turns()
    assert not reader.waits
    assert onlooker.take() == [Change("a", OFF), Change("a", READY)]


@in_a_loop
async def test_news_that_came_before_the_wait_is_not_waited_for() -> None:
    onlooker = Onlooker()
    onlooker.tell()
    assert not Reader(onlooker).waits
    assert onlooker.take() == []
    assert Reader(onlooker).waits


@in_a_loop
async def test_a_wait_has_an_end_without_any_news() -> None:
    reader = Reader(Onlooker(), within_s=0.001)
    assert reader.waits
    await eventually(lambda: not reader.waits, "the wait is over")
    assert reader.error is None


@pytest.mark.parametrize("models", [1, 3, CHANGES_MAX + 10])
@in_a_loop
async def test_who_does_not_take_holds_little_and_still_sees_how_it_ended(models: int) -> None:
    onlooker = Onlooker()
    names = [f"m{number}" for number in range(models)]
    for _ in range(5 * CHANGES_MAX // models + 2):
        for name in names:
            onlooker.tell(Change(name, OFF))
            onlooker.tell(Change(name, READY))
    changes = onlooker.take()
    assert len(changes) <= max(CHANGES_MAX, models)
    assert dict(changes) == dict.fromkeys(names, READY)


@in_a_loop
async def test_a_gallery_tells_those_who_are_in_it() -> None:
    gallery = Gallery()
    with gallery.watch() as first:
        with gallery.watch() as second:
            gallery.tell(Change("a", OFF))
        gallery.tell(Change("b", OFF))
        assert second.take() == [Change("a", OFF)]
        assert first.take() == [Change("a", OFF), Change("b", OFF)]
