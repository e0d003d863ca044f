"""What is loaded at the start: as far as there is room, and when that is settled."""

from __future__ import annotations

import pytest

from corral.fleet.managed import ManagedModel
from corral.fleet.preloading import Preloading
from corral.formats.status import ModelState


class Start:
    """Models whose loads go as the test says: True it loads, False there is no room, None not now."""

    def __init__(self, *names: str) -> None:
        self.models = {name: ManagedModel(name) for name in names}
        self.says: dict[str, bool | None] = {}
        self.tried: list[str] = []
        self.preloading = Preloading(self.models, self._load_if_room)

    def _load_if_room(self, name: str) -> bool | None:
        self.tried.append(name)
        return self.says.get(name, True)


def test_without_names_everything_is_settled() -> None:
    start = Start("a")
    assert start.preloading.settled
    start.preloading.begin(())
    assert (start.preloading.settled, start.tried) == (True, [])


def test_all_that_are_named_are_loaded_in_their_order_and_once() -> None:
    start = Start("a", "b", "c")
    start.preloading.begin(("b", "a"))
    start.preloading.go_on()
    assert start.tried == ["b", "a"]
    assert not start.preloading.settled
    for name in "ab":
        start.models[name].settled = True  # it has come up
    assert start.preloading.settled


def test_one_without_room_is_settled_and_said(caplog: pytest.LogCaptureFixture) -> None:
    start = Start("a", "b")
    start.says["a"] = False
    start.preloading.begin(("a", "b"))
    assert start.tried == ["a", "b"]
    assert start.models["a"].settled
    assert "a is not preloaded: there is no room for it beside the others" in caplog.text


def test_one_for_which_there_may_be_room_in_a_moment_is_tried_again() -> None:
    start = Start("a", "b")
    start.says["a"] = None
    start.preloading.begin(("a", "b"))
    start.preloading.go_on()
    assert start.tried == ["a", "b", "a"]
    assert not start.models["a"].settled
    start.says["a"] = True
    start.preloading.go_on()
    start.preloading.go_on()
    assert start.tried == ["a", "b", "a", "a"]


@pytest.mark.parametrize("state", [ModelState.LOADING, ModelState.READY])
def test_one_that_is_wanted_already_is_not_loaded_twice(state: ModelState) -> None:
    start = Start("a")
    start.models["a"].state = state
    start.preloading.begin(("a",))
    assert start.tried == []
    assert start.preloading.settled is False


def test_one_that_has_shown_that_it_will_not_come_up_is_not_tried_again() -> None:
    start = Start("a")
    start.says["a"] = None
    start.preloading.begin(("a",))
    start.models["a"].settled = True
    start.preloading.go_on()
    assert start.tried == ["a"]
    assert start.preloading.settled
