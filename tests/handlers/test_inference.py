"""A request for tokens on its way to the engine: what is asked of it, where it goes, and what goes along."""

from __future__ import annotations

import dataclasses
import gc
import re

import pytest

from tests.handlers.gatehouse import (
    CHAT,
    KEY,
    Gatehouse,
    answering,
    read_reply,
    request,
    streaming,
)
from tests.in_a_loop import in_a_loop
from tests.models import a_model

PATH = "/v1/chat/completions"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


# To the engine -----------------------------------------------------------------------------------


@in_a_loop
async def test_the_engine_gets_the_body_as_it_is_and_its_answer_comes_back_as_it_is(house: Gatehouse) -> None:
    house.backend.script = answering(b'{"text": "caf\xc3\xa9"}')
    body = b'{ "model" : "demo",\n  "prompt": "\\u00e9", "x": 1e400 }'
    async with house.open():
        reply = await house.ask("/v1/completions", body)
    assert (reply.status, reply.body) == (200, b'{"text": "caf\xc3\xa9"}')
    seen = house.backend.seen[0]
    assert (seen.method, seen.target, seen.body) == ("POST", "/v1/completions", body)
    assert seen.header("content-length") == str(len(body))
    assert seen.header("host") == f"127.0.0.1:{house.engines.address.port}"


@in_a_loop
async def test_headers_of_the_client_go_on_except_those_that_are_the_gates_own(house: Gatehouse) -> None:
    more = {
        "x-api-key": KEY,
        "user-agent": "curl/8",
        "accept": "text/event-stream",
        "x-own": "kept",
        "origin": "http://page",
        "te": "trailers",
        "upgrade": "h2c",
        "keep-alive": "timeout=5",
        "proxy-authorization": "Basic c2VjcmV0",
        "connection": "keep-alive, x-hop",
        "x-hop": "one hop only",
        "expect": "100-continue",
        "x-model-load": "never",
    }
    async with house.open():
        await house.ask(PATH, CHAT)
        client = await house.connect()
        client.send(request(PATH, CHAT, headers=more))
        # The body is there already, so no "100 Continue" is called for.
        assert (await read_reply(client, "POST")).status == 200
    names = {name for name, _ in house.backend.seen[1].headers}
    assert names == {
        "host",
        "x-request-id",
        "user-agent",
        "accept",
        "x-own",
        "content-type",
        "content-length",
    }
    assert house.backend.seen[1].header("x-own") == "kept"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/completions", {"authorization": f"Bearer {KEY}"}),
        ("/v1/completions", {"authorization": KEY}),
        ("/v1/completions", {"x-api-key": KEY}),
        ("/v1/completions", {"authorization": "Bearer the-platforms-own", "x-api-key": KEY}),
        (f"/v1/completions?api_key={KEY}&keep=1", {"x-api-key": KEY}),
        (f"/v1/completions?keep=1&api%5Fkey={KEY}", {"x-api-key": KEY}),
        (f"/v1/completions?keep=1&%61pi_key={KEY}&&", {"x-api-key": KEY}),
    ],
    ids=["bearer", "bare", "x-api-key", "beside a platform's", "in the query", "disguised", "disguised too"],
)
@in_a_loop
async def test_no_key_reaches_the_engine_the_log_or_the_client(
    house: Gatehouse, path: str, headers: dict[str, str]
) -> None:
    async with house.open():
        reply = await house.ask(path, CHAT, key=None, headers=headers)
    assert reply.status == 200
    seen = house.backend.seen[0]
    everywhere = repr((seen, reply, house.access_log.lines))
    assert KEY not in everywhere
    assert "the-platforms-own" not in everywhere
    assert seen.target == ("/v1/completions?keep=1" if "keep" in path else "/v1/completions")


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/v1/audio/transcriptions?a=%20b&c", "/v1/audio/transcriptions?a=%20b&c"),
        ("/v1/some%2Fthing", "/v1/some%2Fthing"),
    ],
)
@in_a_loop
async def test_the_path_goes_on_as_the_engine_knows_it(house: Gatehouse, path: str, target: str) -> None:
    async with house.open():
        await house.ask(path, CHAT)
    assert house.backend.seen[0].target == target


@pytest.mark.parametrize(
    ("wish", "is_kept"),
    [
        ("my-id_1.2:3/4+5=@", True),
        ("x" * 128, True),
        (None, False),
        ("x" * 129, False),
        ("two words", False),
        ("caf\xe9", False),
        ("", False),
    ],
    ids=["sane", "longest", "absent", "too long", "a space", "not ascii", "empty"],
)
@in_a_loop
async def test_a_request_id_is_echoed_forwarded_and_logged_or_made(
    house: Gatehouse, wish: str | None, is_kept: bool
) -> None:
    async with house.open():
        reply = await house.ask(PATH, CHAT, headers={} if wish is None else {"x-request-id": wish})
        [line] = await house.logged()
    request_id = reply.header("x-request-id")
    assert request_id is not None
    assert house.backend.seen[0].header("x-request-id") == request_id
    assert line[8] == request_id
    if is_kept:
        assert request_id == wish
    else:
        assert UUID.fullmatch(request_id)


