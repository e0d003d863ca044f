"""Before the gate is built: what is answered at once, and what waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from corral.formats.status import Phase
from corral.handlers.routes import Routes
from corral.handlers.vestibule import Vestibule
from tests.handlers.gatehouse import CHAT, Gatehouse, request
from tests.in_a_loop import in_a_loop, turns
from tests.waiting import eventually

ORIGIN = "https://chat.example"


@asynccontextmanager
async def vestibule_of(house: Gatehouse) -> AsyncIterator[Vestibule]:
    house.phase = Phase.STARTING
    house.environment = {"HEALTH_CHECK_PATH": "/probe", "CORS_ORIGINS": ORIGIN}
    async with house.open():
        vestibule = Vestibule(house.gate.settings.server, house.status, house.gate.recorder)
        house.server.handler = vestibule.handle
        yield vestibule


@in_a_loop
async def test_probes_learn_at_once_that_it_starts(house: Gatehouse) -> None:
    async with vestibule_of(house):
        paths = ("/ping", "/probe", "/ready", "/readyz", "/live", "/healthz")
        codes = [(await house.ask(path, key=None)).status for path in paths]
        assert codes == [204, 204, 503, 503, 200, 200]
        assert (await house.ask("/live", method="HEAD", key=None)).body == b""
        await eventually(lambda: len(house.access_log.lines) == 7, "they are in the access log")


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/v1/models", "GET", 200), ("/nowhere", "GET", 404), ("/ping", "POST", 405), ("/", "GET", 200)],
)
@in_a_loop
async def test_whoever_else_comes_is_answered_by_the_gate(
    house: Gatehouse, path: str, method: str, status: int
) -> None:
    async with vestibule_of(house) as vestibule:
        asked = asyncio.ensure_future(house.ask(path, method=method))
        await eventually(lambda: house.server.busy, "it has come")
        await turns()
        assert not asked.done()
        vestibule.open(Routes(house.gate).handle)
        assert (await asked).status == status


@in_a_loop
async def test_one_who_leaves_while_he_waits_takes_nobody_along(house: Gatehouse) -> None:
    async with vestibule_of(house) as vestibule:
        leaving = await house.connect()
        leaving.send(request("/v1/models"))
        await eventually(lambda: house.server.busy, "he has come")
        asked = asyncio.ensure_future(house.ask("/v1/models"))
        await eventually(lambda: house.server.connections == 2, "so has another")
        leaving.close()
        await eventually(lambda: house.server.connections == 1, "he has left")
        vestibule.open(Routes(house.gate).handle)
        assert (await asked).status == 200
        lines = await house.logged(2)
    assert [(line[2], line[3], line[-1]) for line in lines] == [
        ("GET /v1/models", "499", "client_gone"),
        ("GET /v1/models", "200", "-"),
    ]


@in_a_loop
async def test_if_there_will_be_no_gate_those_who_wait_and_those_who_come_are_told(house: Gatehouse) -> None:
    async with vestibule_of(house) as vestibule:
        asked = asyncio.ensure_future(house.ask("/v1/models", headers={"origin": ORIGIN}))
        posted = asyncio.ensure_future(house.ask("/v1/chat/completions", CHAT))
        await eventually(lambda: house.server.connections == 2 and house.server.busy, "they have come")
        await turns()
        assert vestibule.shut()
        for answer in (await asked, await posted, await house.ask("/v1/models")):
            assert (answer.status, answer.error["code"]) == (503, "shutting_down")
            assert answer.header("retry-after") == "5"
            assert answer.header("x-request-id")
        assert (await asked).header("access-control-allow-origin") == ORIGIN
        assert (await house.ask("/live", key=None)).status == 200
        lines = await house.logged(4)
    assert [(line[3], line[-1]) for line in lines] == [("503", "shutting_down")] * 3 + [("200", "-")]


@in_a_loop
async def test_a_gate_that_has_been_opened_is_not_shut(house: Gatehouse) -> None:
    async with vestibule_of(house) as vestibule:
        vestibule.open(Routes(house.gate).handle)
        assert not vestibule.shut()
        assert (await house.ask("/v1/models")).status == 200
