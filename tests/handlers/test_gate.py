"""The questions that a request is asked: who, how often, for which model."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import pytest

from corral import errors
from corral.formats.key_file import Role
from corral.handlers.call import Call
from corral.handlers.gate import Gate
from corral.policy.authentication import Principal
from tests.handlers.gatehouse import CHAT, KEY, Gatehouse, read_reply, request
from tests.handlers.unwired import call_for
from tests.in_a_loop import in_a_loop
from tests.models import a_model
from tests.waiting import eventually


def test_a_key_makes_a_principal_whose_id_is_recorded(house: Gatehouse) -> None:
    gate = house.build()
    call, _ = call_for(request("/x"))
    assert gate.authenticate(call).key_id == "alice"
    assert call.key_id == "alice"


def test_a_wrong_key_is_nobody_and_leaves_no_name(house: Gatehouse) -> None:
    gate = house.build()
    call, _ = call_for(request("/x", key="sk-wrong-wrong-wrong"))
    with pytest.raises(errors.InvalidApiKey) as caught:
        gate.authenticate(call)
    assert call.key_id == "-"
    assert "sk-wrong" not in caught.value.message


def test_new_keys_are_in_force_with_the_next_request(house: Gatehouse) -> None:
    gate = house.build()
    call, _ = call_for(request("/x"))
    gate.keys = house.ring("bob:sk-bob-0123456789\n")
    with pytest.raises(errors.InvalidApiKey):
        gate.authenticate(call)


def known_call() -> Call:
    """A request in words that are known already, as the second one of a client is."""
    for _ in range(2):
        call, _wire = call_for(request("/v1/chat/completions", CHAT))
    assert call.exchange.head.words
    return call


def test_a_key_that_is_taken_back_is_not_recognised_any_more(house: Gatehouse) -> None:
    gate = house.build()
    assert gate.recognise(known_call()) is gate.recognise(known_call())
    gate.keys = house.ring("bob:sk-bob-0123456789\n")
    with pytest.raises(errors.InvalidApiKey):
        gate.recognise(known_call())


def test_a_key_that_expires_is_not_recognised_the_day_after(
    house: Gatehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.keys = f"alice:{KEY}:expires=2030-01-02\n"
    gate = house.build()
    monkeypatch.setattr("corral.drivers.clock.today", lambda: date(2030, 1, 2))
    for _ in range(2):
        assert gate.recognise(known_call()).principal.key_id == "alice"
    monkeypatch.setattr("corral.drivers.clock.today", lambda: date(2030, 1, 3))
    with pytest.raises(errors.InvalidApiKey, match="expired"):
        gate.recognise(known_call())


def test_a_key_in_the_query_counts_only_where_it_is_asked_for(house: Gatehouse) -> None:
    gate = house.build()
    call, _ = call_for(request(f"/x?api_key={KEY}", key=None))
    with pytest.raises(errors.InvalidApiKey):
        gate.authenticate(call)
    assert gate.authenticate(call, key_in_query=True).key_id == "alice"


@pytest.mark.parametrize(("admin", "role"), [("false", Role.USER), ("true", Role.ADMIN)])
def test_without_authentication_everybody_is_anonymous_and_limited_by_address(
    house: Gatehouse, admin: str, role: Role
) -> None:
    house.environment = {
        "AUTH_ENABLED": "false",
        "ADMIN_WITHOUT_AUTH": admin,
        "MAX_REQUESTS_PER_MINUTE": "2",
    }
    gate = house.build()
    call, _ = call_for(request("/x", key=None))
    principal = gate.authenticate(call)
    assert (principal.key_id, principal.role, principal.by_address) == ("anonymous", role, True)
    assert call.key_id == "anonymous"
    for _ in range(2):
        gate.admit(call, principal)
    with pytest.raises(errors.RateLimitExceeded):
        gate.admit(call, principal)


def test_each_admission_tells_the_client_where_it_stands(house: Gatehouse) -> None:
    house.keys = f"alice:{KEY}:rpm=2\n"
    gate = house.build()
    told = []
    for _ in range(2):
        call, _ = call_for(request("/x"))
        gate.admit(call, gate.authenticate(call))
        told.append(call.lines.split(b"\r\n")[1:-1])
    limit = b"x-ratelimit-limit-requests: 2"
    reset = b"x-ratelimit-reset-requests: 1m0s"
    assert told == [
        [limit, b"x-ratelimit-remaining-requests: 1", reset],
        [limit, b"x-ratelimit-remaining-requests: 0", reset],
    ]
    call, _ = call_for(request("/x"))
    with pytest.raises(errors.RateLimitExceeded) as caught:
        gate.admit(call, gate.authenticate(call))
    # A refusal tells it too.
    assert call.lines.split(b"\r\n")[1:3] == [limit, b"x-ratelimit-remaining-requests: 0"]
    assert caught.value.retry_after_s == pytest.approx(60.0, abs=1.0)


def test_an_unlimited_key_is_told_nothing(house: Gatehouse) -> None:
    gate = house.build()
    call, _ = call_for(request("/x"))
    gate.admit(call, gate.authenticate(call))
    assert call.lines == call.id_line


# Which model -------------------------------------------------------------------------------------

EVERYBODY = Principal("alice", Role.USER, 0)
ONLY_ORG = Principal("alice", Role.USER, 0, models=("org/*",))
NOBODY = Principal("alice", Role.USER, 0, models=("none",))


@pytest.fixture
def gate(house: Gatehouse) -> Gate:
    house.models = [a_model("demo", aliases=("gpt-4o-mini",)), a_model("org/phi")]
    return house.build()


def test_a_model_is_found_by_its_name_and_by_its_alias(gate: Gate) -> None:
    assert gate.choose_model("org/phi", EVERYBODY).name == "org/phi"
    assert gate.choose_model("gpt-4o-mini", EVERYBODY).name == "demo"


def test_a_principal_knows_of_the_models_that_it_may_use(gate: Gate) -> None:
    assert [model.name for model in gate.permitted(EVERYBODY)] == ["demo", "org/phi"]
    assert [model.name for model in gate.permitted(ONLY_ORG)] == ["org/phi"]
    assert gate.permitted(NOBODY) == []


@pytest.mark.parametrize(
    ("name", "principal", "message"),
    [
        ("x", EVERYBODY, "There is no model 'x'. There is: demo, org/phi."),
        ("DEMO", ONLY_ORG, "There is no model 'DEMO'. There is: org/phi."),
        ("x", NOBODY, "There is no model 'x'. There is: none that this key may use."),
        ("it's", NOBODY, 'There is no model "it\'s". There is: none that this key may use.'),
    ],
)
def test_an_unknown_name_is_told_the_known_ones(
    gate: Gate, name: str, principal: Principal, message: str
) -> None:
    with pytest.raises(errors.ModelNotFound) as caught:
        gate.choose_model(name, principal)
    assert (caught.value.message, caught.value.param) == (message, "model")


def test_a_name_far_too_long_is_shown_as_far_as_a_name_may_go(gate: Gate) -> None:
    with pytest.raises(errors.ModelNotFound) as caught:
        gate.choose_model("x" * 10**6, NOBODY)
    assert len(caught.value.message) < 300


def test_a_model_of_others_is_forbidden_and_its_alias_too(gate: Gate) -> None:
    for name in ("demo", "gpt-4o-mini"):
        with pytest.raises(errors.ModelNotAllowed, match="may not use the model 'demo'"):
            gate.choose_model(name, ONLY_ORG)


def default(house: Gatehouse) -> None:
    models = {model.name: {"model_path": "x.gguf"} for model in house.models}
    house.config = {"default_model": "demo", "models": models}


def single(house: Gatehouse) -> None:
    house.environment = {"MODEL_PATH": "/models/demo.gguf"}


@pytest.mark.parametrize("mode", [default, single])
def test_the_permission_counts_however_a_model_came_to_be_meant(
    house: Gatehouse, mode: Callable[[Gatehouse], None]
) -> None:
    mode(house)
    gate = house.build()
    assert gate.choose_model(None, EVERYBODY).name == "demo"
    with pytest.raises(errors.ModelNotAllowed):
        gate.choose_model(None, ONLY_ORG)


@pytest.mark.parametrize("models", [[], [a_model("a"), a_model("b")]], ids=["none", "two"])
def test_no_name_and_no_way_to_guess_is_an_invalid_request(house: Gatehouse, models: list[object]) -> None:
    house.models = models  # type: ignore[assignment]
    with pytest.raises(errors.InvalidRequest, match="names no model"):
        house.build().choose_model(None, EVERYBODY)


def test_a_default_that_there_is_not_is_named_in_the_refusal(house: Gatehouse) -> None:
    house.config = {
        "default_model": "gone",
        "models": {"demo": {"model_path": "x"}},
        "system": {"scan_models": True},
    }
    with pytest.raises(errors.ModelNotFound, match="There is no model 'gone'"):
        house.build().choose_model(None, EVERYBODY)


@pytest.mark.parametrize("how", ["comes whole", "is given up"])
@in_a_loop
async def test_a_request_for_tokens_counts_while_its_body_is_on_its_way(house: Gatehouse, how: str) -> None:
    async with house.open():
        client = await house.connect()
        whole = request("/v1/chat/completions", CHAT)
        client.send(whole[:-1])
        await eventually(lambda: house.gate.arriving == 1, "it is on its way")
        if how == "comes whole":
            client.send(whole[-1:])
            assert (await read_reply(client)).status == 200
        else:
            client.close()
        await eventually(lambda: house.gate.arriving == 0, "it is no longer")