# Which model -------------------------------------------------------------------------------------


def two_models(house: Gatehouse) -> None:
    house.models = [a_model("demo", aliases=("gpt-4o-mini",)), a_model("org/other:q8")]


@pytest.mark.parametrize(
    ("default", "named", "expected"),
    [
        (None, "demo", "demo"),
        (None, "gpt-4o-mini", "demo"),
        (None, "org/other:q8", "org/other:q8"),
        ("org/other:q8", None, "org/other:q8"),
        ("org/other:q8", "demo", "demo"),
    ],
)
@in_a_loop
async def test_a_model_is_meant_by_name_by_alias_or_by_default(
    house: Gatehouse, default: str | None, named: str | None, expected: str
) -> None:
    two_models(house)
    if default is not None:
        models = {model.name: {"model_path": "x.gguf"} for model in house.models}
        house.config = {"default_model": default, "models": models}
    async with house.open():
        body: dict[str, object] = {"messages": []} | ({} if named is None else {"model": named})
        assert (await house.ask(PATH, body)).status == 200
        [line] = await house.logged()
    assert line[4] == expected
    assert house.engines.started[0].model == expected


@in_a_loop
async def test_without_a_default_the_only_model_is_meant(house: Gatehouse) -> None:
    async with house.open():
        assert (await house.ask(PATH, {"messages": []})).status == 200


@in_a_loop
async def test_without_a_default_none_of_several_is_meant(house: Gatehouse) -> None:
    two_models(house)
    async with house.open():
        reply = await house.ask(PATH, {"messages": []})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "invalid_request", "model")
    assert reply.error["message"].startswith("The request names no model.")
    assert not house.backend.seen


@in_a_loop
async def test_an_unknown_model_is_404_with_the_names_that_this_key_may_use(house: Gatehouse) -> None:
    two_models(house)
    house.keys = f"alice:{KEY}:models=org/*\n"
    async with house.open():
        reply = await house.ask(PATH, {"model": "gpt-9"})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")
    assert reply.error["message"] == "There is no model 'gpt-9'. There is: org/other:q8."


@in_a_loop
async def test_a_model_name_of_any_length_is_not_sent_back_in_full(house: Gatehouse) -> None:
    async with house.open():
        reply = await house.ask(PATH, {"model": "\ud800x" * 50_000})
    assert reply.status == 404
    assert len(reply.error["message"]) < 1000


@in_a_loop
async def test_a_model_that_the_key_may_not_use_is_403_also_by_its_alias(house: Gatehouse) -> None:
    two_models(house)
    house.keys = f"alice:{KEY}:models=org/*\n"
    async with house.open():
        for name in ("demo", "gpt-4o-mini"):
            reply = await house.ask(PATH, {"model": name})
            assert (reply.status, reply.error["type"]) == (403, "permission_error")
            assert reply.error["code"] == "model_not_allowed"
        assert (await house.ask(PATH, {"model": "org/other:q8"})).status == 200
        assert [line[3] for line in await house.logged(3)] == ["403", "403", "200"]
    assert [engine.model for engine in house.engines.started] == ["org/other:q8"]


@in_a_loop
async def test_in_single_model_mode_any_name_and_none_mean_the_one(house: Gatehouse) -> None:
    house.environment = {"MODEL_PATH": "/models/demo.gguf"}
    async with house.open():
        for body in ({"model": "gpt-4o"}, {}, {"model": "demo"}):
            assert (await house.ask(PATH, body)).status == 200
        assert [line[4] for line in await house.logged(3)] == ["demo"] * 3


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
@in_a_loop
async def test_embeddings_of_a_model_that_was_not_set_up_for_them_load_nothing(
    house: Gatehouse, path: str
) -> None:
    house.models = [a_model("demo"), a_model("vectors", embedding=True)]
    async with house.open():
        reply = await house.ask(path, {"model": "demo", "input": "x"})
        assert (reply.status, reply.error["code"]) == (400, "invalid_request")
        assert "was not set up for embeddings" in reply.error["message"]
        assert not house.engines.started
        assert (await house.ask(path, {"model": "vectors", "input": "x"})).status == 200
    assert house.backend.seen[0].target == "/v1/embeddings"


