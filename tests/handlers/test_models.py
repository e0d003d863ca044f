"""The list of models and each of them: for whom, in which state, and nothing is loaded by looking."""

from __future__ import annotations

import pytest

from tests.handlers.gatehouse import KEY, Gatehouse
from tests.in_a_loop import in_a_loop
from tests.models import a_model


def furnish(house: Gatehouse) -> None:
    house.models = [
        a_model("demo", aliases=("gpt-4o-mini",), modified_at=1_700_000_000),
        a_model("org/phi:q8", embedding=True),
    ]


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
@in_a_loop
async def test_the_list_names_every_model_with_its_state_and_loads_none(house: Gatehouse, path: str) -> None:
    furnish(house)
    async with house.open():
        listed = (await house.ask(path)).json()
        assert not house.engines.started
        await house.ask("/v1/chat/completions", {"model": "demo"})
        states = [model["status"] for model in (await house.ask(path)).json()["data"]]
    assert listed["object"] == "list"
    assert listed["data"][0] == {
        "id": "demo",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "corral",
        "n_ctx": 4096,
        "status": "off",
        "aliases": ["gpt-4o-mini"],
        "embedding": False,
    }
    assert [model["id"] for model in listed["data"]] == ["demo", "org/phi:q8"]
    assert states == ["ready", "off"]


@in_a_loop
async def test_a_key_sees_the_models_that_it_may_use_and_not_even_the_default_otherwise(
    house: Gatehouse,
) -> None:
    furnish(house)
    house.config = {
        "default_model": "demo",
        "models": {model.name: {"model_path": "x.gguf"} for model in house.models},
    }
    house.keys += "bob:sk-bob-0123456789:models=org/*\n"
    async with house.open():
        hers = (await house.ask("/v1/models")).json()
        his = (await house.ask("/v1/models", key="sk-bob-0123456789")).json()
    assert (len(hers["data"]), hers["default_model"]) == (2, "demo")
    assert ([model["id"] for model in his["data"]], his["default_model"]) == (["org/phi:q8"], None)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/models/demo", "demo"),
        ("/v1/models/gpt-4o-mini", "demo"),
        ("/v1/models/org/phi:q8", "org/phi:q8"),
        ("/v1/models/org%2Fphi%3Aq8", "org/phi:q8"),
        ("/models/org/phi:q8", "org/phi:q8"),
    ],
)
@in_a_loop
async def test_one_model_is_shown_by_name_or_alias_percent_decoded_once(
    house: Gatehouse, path: str, name: str
) -> None:
    furnish(house)
    async with house.open():
        reply = await house.ask(path)
    assert (reply.status, reply.json()["id"]) == (200, name)


@pytest.mark.parametrize(
    "path", ["/v1/models/", "/v1/models/org%252Fphi:q8", "/v1/models/DEMO", "/v1/models/%ff"]
)
@in_a_loop
async def test_an_unknown_model_is_404_with_the_known_ones(house: Gatehouse, path: str) -> None:
    furnish(house)
    async with house.open():
        reply = await house.ask(path)
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert reply.error["message"].endswith("There is: demo, org/phi:q8.")


@in_a_loop
async def test_a_model_of_others_is_403(house: Gatehouse) -> None:
    furnish(house)
    house.keys = f"alice:{KEY}:models=org/*\n"
    async with house.open():
        reply = await house.ask("/v1/models/demo")
    assert (reply.status, reply.error["code"]) == (403, "model_not_allowed")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/demo"])
@in_a_loop
async def test_looking_needs_a_key_and_counts_as_a_request_but_not_as_traffic(
    house: Gatehouse, path: str
) -> None:
    furnish(house)
    house.keys = f"alice:{KEY}:rpm=1\n"
    async with house.open():
        assert (await house.ask(path, key=None)).status == 401
        reply = await house.ask(path)
        assert (reply.status, reply.header("x-ratelimit-remaining-requests")) == (200, "0")
        assert (await house.ask(path)).status == 429
        assert [(line[1], line[3]) for line in await house.logged(3)] == [
            ("-", "401"),
            ("alice", "200"),
            ("alice", "429"),
        ]
    assert house.counted("router_last_activity_timestamp_seconds") == 0
