"""The herd by hand, over a real socket: what is done, when it is answered, who may, and what is seen."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corral.formats.status import Phase
from corral.handlers import management
from corral.policy.lifecycle import DEATHS_MAX
from tests.drivers.serving import RawClient
from tests.fleet.herd import LOG_TAIL
from tests.handlers.gatehouse import CHAT, KEY, KEYS, answering, read_reply, request
from tests.handlers.yard import Yard, with_yard
from tests.in_a_loop import turns
from tests.waiting import eventually

LOAD, EJECT, FAILED = "/v1/models/load", "/v1/models/eject", "/v1/models/failed"
STATUS, STREAM = "/v1/models/status", "/v1/models/status/stream"
NARROW, NARROW_KEY = "sk-narrow-0123456789", "narrow:sk-narrow-0123456789:rpm=0,models=b"
LAST_WORDS = " | ".join(["exit code 1", *LOG_TAIL])


@pytest.fixture
def yard(tmp_path: Path) -> Callable[..., Yard]:
    return functools.partial(Yard, tmp_path)


def logged(yard: Yard) -> str:
    return "".join(yard.access_log.lines)


async def dies_loading(yard: Yard, model: str = "a") -> None:
    loading = await yard.send(LOAD, {"model": model})
    await yard.until(**{model: "loading"})
    yard.engines.of(model).ends()
    assert (await read_reply(loading)).status == 503


# Load --------------------------------------------------------------------------------------------


@with_yard()
async def test_a_load_is_answered_when_the_model_is_ready_and_not_before(yard: Yard) -> None:
    loading = await yard.send(LOAD, {"model": "a"})
    await yard.until(a="loading")
    assert (await yard.ask("/v1/models/a/status")).json()["status"] == "loading"
    assert LOAD not in logged(yard)
    yard.engines.of("a").answers()
    answer = await read_reply(loading)
    assert (answer.status, answer.json()) == (
        200,
        {"status": "success", "model": "a", "port": yard.engines.address.port},
    )
    assert yard.fleet.queue.active == 0


@with_yard("a")
async def test_a_load_wants_no_slot_and_waits_behind_nobody(yard: Yard) -> None:
    first, second = yard.use("a"), yard.use("a")
    loading = await yard.send(LOAD, {"model": "a"})
    await eventually(lambda: yard.fleet.queue.depth("a") == 3, "the load is in the queue")
    yard.engines.of("a").answers()
    assert (await read_reply(loading)).status == 200
    assert first.is_served
    assert second.waits
    assert (await yard.ask(LOAD, {"model": "a"})).status == 200
    assert second.waits


@with_yard()
async def test_a_load_fails_as_a_request_would(yard: Yard) -> None:
    loading = await yard.send(LOAD, {"model": "a"})
    await yard.until(a="loading")
    yard.engines.of("a").ends()
    answer = await read_reply(loading)
    assert answer.status == 503
    assert answer.json()["error"]["code"] == "model_failed"
    assert LAST_WORDS in answer.json()["error"]["message"]


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
@with_yard(keys=NARROW_KEY)
async def test_who_or_what_is_wrong_is_refused_and_nothing_happens(
    yard: Yard, path: str, document: object, key: str | None, status: int, code: str
) -> None:
    answer = await yard.ask(path, document, key=key)
    assert (answer.status, answer.json()["error"]["code"]) == (status, code)
    assert yard.states() == {"a": "off", "b": "off", "c": "off"}


@with_yard("a", "b", "c", "d")
async def test_a_load_goes_on_without_the_client_that_asked_for_it(yard: Yard) -> None:
    engines = [await yard.ready(name) for name in "abc"]
    first, *_others = [yard.use(name) for name in "abc"]
    loading = await yard.send(LOAD, {"model": "d"})
    await eventually(lambda: yard.fleet.queue.depth("d") == 1, "the load is in the queue")
    yard.pass_time(4.0)
    assert yard.states()["a"] == "draining"  # as many models run as may
    loading.close()
    await eventually(lambda: f"POST {LOAD} | 499 |" in logged(yard), "the client is gone")
    first.finishes()
    engines[0].ends("exit code 0")
    await yard.until(a="off", d="loading")
    yard.engines.of("d").answers()
    assert yard.states() == {"a": "off", "b": "ready", "c": "ready", "d": "ready"}


# Eject -------------------------------------------------------------------------------------------


@with_yard()
async def test_an_eject_lets_requests_finish_and_is_answered_when_the_model_is_off(yard: Yard) -> None:
    engine = await yard.ready("a")
    busy = yard.use("a")
    ejecting = await yard.send(EJECT, {"model": "a"})
    await yard.until(a="draining")
    busy.finishes()
    await yard.until(a="stopping")
    assert EJECT not in logged(yard)
    engine.ends("exit code 0")
    answer = await read_reply(ejecting)
    assert (answer.status, answer.json()) == (
        200,
        {"status": "success", "model_ejected": "a", "message": "a is unloaded."},
    )
    assert yard.states()["a"] == "off"


@with_yard()
async def test_an_eject_ends_a_load(yard: Yard) -> None:
    yard.use("a").goes()
    ejecting = await yard.send(EJECT, {"model": "a"})
    await yard.until(a="stopping")
    yard.engines.of("a").ends("killed by SIGTERM")
    assert (await read_reply(ejecting)).status == 200
    assert yard.states()["a"] == "off"


@with_yard("a")
async def test_an_eject_is_answered_even_if_others_bring_the_model_back_at_once(yard: Yard) -> None:
    engine = await yard.ready("a")
    busy, waiting = yard.use("a"), yard.use("a")
    ejecting = await yard.send(EJECT, {"model": "a"})
    await yard.until(a="draining")
    busy.finishes()
    engine.ends("exit code 0")
    assert (await read_reply(ejecting)).status == 200
    await yard.until(a="loading")
    assert waiting.waits


@with_yard()
async def test_an_ejected_model_does_not_come_back_from_its_backoff(yard: Yard) -> None:
    await dies_loading(yard)
    assert yard.states()["a"] == "backoff"
    assert (await yard.ask(EJECT, {"model": "a"})).status == 200
    yard.pass_time(100.0)
    assert yard.states()["a"] == "off"


@pytest.mark.parametrize(
    ("model", "code"), [("a", "not_found"), ("d", "model_not_found")], ids=["off", "unknown"]
)
@with_yard()
async def test_ejecting_what_does_not_run_is_not_found(yard: Yard, model: str, code: str) -> None:
    answer = await yard.ask(EJECT, {"model": model})
    assert (answer.status, answer.json()["status"]) == (404, "not_found")
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, "model")
    assert f"| 404 | {model if model == 'a' else '-'} |" in logged(yard)


# Reset and failures ------------------------------------------------------------------------------


@with_yard()
async def test_a_reset_forgives_a_model_that_was_given_up(yard: Yard) -> None:
    for _ in range(DEATHS_MAX):
        yard.pass_time(100.0)
        if yard.states()["a"] == "off":
            yard.use("a").goes()
        yard.engines.of("a").ends()
    assert yard.states()["a"] == "failed"
    assert (await yard.ask(LOAD, {"model": "a"})).json()["error"]["code"] == "model_failed"
    answer = await yard.ask("/v1/models/a/reset", method="POST")
    assert (answer.status, answer.json()) == (
        200,
        {
            "status": "success",
            "model": "a",
            "message": "a is tried again when it is needed. Had 5 failed attempts.",
            "previous_error": LAST_WORDS,
        },
    )
    assert yard.states()["a"] == "off"
    yard.use("a")
    assert yard.states()["a"] == "loading"


@with_yard()
async def test_there_is_nothing_to_forgive_a_model_that_works(yard: Yard) -> None:
    await yard.ready("a")
    answer = await yard.ask("/v1/models/a/reset", method="POST")
    assert answer.json() == {
        "status": "success",
        "model": "a",
        "message": "a had not failed: it is ready.",
        "previous_error": None,
    }
    assert yard.states()["a"] == "ready"


@with_yard(keys=NARROW_KEY)
async def test_failures_are_listed_in_brief_to_those_who_may_use_the_model(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await yard.ask(FAILED)).json() == {"failed_models": [], "message": "No model has failed."}
    await dies_loading(yard)
    listed = [{"model": "a", "attempts": 1, "error": LAST_WORDS}]
    assert (await yard.ask(FAILED)).json() == {"failed_models": listed}
    assert (await yard.ask(FAILED, key=NARROW)).json()["failed_models"] == []
    yard.use("b").goes()
    monkeypatch.setattr(yard.engines.of("b"), "log_tail", lambda _lines: ["x" * 500])
    yard.engines.of("b").ends("exit code 2")
    error = (await yard.ask(FAILED, key=NARROW)).json()["failed_models"][0]["error"]
    assert error == ("exit code 2 | " + "x" * 500)[:200]


# Statuses ----------------------------------------------------------------------------------------


@with_yard("qwen-7b", "llama-3b")
async def test_the_statuses_of_all_are_the_promised_document(yard: Yard) -> None:
    engine = await yard.ready("qwen-7b")
    assert (await yard.ask(STATUS)).json() == {
        "server": {"status": "ready"},
        "models": {
            "qwen-7b": {"status": "ready", "port": engine.address.port, "pid": engine.pid},
            "llama-3b": {"status": "off"},
        },
        "summary": {"ready": 1, "off": 1},
    }


@with_yard(keys=NARROW_KEY)
async def test_a_key_sees_the_models_that_it_may_use_and_no_other(yard: Yard) -> None:
    answer = await yard.ask(STATUS, key=NARROW)
    assert answer.json()["models"] == {"b": {"status": "off"}}
    assert answer.json()["summary"] == {"off": 1}
    assert (await yard.ask("/v1/models/b/status", key=NARROW)).json() == {"model": "b", "status": "off"}
    for path, method in [("/v1/models/a/status", "GET"), ("/v1/models/a/reset", "POST")]:
        answer = await yard.ask(path, method=method, key=NARROW)
        assert (answer.status, answer.json()["error"]["code"]) == (403, "model_not_allowed")


@with_yard()
async def test_the_status_of_a_model_that_died_tells_how(yard: Yard) -> None:
    await dies_loading(yard)
    answer = await yard.ask("/v1/models/a/status")
    assert answer.json() == {"model": "a", "status": "backoff", "detail": LAST_WORDS}


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        pytest.param("GET", "/v1/models/a/status", {"model": "a"}, id="status"),
        pytest.param("GET", "/v1/models/org/b/status", {"model": "org/b"}, id="a-slash-in-the-name"),
        pytest.param("GET", "/v1/models/org%2Fb/status", {"model": "org/b"}, id="percent-encoded"),
        pytest.param("GET", "/v1/models/org%252Fb/status", {"error": 404}, id="percent-encoded-twice"),
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
@with_yard("a", "org/b", "status", "a/reset")
async def test_a_path_means_the_literal_route_then_the_longest_name(
    yard: Yard, method: str, path: str, expected: dict[str, Any]
) -> None:
    answer = await yard.ask(path, method=method)
    if "error" in expected:
        assert answer.status == expected["error"]
    else:
        assert answer.status == 200
        assert answer.json() | expected == answer.json()


# The stream --------------------------------------------------------------------------------------

Event = tuple[str, Any]
END: Event = ("", None)


async def open_stream(yard: Yard, path: str = STREAM, **options: Any) -> RawClient:
    client = await yard.send(path, **options)
    head = await client.until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    for line in (b"content-type: text/event-stream", b"cache-control: no-cache, no-transform"):
        assert line + b"\r\n" in head
    return client


async def next_event(client: RawClient) -> Event:
    """The next event, which comes as a chunk of its own; an error has no name, and the end is empty."""
    size = int(await client.until(b"\r\n"), 16)
    lines = (await client.exactly(size + 2)).decode().strip().splitlines()
    fields = dict(line.split(": ", 1) for line in lines)
    return fields.get("event", ""), json.loads(fields.get("data", "null"))


def update(alias: str, status: str, **more: object) -> Event:
    return "model_update", {"alias": alias, "status": status, **more}


@with_yard()
async def test_a_stream_begins_with_the_statuses_of_all(yard: Yard) -> None:
    await yard.ready("a")
    stream = await open_stream(yard)
    assert await next_event(stream) == ("full_status", (await yard.ask(STATUS)).json())


@with_yard()
async def test_every_state_passes_through_the_stream_however_short(
    yard: Yard,
) -> None:
    stream = await open_stream(yard)
    await next_event(stream)
    # Within one turn of the loop: nobody could have looked in between.
    yard.use("a").goes()
    engine = yard.engines.of("a")
    engine.answers()
    yard.fleet.eject("a")
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


@with_yard()
async def test_a_quiet_stream_shows_only_that_it_is_open(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(management, "HEARTBEAT_S", 0.01)
    stream = await open_stream(yard)
    await next_event(stream)
    for _ in range(3):
        assert await next_event(stream) == ("heartbeat", {})


@with_yard(keys=NARROW_KEY)
async def test_a_stream_tells_of_permitted_models_only(yard: Yard) -> None:
    stream = await open_stream(yard, key=NARROW)
    assert (await next_event(stream))[1]["models"] == {"b": {"status": "off"}}
    yard.engines.is_slow = True
    yard.use("a")
    yard.use("b")
    assert await next_event(stream) == update("b", "starting")


@with_yard()
async def test_a_preload_changes_the_word_for_the_server(yard: Yard) -> None:
    yard.fleet.preload(("a",))
    stream = await open_stream(yard)
    assert (await next_event(stream))[1]["server"] == {"status": "starting"}
    yard.engines.of("a").answers()
    assert (await next_event(stream))[1]["status"] == "ready"
    name, everything = await next_event(stream)
    assert (name, everything["server"]) == ("full_status", {"status": "ready"})


@with_yard()
async def test_a_stream_takes_its_key_from_the_query_and_nobody_writes_it_down(yard: Yard) -> None:
    stream = await open_stream(yard, f"{STREAM}?api_key={KEY}", key=None)
    assert (await next_event(stream))[0] == "full_status"
    stream.close()
    await eventually(lambda: f"alice | GET {STREAM} | 200" in logged(yard), "the stream has ended")
    assert KEY not in logged(yard)
    assert "api_key=" not in logged(yard)


@pytest.mark.parametrize("path", [STATUS, "/v1/models", "/v1/models/a/status", FAILED, "/v1/props"])
@with_yard()
async def test_no_other_path_takes_a_key_from_the_query(yard: Yard, path: str) -> None:
    assert (await yard.ask(f"{path}?api_key={KEY}", key=None)).status == 401


@pytest.mark.parametrize("query", ["", "?api_key=", "?api_key=sk-wrong-0123456789", f"?key={KEY}"])
@with_yard()
async def test_a_stream_without_a_good_key_is_refused(yard: Yard, query: str) -> None:
    answer = await yard.ask(STREAM + query, key=None)
    assert (answer.status, answer.json()["error"]["code"]) == (401, "invalid_api_key")


@with_yard(keys=NARROW_KEY)
async def test_a_key_that_is_taken_away_takes_its_stream_along(yard: Yard) -> None:
    stream = await open_stream(yard, key=NARROW)
    await next_event(stream)
    yard.gate.keys = yard.ring(KEYS)
    yard.use("b")
    name, error = await next_event(stream)
    assert (name, error["error"]["code"]) == ("", "invalid_api_key")
    assert await next_event(stream) == END


@with_yard()
async def test_a_stream_ends_with_the_gateway_and_says_so(yard: Yard) -> None:
    stream = await open_stream(yard)
    await next_event(stream)
    yard.phase = Phase.DRAINING
    yard.fleet.refuse_waiting()
    name, everything = await next_event(stream)
    assert (name, everything["server"]) == ("full_status", {"status": "draining"})
    assert await next_event(stream) == END


@with_yard()
async def test_nothing_is_kept_for_a_reader_that_has_gone(yard: Yard) -> None:
    stream = await open_stream(yard)
    assert len(yard.fleet._gallery._onlookers) == 1
    stream.close()
    await eventually(lambda: not yard.fleet._gallery._onlookers, "nobody looks on")


@with_yard()
async def test_a_stream_asked_for_with_head_has_no_body(yard: Yard) -> None:
    client = await open_stream(yard, method="HEAD")
    client.send(request("/live"))
    assert (await read_reply(client)).status == 200, "the next answer follows at once"


# What counts -------------------------------------------------------------------------------------

ONCE = "sk-once-0123456789"


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
@with_yard(keys=f"once:{ONCE}:rpm=1")
async def test_doing_counts_against_the_rate_and_looking_does_not(
    yard: Yard, method: str, path: str, document: object, counts: bool
) -> None:
    statuses = []
    for _ in "123":
        client = await yard.send(path, document, method=method, key=ONCE)
        statuses.append(int((await client.until(b"\r\n\r\n")).split()[1]))
    assert statuses == ([404, 429, 429] if counts else [200, 200, 200])


# X-Model-Load ------------------------------------------------------------------------------------

COMPLETIONS = "/v1/chat/completions"
FOR_A = CHAT | {"model": "a"}


@pytest.mark.parametrize("word", ["never", "Never"])
@pytest.mark.parametrize("state", ["off", "stopping", "backoff"])
@with_yard()
async def test_a_request_that_forbids_it_loads_nothing(yard: Yard, state: str, word: str) -> None:
    if state == "stopping":
        await yard.ready("a")
        yard.fleet.eject("a")
    elif state == "backoff":
        await dies_loading(yard)
    assert yard.states()["a"] == state
    answer = await yard.ask(COMPLETIONS, FOR_A, headers={"X-Model-Load": word})
    assert (answer.status, answer.json()["error"]["code"]) == (503, "model_not_loaded")
    assert answer.header("x-should-retry") == "false"
    assert state in answer.json()["error"]["message"]
    assert yard.states()["a"] == state


@with_yard()
async def test_a_request_that_forbids_a_load_waits_for_one_that_others_began(yard: Yard) -> None:
    yard.backend.script = answering(b"fine")
    yard.use("a").goes()
    waiting = await yard.send(COMPLETIONS, FOR_A, headers={"X-Model-Load": "never"})
    await eventually(lambda: yard.fleet.queue.depth("a") == 1, "it waits")
    yard.engines.of("a").answers()
    assert (await read_reply(waiting)).body == b"fine"
    answer = await yard.ask(COMPLETIONS, FOR_A, headers={"X-Model-Load": "never"})
    assert (answer.status, answer.body) == (200, b"fine")


@with_yard()
async def test_any_other_word_forbids_nothing(yard: Yard) -> None:
    client = await yard.send(COMPLETIONS, FOR_A, headers={"X-Model-Load": "always"})
    await yard.until(a="loading")
    client.close()
    await turns()
