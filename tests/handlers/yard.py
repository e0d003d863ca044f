"""A gatehouse behind which nothing happens by itself: the test says who is ready, dies or is gone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from corral.drivers import clock
from corral.formats.status import StatusDocument
from corral.policy.scheduler import Wish
from tests.drivers.serving import RawClient
from tests.fleet.herd import Client, FakeEngine
from tests.handlers.gatehouse import KEYS, Gatehouse, request
from tests.in_a_loop import in_a_loop, turns
from tests.models import a_model
from tests.waiting import eventually


class Yard(Gatehouse):
    """Its models have one slot each, and none is loaded."""

    def __init__(self, root: Path, models: tuple[str, ...], keys: str) -> None:
        super().__init__(root)
        self.models = [a_model(name) for name in models]
        self.keys = KEYS + keys
        self.slots = 1
        self._users: list[Client] = []

    def status(self) -> StatusDocument:
        return dataclasses.replace(super().status(), preload_settled=self.fleet.preload_settled)

    # Over a socket -----------------------------------------------------------------------------

    async def send(self, path: str, body: object = None, **options: Any) -> RawClient:
        """A request on a connection of its own, whose answer may take its time."""
        client = await self.connect()
        client.send(request(path, body, **options))
        return client

    # Behind the gate ---------------------------------------------------------------------------

    def use(self, model: str) -> Client:
        """Somebody else's request for a model."""
        user = Client(self.fleet, Wish(model, "somebody"))
        self._users.append(user)
        return user

    async def ready(self, model: str) -> FakeEngine:
        """Have the model loaded by a request that is then over; its engine."""
        user = self.use(model)
        self.engines.of(model).answers()
        await turns()
        user.finishes()
        return self.engines.of(model)

    def pass_time(self, seconds: float) -> None:
        self.fleet.tick(clock.monotonic() + seconds)

    def states(self) -> dict[str, str]:
        return {model.name: self.fleet.state(model.name).value for model in self.models}

    async def until(self, **states: str) -> None:
        """Until a request that has been sent has had this effect."""
        await eventually(lambda: states.items() <= self.states().items(), f"{states}")

    def everybody_goes(self) -> None:
        for user in self._users:
            user.goes()


Scenario = Callable[..., Coroutine[Any, Any, None]]


def with_yard(*models: str, keys: str = "") -> Callable[[Scenario], Callable[..., None]]:
    """A test whose first argument is an open yard; the others are pytest's."""

    def decorate(scenario: Scenario) -> Callable[..., None]:
        @in_a_loop
        @functools.wraps(scenario)
        async def test(yard: Callable[..., Yard], **given: Any) -> None:
            opened = yard(models or ("a", "b", "c"), keys)
            async with opened.open():
                opened.engines.loads_at_once = False
                await scenario(opened, **given)
                opened.everybody_goes()

        return test

    return decorate
