"""Loads at the start what the settings name, as far as there is room, and tells when that is settled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from corral.fleet.managed import ManagedModel
from corral.formats.status import ModelState

log = logging.getLogger("corral.fleet")


class Preloading:
    def __init__(
        self, models: Mapping[str, ManagedModel], load_if_room: Callable[[str], bool | None]
    ) -> None:
        """`load_if_room` answers whether it loads; None is "not now, but perhaps in a moment"."""
        self._models = models
        self._load_if_room = load_if_room
        self._names: tuple[str, ...] = ()
        self._still_to_come: list[str] = []

    def begin(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._still_to_come = list(names)
        self.go_on()

    def go_on(self) -> None:
        """Those for which there may be room in a moment are tried again then: some loads go one by one."""
        for name in tuple(self._still_to_come):
            model = self._models[name]
            loads: bool | None = True
            if not model.settled and model.state is ModelState.OFF:  # named once, and not wanted already
                loads = self._load_if_room(name)
            if loads is None:
                continue
            self._still_to_come.remove(name)
            if not loads:
                model.settled = True
                log.warning("%s is not preloaded: there is no room for it beside the others", name)

    @property
    def settled(self) -> bool:
        """Whether every preloaded model has come up, or shown that it won't."""
        return all(self._models[name].settled for name in self._names)