@in_a_loop
async def test_a_form_is_passed_on_untouched_to_the_model_that_one_of_its_fields_names(
    house: Gatehouse,
) -> None:
    two_models(house)
    form = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\0\xff\r\n'
        b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt-4o-mini\r\n--B--\r\n'
    )
    media = "multipart/form-data; boundary=B"
    async with house.open():
        reply = await house.ask("/v1/audio/transcriptions", form, headers={"content-type": media})
        [line] = await house.logged()
    assert (reply.status, line[4]) == (200, "demo")
    assert house.backend.seen[0].body == form
    assert house.backend.seen[0].header("content-type") == media


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@in_a_loop
async def test_without_a_body_the_query_names_the_model(house: Gatehouse, method: str) -> None:
    two_models(house)
    async with house.open():
        reply = await house.ask("/v1/props?model=gpt-4o-mini&a=b", method=method)
        [line] = await house.logged()
        assert (reply.status, line[4]) == (200, "demo")
        assert (await house.ask("/v1/props?model=nobody", method=method)).status == 404
        assert (await house.ask("/v1/props", method=method)).status == 400
    seen = house.backend.seen[0]
    assert (seen.method, seen.target) == (method, "/v1/props?model=gpt-4o-mini&a=b")
    assert seen.header("content-length") is None


@in_a_loop
async def test_a_body_that_names_no_model_may_leave_it_to_the_query(house: Gatehouse) -> None:
    two_models(house)
    async with house.open():
        assert (await house.ask("/v1/anything?model=org/other:q8", {"x": 1})).status == 200
        assert (await house.ask("/v1/anything?model=org/other:q8", {"model": "demo"})).status == 200
        assert [line[4] for line in await house.logged(2)] == ["org/other:q8", "demo"]


# The order of the questions ----------------------------------------------------------------------


@in_a_loop
async def test_who_one_is_comes_before_how_often_and_that_before_how_much(house: Gatehouse) -> None:
    house.keys = f"alice:{KEY}:rpm=2\n"
    house.limits = dataclasses.replace(house.limits, body_max_bytes=100)
    too_large = b"x" * 101
    async with house.open():
        statuses = [
            (await house.ask(PATH, too_large, key="sk-wrong-key")).status,
            (await house.ask(PATH, too_large)).status,
            (await house.ask(PATH, b"{")).status,
            (await house.ask(PATH, too_large)).status,
            (await house.ask(PATH, too_large, key=None)).status,
        ]
        assert statuses == [401, 413, 400, 429, 401]
        logged = [(line[1], line[3], line[9]) for line in await house.logged(5)]
    assert logged == [
        ("-", "401", "invalid_api_key"),
        ("alice", "413", "payload_too_large"),
        ("alice", "400", "invalid_request"),
        ("alice", "429", "rate_limit_exceeded"),
        ("-", "401", "invalid_api_key"),
    ]
    assert not house.engines.started
    assert house.counted("router_requests_total", model="unknown", status="rejected") == 5
    assert house.counted("router_rejections_total", reason="rate_limit_exceeded", key_id="alice") == 1
    assert house.counted("router_rejections_total", reason="invalid_api_key", key_id="-") == 2


@in_a_loop
async def test_a_model_that_need_not_be_loaded_can_be_asked_not_to_be(house: Gatehouse) -> None:
    never = {"x-model-load": "Never"}
    async with house.open():
        refused = await house.ask(PATH, CHAT, headers=never)
        assert (refused.status, refused.error["code"]) == (503, "model_not_loaded")
        assert not house.engines.started
        assert (await house.ask(PATH, CHAT, headers={"x-model-load": "always"})).status == 200
        assert (await house.ask(PATH, CHAT, headers=never)).status == 200


@in_a_loop
async def test_a_large_body_for_which_there_is_no_room_is_to_come_again(house: Gatehouse) -> None:
    house.limits = dataclasses.replace(house.limits, bodies_max_bytes=100_000)
    body = CHAT | {"padding": "x" * 100_000}
    async with house.open():
        reply = await house.ask(PATH, body)
        [line] = await house.logged()
        assert (reply.status, reply.error["code"]) == (503, "too_many_large_bodies")
        assert reply.header("retry-after") == "5"
        assert (line[3], line[9]) == ("503", "too_many_large_bodies")
        assert (await house.ask(PATH, CHAT | {"padding": "x" * 90_000})).status == 200
        assert house.server.body_room.free_bytes == 100_000


# What is left of it ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["answered whole", "streamed", "refused"])
@in_a_loop
async def test_no_request_is_left_for_the_garbage_collector(house: Gatehouse, how: str) -> None:
    """The dead crowd the living out of the processor's caches: they were a fifth of a request's time."""
    if how == "streamed":
        house.backend.script = streaming(b"one", b"two")
    asked, status = (CHAT | {"model": "nobody"}, 404) if how == "refused" else (CHAT, 200)
    async with house.open():
        await house.ask(PATH, CHAT)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(3):
                assert (await house.ask(PATH, asked)).status == status
            await house.logged(4)
            gc.collect()
            left = {type(each).__qualname__ for each in gc.garbage}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not left & {"Call", "Exchange", "Lease", "Ticket", "Strand", "Answer"}
