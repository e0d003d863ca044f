"""The herd by hand, over a real socket: what is done, when it is answered, who may, and what is seen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from corral.drivers.http_client import Address
from corral.drivers.http_server import Exchange
from corral.formats.status import Phase
from corral.handlers import management
from corral.policy.lifecycle import DEATHS_MAX
from tests.drivers.serving import RawClient, serving
from tests.fleet.herd import FIRST_PORT, LOG_TAIL
from tests.handlers.managed_gate import KEY, Gatehouse, reply, with_gate
from tests.in_a_loop import turns
from tests.waiting import eventually

LOAD, EJECT, FAILED = "/v1/models/load", "/v1/models/eject", "/v1/models/failed"
STATUS, STREAM = "/v1/models/status", "/v1/models/status/stream"
NARROW, NARROW_KEY = "sk-narrow-0123456789", "narrow:sk-narrow-0123456789:rpm=0,models=b"
LAST_WORDS = " | ".join(["exit code 1", *LOG_TAIL])


async def until(house: Gatehouse, **states: str) -> None:
    """Until a request that has been sent has had this effect."""
    await eventually(lambda: {name: house.herd.state(name) for name in states} == states, f"{states}")


async def dies_loading(house: Gatehouse, model: str = "a") -> None:
    loading = await house.send(LOAD, {"model": model})
    await until(house, **{model: "loading"})
    house.herd.engines.of(model).ends()
    assert (await reply(loading)).status == 503


# Load --------------------------------------------------------------------------------------------


@with_gate()
async def test_a_load_is_answered_when_the_model_is_ready_and_not_before(house: Gatehouse) -> None:
    loading = await house.send(LOAD, {"model": "a"})
    await until(house, a="loading")
    assert (await house.ask("/v1/models/a/status")).json()["status"] == "loading"
    assert not loading.reader._buffer  # type: ignore[attr-defined]  # a whole question later, and no answer yet
    house.herd.engines.of("a").answers()
    answer = await reply(loading)
    assert (answer.status, answer.json()) == (200, {"status": "success", "model": "a", "port": FIRST_PORT})
    assert house.fleet.active == 0


@with_gate(aliases={"nick": "a"})
async def test_a_load_by_an_alias_is_answered_with_the_name(house: Gatehouse) -> None:
    loading = await house.send(LOAD, {"model": "nick"})
    await until(house, a="loading")
    house.herd.engines.of("a").answers()
    assert (await reply(loading)).json()["model"] == "a"


@with_gate(models={"a": 1})
async def test_a_load_wants_no_slot_and_waits_behind_nobody(house: Gatehouse) -> None:
    first, second = house.herd.ask("a"), house.herd.ask("a")
    loading = await house.send(LOAD, {"model": "a"})
    await eventually(lambda: house.fleet.queue_depth("a") == 3, "the load is in the queue")
    house.herd.engines.of("a").answers()
    assert (await reply(loading)).status == 200
    assert first.is_served
    assert second.waits
    assert (await house.ask(LOAD, {"model": "a"})).json()["port"] == FIRST_PORT
    assert second.waits


@with_gate()
async def test_a_load_fails_as_a_request_would(house: Gatehouse) -> None:
    loading = await house.send(LOAD, {"model": "a"})
    await until(house, a="loading")
    house.herd.engines.of("a").ends()
    answer = await reply(loading)
    assert answer.status == 503
    assert answer.headers["x-should-retry"] == "false"
    assert answer.error()["code"] == "model_failed"
    assert LAST_WORDS in answer.error()["message"]


@pytest.mark.parametrize(
    ("document", "key", "status", "code"),
    [
        pytest.param({"model": "d"}, KEY, 404, "model_not_found", id="unknown"),
        pytest.param({"model": "a"}, NARROW, 403, "model_not_allowed", id="not-permitted"),
        pytest.param({"model": 7}, KEY, 400, "invalid_request", id="not-a-name"),
        pytest.param({}, KEY, 400, "invalid_request", id="no-name-and-several-models"),
        pytest.param({"model": "a"}, None, 401, "invalid_api_key", id="no-key"),
    ],
)
@pytest.mark.parametrize("path", [LOAD, EJECT])
def test_who_or_what_is_wrong_is_refused_and_nothing_happens(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    path: str,
    document: object,
    key: str | None,
    status: int,
    code: str,
) -> None:
    @with_gate(keys=NARROW_KEY)
    async def scenario(house: Gatehouse) -> None:
        answer = await house.ask(path, document, key=key)
        assert (answer.status, answer.error()["code"]) == (status, code)
        assert house.herd.states() == {"a": "off", "b": "off", "c": "off"}

    scenario(monkeypatch, tmp_path)


@with_gate(models={"a": 1, "b": 1}, models_max=1)
async def test_a_load_goes_on_without_the_client_that_asked_for_it(house: Gatehouse) -> None:
    await house.herd.ready("a")
    busy = house.herd.ask("a")
    loading = await house.send(LOAD, {"model": "b"})
    await until(house, a="draining")
    loading.close()
    await eventually(lambda: "| 499 |" in house.access_log(), "the client is gone")
    busy.finishes()
    house.herd.engines.of("a").ends("exit code 0")
    await until(house, a="off", b="loading")
    house.herd.engines.of("b").answers()
    assert house.herd.states() == {"a": "off", "b": "ready"}


# Eject -------------------------------------------------------------------------------------------


@with_gate()
async def test_an_eject_lets_requests_finish_and_is_answered_when_the_model_is_off(house: Gatehouse) -> None:
    engine = await house.herd.ready("a")
    busy = house.herd.ask("a")
    ejecting = await house.send(EJECT, {"model": "a"})
    await until(house, a="draining")
    busy.finishes()
    await until(house, a="stopping")
    assert not ejecting.reader._buffer  # type: ignore[attr-defined]
    engine.ends("exit code 0")
    answer = await reply(ejecting)
    assert (answer.status, answer.json()) == (
        200,
        {"status": "success", "model_ejected": "a", "message": "a is unloaded."},
    )
    assert house.herd.state("a") == "off"


@with_gate()
async def test_an_eject_ends_a_load(house: Gatehouse) -> None:
    house.herd.ask("a").goes()
    ejecting = await house.send(EJECT, {"model": "a"})
    await until(house, a="stopping")
    house.herd.engines.of("a").ends("killed by SIGTERM")
    assert (await reply(ejecting)).status == 200
    assert house.herd.state("a") == "off"


@with_gate(models={"a": 1})
async def test_an_eject_is_answered_even_if_others_bring_the_model_back_at_once(house: Gatehouse) -> None:
    engine = await house.herd.ready("a")
    busy, waiting = house.herd.ask("a"), house.herd.ask("a")
    ejecting = await house.send(EJECT, {"model": "a"})
    await until(house, a="draining")
    busy.finishes()
    engine.ends("exit code 0")
    assert (await reply(ejecting)).status == 200
    await until(house, a="loading")
    assert waiting.waits


@with_gate()
async def test_an_ejected_model_does_not_come_back_from_its_backoff(house: Gatehouse) -> None:
    await dies_loading(house)
    assert house.herd.state("a") == "backoff"
    assert (await house.ask(EJECT, {"model": "a"})).status == 200
    house.herd.pass_time(100.0)
    assert house.herd.state("a") == "off"


@pytest.mark.parametrize(
    ("model", "code"), [("a", "not_found"), ("d", "model_not_found")], ids=["off", "unknown"]
)
def test_ejecting_what_does_not_run_is_not_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, model: str, code: str
) -> None:
    @with_gate()
    async def scenario(house: Gatehouse) -> None:
        answer = await house.ask(EJECT, {"model": model})
        assert (answer.status, answer.json()["status"]) == (404, "not_found")
        assert (answer.error()["code"], answer.error()["param"]) == (code, "model")
        assert f"| 404 | {model if model == 'a' else '-'} |" in house.access_log()

    scenario(monkeypatch, tmp_path)


# Reset and failures ------------------------------------------------------------------------------


@with_gate()
async def test_a_reset_forgives_a_model_that_was_given_up(house: Gatehouse) -> None:
    for _ in range(DEATHS_MAX):
        house.herd.pass_time(100.0)
        if house.herd.state("a") == "off":
            house.herd.ask("a").goes()
        house.herd.engines.of("a").ends()
    assert house.herd.state("a") == "failed"
    assert (await house.ask(LOAD, {"model": "a"})).error()["code"] == "model_failed"
    answer = await house.ask("/v1/models/a/reset", method="POST")
    assert (answer.status, answer.json()) == (
        200,
        {
            "status": "success",
            "model": "a",
            "message": "a is tried again when it is needed. Had 5 failed attempts.",
            "previous_error": LAST_WORDS,
        },
    )
    assert house.herd.state("a") == "off"
    house.herd.ask("a")
    assert house.herd.state("a") == "loading"


@with_gate()
async def test_there_is_nothing_to_forgive_a_model_that_works(house: Gatehouse) -> None:
    await house.herd.ready("a")
    answer = await house.ask("/v1/models/a/reset", method="POST")
    assert answer.json() == {
        "status": "success",
        "model": "a",
        "message": "a had not failed: it is ready.",
        "previous_error": None,
    }
    assert house.herd.state("a") == "ready"


@with_gate(keys=NARROW_KEY)
async def test_failures_are_listed_in_brief_to_those_who_may_use_the_model(house: Gatehouse) -> None:
    assert (await house.ask(FAILED)).json() == {"failed_models": [], "message": "No model has failed."}
    await dies_loading(house)
    listed = [{"model": "a", "attempts": 1, "error": LAST_WORDS}]
    assert (await house.ask(FAILED)).json() == {"failed_models": listed}
    assert (await house.ask(FAILED, key=NARROW)).json()["failed_models"] == []
    house.herd.ask("b").goes()
    house.herd.engines.of("b").tail = ["x" * 500]
    house.herd.engines.of("b").ends("exit code 2")
    error = (await house.ask(FAILED, key=NARROW)).json()["failed_models"][0]["error"]
    assert error == ("exit code 2 | " + "x" * 500)[:200]


# Statuses ----------------------------------------------------------------------------------------


@with_gate(models={"qwen-7b": 1, "llama-3b": 1})
async def test_the_statuses_of_all_are_the_promised_document(house: Gatehouse) -> None:
    engine = await house.herd.ready("qwen-7b")
    assert (await house.ask(STATUS)).json() == {
        "server": {"status": "ready"},
        "models": {
            "qwen-7b": {"status": "ready", "port": engine.address.port, "pid": engine.pid},
            "llama-3b": {"status": "off"},
        },
        "summary": {"ready": 1, "off": 1},
    }


@with_gate(keys=NARROW_KEY)
async def test_a_key_sees_the_models_that_it_may_use_and_no_other(house: Gatehouse) -> None:
    answer = await house.ask(STATUS, key=NARROW)
    assert answer.json()["models"] == {"b": {"status": "off"}}
    assert answer.json()["summary"] == {"off": 1}
    assert (await house.ask("/v1/models/b/status", key=NARROW)).json() == {"model": "b", "status": "off"}
    for path, method in [("/v1/models/a/status", "GET"), ("/v1/models/a/reset", "POST")]:
        answer = await house.ask(path, method=method, key=NARROW)
        assert (answer.status, answer.error()["code"]) == (403, "model_not_allowed")


@with_gate()
async def test_the_status_of_a_model_that_died_tells_how(house: Gatehouse) -> None:
    await dies_loading(house)
    answer = await house.ask("/v1/models/a/status")
    assert answer.json() == {"model": "a", "status": "backoff", "detail": LAST_WORDS}


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        pytest.param("GET", "/v1/models/a/status", {"model": "a"}, id="status"),
        pytest.param("GET", "/v1/models/org/b/status", {"model": "org/b"}, id="a-slash-in-the-name"),
        pytest.param("GET", "/v1/models/org%2Fb/status", {"model": "org/b"}, id="percent-encoded"),
        pytest.param("GET", "/v1/models/org%252Fb/status", {"error": 404}, id="percent-encoded-twice"),
        pytest.param("GET", "/v1/models/nick/status", {"model": "a"}, id="an-alias"),
        pytest.param("GET", "/v1/models/org/b/c/status", {"error": 404}, id="no-such-model"),
        pytest.param("GET", "/v1/models//status", {"error": 404}, id="no-name"),
        pytest.param("POST", "/v1/models/org/b/reset", {"model": "org/b"}, id="reset"),
        pytest.param("GET", "/v1/models/status", {"server": {"status": "ready"}}, id="a-literal-route-wins"),
        pytest.param("GET", "/v1/models/status/status", {"model": "status"}, id="a-model-called-status"),
        pytest.param("GET", "/v1/models/a/reset", {"id": "a/reset"}, id="the-longest-name-wins"),
        pytest.param("POST", "/v1/models/a/reset", {"error": 405}, id="the-longest-name-is-no-action"),
        pytest.param("POST", "/v1/models/a/status", {"error": 405}, id="a-look-is-no-post"),
        pytest.param("GET", "/v1/models/org/b/reset", {"error": 405}, id="a-reset-is-no-get"),
        pytest.param("GET", "/v1/models/load", {"error": 405}, id="a-load-is-no-get"),
    ],
)
def test_a_path_means_the_literal_route_then_the_longest_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, method: str, path: str, expected: dict[str, Any]
) -> None:
    @with_gate(models={"a": 1, "org/b": 1, "status": 1, "a/reset": 1}, aliases={"nick": "a"})
    async def scenario(house: Gatehouse) -> None:
        answer = await house.ask(path, method=method)
        if "error" in expected:
            assert answer.status == expected["error"]
        else:
            assert answer.status == 200
            assert answer.json() | expected == answer.json()

    scenario(monkeypatch, tmp_path)


# The stream --------------------------------------------------------------------------------------

Event = tuple[str, Any]


async def open_stream(house: Gatehouse, path: str = STREAM, **options: Any) -> RawClient:
    client = await house.send(path, **options)
    head = await client.until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    for line in (b"content-type: text/event-stream", b"cache-control: no-cache, no-transform"):
        assert line + b"\r\n" in head
    return client


async def next_event(client: RawClient) -> Event:
    """The next event, which comes as a chunk of its own. ("", …) is an error, None the end."""
    size = int(await client.until(b"\r\n"), 16)
    text = (await client.exactly(size + 2)).decode().strip()
    if not text:
        return "end", None
    name, _, data = text.removeprefix("event: ").rpartition("\ndata: ")
    return name, json.loads(data or text.removeprefix("data: "))


def update(alias: str, status: str, **more: object) -> Event:
    return "model_update", {"alias": alias, "status": status, **more}


@with_gate()
async def test_a_stream_begins_with_the_statuses_of_all(house: Gatehouse) -> None:
    await house.herd.ready("a")
    stream = await open_stream(house)
    assert await next_event(stream) == ("full_status", (await house.ask(STATUS)).json())


@with_gate()
async def test_every_state_passes_through_the_stream_however_short(
    house: Gatehouse,
) -> None:
    stream = await open_stream(house)
    await next_event(stream)
    # Within one turn of the loop: nobody could have looked in between.
    house.herd.ask("a").goes()
    engine = house.herd.engines.of("a")
    engine.answers()
    house.fleet.eject("a")
    engine.ends("exit code 0")
    alive = {"port": engine.address.port, "pid": engine.pid}
    assert [await next_event(stream) for _ in range(6)] == [
        update("a", "starting"),
        update("a", "loading", **alive),
        update("a", "ready", **alive),
        update("a", "draining", **alive),
        update("a", "stopping", **alive),
        update("a", "off"),
    ]


def test_a_quiet_stream_shows_only_that_it_is_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(management, "HEARTBEAT_S", 0.01)

    @with_gate()
    async def scenario(house: Gatehouse) -> None:
        stream = await open_stream(house)
        await next_event(stream)
        for _ in range(3):
            house.herd.now += 0.01
            assert await next_event(stream) == ("heartbeat", {})

    scenario(monkeypatch, tmp_path)


@with_gate(keys=NARROW_KEY)
async def test_a_stream_tells_of_permitted_models_only(house: Gatehouse) -> None:
    stream = await open_stream(house, key=NARROW)
    assert (await next_event(stream))[1]["models"] == {"b": {"status": "off"}}
    house.herd.engines.is_slow = True
    house.herd.ask("a")
    house.herd.ask("b")
    assert await next_event(stream) == update("b", "starting")


@with_gate()
async def test_a_preload_changes_the_word_for_the_server(house: Gatehouse) -> None:
    house.fleet.preload(("a",))
    stream = await open_stream(house)
    assert (await next_event(stream))[1]["server"] == {"status": "starting"}
    house.herd.engines.of("a").answers()
    assert (await next_event(stream))[1]["status"] == "ready"
    name, everything = await next_event(stream)
    assert (name, everything["server"]) == ("full_status", {"status": "ready"})


@with_gate()
async def test_a_stream_takes_its_key_from_the_query_and_nobody_writes_it_down(house: Gatehouse) -> None:
    stream = await open_stream(house, f"{STREAM}?api_key={KEY}", key=None)
    assert (await next_event(stream))[0] == "full_status"
    stream.close()
    await eventually(lambda: f"tester | GET {STREAM} | 200" in house.access_log(), "the stream has ended")
    assert KEY not in house.access_log()
    assert "api_key=" not in house.access_log()


@pytest.mark.parametrize("path", [STATUS, "/v1/models", "/v1/models/a/status", FAILED, "/v1/props"])
def test_no_other_path_takes_a_key_from_the_query(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, path: str
) -> None:
    @with_gate()
    async def scenario(house: Gatehouse) -> None:
        assert (await house.ask(f"{path}?api_key={KEY}", key=None)).status == 401

    scenario(monkeypatch, tmp_path)


@pytest.mark.parametrize("query", ["", "?api_key=", "?api_key=sk-wrong-0123456789", f"?key={KEY}"])
def test_a_stream_without_a_good_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, query: str
) -> None:
    @with_gate()
    async def scenario(house: Gatehouse) -> None:
        answer = await house.ask(STREAM + query, key=None)
        assert (answer.status, answer.error()["code"]) == (401, "invalid_api_key")

    scenario(monkeypatch, tmp_path)


@with_gate(keys=NARROW_KEY)
async def test_a_key_that_is_taken_away_takes_its_stream_along(house: Gatehouse) -> None:
    stream = await open_stream(house, key=NARROW)
    await next_event(stream)
    house.set_keys(f"tester:{KEY}")
    house.herd.ask("b")
    name, error = await next_event(stream)
    assert (name, error["error"]["code"]) == ("", "invalid_api_key")
    assert await next_event(stream) == ("end", None)


@with_gate()
async def test_a_stream_ends_with_the_gateway_and_says_so(house: Gatehouse) -> None:
    stream = await open_stream(house)
    await next_event(stream)
    house.phase = Phase.DRAINING
    house.fleet.refuse_waiting()
    name, everything = await next_event(stream)
    assert (name, everything["server"]) == ("full_status", {"status": "draining"})
    assert await next_event(stream) == ("end", None)


@with_gate()
async def test_nothing_is_kept_for_a_reader_that_has_gone(house: Gatehouse) -> None:
    stream = await open_stream(house)
    assert len(house.fleet._gallery._onlookers) == 1
    stream.close()
    await eventually(lambda: not house.fleet._gallery._onlookers, "nobody looks on")


@with_gate()
async def test_a_stream_asked_for_with_head_has_no_body(house: Gatehouse) -> None:
    client = await open_stream(house, method="HEAD")
    client.send(f"GET /live HTTP/1.1\r\nHost: x\r\nAuthorization: {KEY}\r\n\r\n".encode())
    assert (await client.answer())[0] == 200, "the next answer follows at once"


# What counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "document", "counts"),
    [
        pytest.param("POST", LOAD, {"model": "d"}, True, id="load"),
        pytest.param("POST", EJECT, {"model": "d"}, True, id="eject"),
        pytest.param("POST", "/v1/models/d/reset", None, True, id="reset"),
        pytest.param("GET", STATUS, None, False, id="statuses"),
        pytest.param("GET", "/v1/models/a/status", None, False, id="status"),
        pytest.param("GET", FAILED, None, False, id="failed"),
        pytest.param("HEAD", STREAM, None, False, id="stream"),
    ],
)
def test_doing_counts_against_the_rate_and_looking_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, method: str, path: str, document: object, counts: bool
) -> None:
    key = "sk-once-0123456789"

    @with_gate(keys=f"once:{key}:rpm=1")
    async def scenario(house: Gatehouse) -> None:
        statuses = []
        for _ in "123":
            client = await house.send(path, document, method=method, key=key)
            statuses.append(int((await client.until(b"\r\n\r\n")).split()[1]))
        assert statuses == ([404, 429, 429] if counts else [200, 200, 200])

    scenario(monkeypatch, tmp_path)


# X-Model-Load ------------------------------------------------------------------------------------

CHAT = "/v1/chat/completions"
ASKED = {"model": "a", "messages": []}


async def engine_that_answers(exchange: Exchange) -> None:
    assert exchange.head.header(b"x-model-load") is None, "this is between the client and the gate"
    exchange.respond(200, [], b"fine")


@pytest.mark.parametrize("word", ["never", "Never"])
@pytest.mark.parametrize("state", ["off", "stopping", "backoff"])
def test_a_request_that_forbids_it_loads_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, state: str, word: str
) -> None:
    @with_gate()
    async def scenario(house: Gatehouse) -> None:
        if state == "stopping":
            await house.herd.ready("a")
            house.fleet.eject("a")
        elif state == "backoff":
            await dies_loading(house)
        assert house.herd.state("a") == state
        answer = await house.ask(CHAT, ASKED, headers={"X-Model-Load": word})
        assert (answer.status, answer.error()["code"]) == (503, "model_not_loaded")
        assert answer.headers["x-should-retry"] == "false"
        assert state in answer.error()["message"]
        assert house.herd.state("a") == state

    scenario(monkeypatch, tmp_path)


@with_gate()
async def test_a_request_that_forbids_a_load_waits_for_one_that_others_began(house: Gatehouse) -> None:
    async with serving(engine_that_answers) as (_server, port):
        house.herd.ask("a").goes()
        engine = house.herd.engines.of("a")
        engine.address = Address("127.0.0.1", port)
        loading = await house.send(CHAT, ASKED, headers={"X-Model-Load": "never"})
        await eventually(lambda: house.fleet.queue_depth("a") == 1, "it waits")
        engine.answers()
        assert (await reply(loading)).body == b"fine"
        answer = await house.ask(CHAT, ASKED, headers={"X-Model-Load": "never"})
        assert answer.body == b"fine"


@with_gate()
async def test_any_other_word_forbids_nothing(house: Gatehouse) -> None:
    client = await house.send(CHAT, ASKED, headers={"X-Model-Load": "always"})
    await until(house, a="loading")
    client.close()
    await turns()
