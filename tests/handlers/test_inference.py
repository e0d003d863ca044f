"""A request for tokens through the whole gate: what reaches the engine, what comes back, in good and bad."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re

import pytest

from corral.drivers import clock
from corral.formats import http1
from corral.formats.status import ModelState
from tests.drivers.serving import RawClient
from tests.handlers.gatehouse import (
    CHAT,
    KEY,
    STREAM_HEAD,
    Gatehouse,
    Script,
    Seen,
    answering,
    read_head,
    read_reply,
    request,
    sending,
    silence,
    streaming,
)
from tests.in_a_loop import in_a_loop, turns
from tests.models import a_model
from tests.waiting import eventually

PATH = "/v1/chat/completions"
EVENTS = [b'data: {"n": 1}\n\n', b'data: {"n": 2}\n\n', b"data: [DONE]\n\n"]
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


# From the engine ---------------------------------------------------------------------------------


@in_a_loop
async def test_headers_of_the_engine_come_back_except_those_that_are_the_gates_own(house: Gatehouse) -> None:
    house.backend.script = answering(
        b"{}",
        200,
        (b"Date", b"long ago"),
        (b"Keep-Alive", b"timeout=5"),
        (b"X-Engine", b"kept"),
        (b"Access-Control-Allow-Origin", b"*"),
        (b"Access-Control-Expose-Headers", b"X-Engine"),
        (b"X-Request-Id", b"the-engines"),
        (b"X-Queue-Wait-Ms", b"999999"),
    )
    async with house.open():
        reply = await house.ask(PATH, CHAT, headers={"x-request-id": "mine"})
    names = {name for name, _ in reply.headers}
    assert names == {"date", "content-type", "content-length", "x-engine", "x-request-id", "x-queue-wait-ms"}
    assert reply.header("x-engine") == "kept"
    assert reply.header("date") != "long ago"
    assert reply.header("x-request-id") == "mine"
    assert reply.header("x-queue-wait-ms") == "0"


@in_a_loop
async def test_a_stream_passes_event_by_event_while_it_is_made(house: Gatehouse) -> None:
    go_on = asyncio.Event()

    async def script(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + http1.chunk(EVENTS[0]))
        await go_on.wait()
        writer.write(http1.chunk(EVENTS[1]) + http1.chunk(EVENTS[2]) + http1.LAST_CHUNK)

    house.backend.script = script
    async with house.open():
        client = await house.connect()
        client.send(request(PATH, CHAT | {"stream": True}))
        head = await read_head(client)
        assert head.header("content-type") == "text/event-stream"
        assert head.header("transfer-encoding") == "chunked"
        assert head.header("cache-control") == "no-cache, no-transform"
        assert head.header("x-accel-buffering") == "no"
        assert await client.exactly(len(http1.chunk(EVENTS[0]))) == http1.chunk(EVENTS[0])
        go_on.set()
        rest = http1.chunk(EVENTS[1]) + http1.chunk(EVENTS[2]) + http1.LAST_CHUNK
        assert await client.exactly(len(rest)) == rest
        client.send(request(PATH, CHAT, headers={"connection": "close"}))  # the connection lives on
        go_on.set()
        await client.rest()


@in_a_loop
async def test_a_streams_own_buffering_headers_are_replaced_and_not_doubled(house: Gatehouse) -> None:
    head = http1.response_head(
        200,
        [
            (b"Content-Type", b"Text/Event-Stream; charset=utf-8"),
            (b"Cache-Control", b"public"),
            (b"X-Accel-Buffering", b"yes"),
            (b"Transfer-Encoding", b"chunked"),
        ],
    )
    house.backend.script = sending(head + http1.chunk(EVENTS[2]) + http1.LAST_CHUNK)
    async with house.open():
        reply = await house.ask(PATH, CHAT)
    assert reply.header("cache-control") == "no-cache, no-transform"
    assert reply.header("x-accel-buffering") == "no"
    assert reply.header("content-type") == "Text/Event-Stream; charset=utf-8"


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (400, b'{"error": {"message": "bad grammar", "code": 400}}', "invalid_request", "bad grammar"),
        (
            400,
            b'{"error": {"message": "too long", "type": "exceed_context_size_error", "n_ctx": 512}}',
            "context_length_exceeded",
            "too long",
        ),
        (501, b'{"error": {"message": "no", "kind": "x"}}', "upstream_error", "no"),
        (500, b"", "upstream_error", "The engine gave no reason."),
        (503, b"\xff<html>", "upstream_error", "\ufffd<html>"),
    ],
)
@in_a_loop
async def test_an_engines_error_keeps_its_status_and_gets_our_envelope(
    house: Gatehouse, status: int, body: bytes, code: str, message: str
) -> None:
    house.backend.script = answering(body, status, (b"Retry-After", b"9"), media=b"text/html")
    async with house.open():
        reply = await house.ask(PATH, CHAT, headers={"x-request-id": "mine"})
        [line] = await house.logged()
    assert (reply.status, reply.error["code"], reply.error["message"]) == (status, code, message)
    assert reply.header("content-type") == "application/json"
    assert reply.header("x-request-id") == "mine"
    assert line[3] == str(status)
    assert house.counted("router_requests_total", model="demo", status="error") == 1
    assert house.counted("router_time_to_first_token_seconds", model="demo") == 0


@in_a_loop
async def test_an_engines_error_without_end_is_cut_and_told_as_our_own(house: Gatehouse) -> None:
    endless = http1.response_head(500, [(b"Transfer-Encoding", b"chunked")])
    house.backend.script = sending(endless, *[http1.chunk(b"x" * 65536)] * 8)
    async with house.open():
        reply = await house.ask(PATH, CHAT)
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([EVENTS[0]], EVENTS[0]),
        ([EVENTS[0], b'data: {"n"'], EVENTS[0] + b'data: {"n"' + b"\n\n"),
        ([EVENTS[0], b"data: x\n"], EVENTS[0] + b"data: x\n" + b"\n\n"),
        ([], b""),
    ],
    ids=["after an event", "inside an event", "before its last line end", "before the first"],
)
@in_a_loop
async def test_a_stream_that_breaks_ends_with_one_error_event_and_no_done(
    house: Gatehouse, pieces: list[bytes], expected: bytes
) -> None:
    house.backend.script = sending(STREAM_HEAD, *map(http1.chunk, pieces), close=True)
    async with house.open():
        client = await house.connect()
        client.send(request(PATH, CHAT | {"stream": True}))
        reply = await read_reply(client)
        assert reply.status == 200
        assert reply.body.startswith(expected)
        event = reply.body.removeprefix(expected)
        assert event.startswith(b"data: {")
        assert event.endswith(b"}\n\n")
        assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
        assert await client.rest() == b"", "the connection is closed"
        [line] = await house.logged()
        assert (line[3], line[9]) == ("200", "upstream_error")
        assert house.counted("router_requests_total", model="demo", status="error") == 1


@pytest.mark.parametrize("framing", ["length", "chunked"])
@in_a_loop
async def test_a_broken_body_that_is_no_stream_is_closed_without_its_end(
    house: Gatehouse, framing: str
) -> None:
    field = (b"Content-Length", b"100") if framing == "length" else (b"Transfer-Encoding", b"chunked")
    head = http1.response_head(200, [(b"Content-Type", b"application/json"), field])
    half = b'{"choices": ['
    house.backend.script = sending(head, half if framing == "length" else http1.chunk(half), close=True)
    async with house.open():
        client = await house.connect()
        client.send(request(PATH, CHAT))
        assert (await read_head(client)).status == 200
        rest = await client.rest()
        [line] = await house.logged()
    assert rest == (half if framing == "length" else http1.chunk(half))
    assert (line[3], line[9]) == ("200", "upstream_error")


@pytest.mark.parametrize(
    ("pieces", "close"),
    [([], True), ([b"\0\xffnot HTTP\r\n\r\n"], False), ([b"HTTP/1.1 200 OK\r\nContent-Len"], True)],
    ids=["closed", "garbage", "half a head"],
)
@in_a_loop
async def test_an_engine_that_answers_no_http_is_502(
    house: Gatehouse, pieces: list[bytes], close: bool
) -> None:
    house.backend.script = sending(*pieces, close=close)
    async with house.open():
        reply = await house.ask(PATH, CHAT)
        [line] = await house.logged()
    assert (reply.status, reply.error["type"], reply.error["code"]) == (502, "server_error", "upstream_error")
    assert reply.header("x-request-id") == line[8]
    assert (line[3], line[9]) == ("502", "upstream_error")


@in_a_loop
async def test_a_request_takes_no_longer_than_it_may(house: Gatehouse) -> None:
    house.config = {"system": {"request_max_sec": 1}, "models": {"demo": {"model_path": "x.gguf"}}}
    house.backend.script = silence
    async with house.open():
        settings = house.gate.settings
        herd = dataclasses.replace(settings.herd, request_max_s=0.02)
        house.gate.settings = dataclasses.replace(settings, herd=herd)
        reply = await house.ask(PATH, CHAT)
        assert (reply.status, reply.error["code"]) == (504, "upstream_timeout")
        assert "request_max_sec" in reply.error["message"]
        await eventually(lambda: house.backend.clients_gone == 1, "the engine's connection is closed")


@in_a_loop
async def test_head_of_an_engines_path_has_the_head_and_no_body(house: Gatehouse) -> None:
    house.backend.script = answering(b"12345")
    async with house.open():
        client = await house.connect()
        client.send(request("/v1/props", method="HEAD"))
        head = await read_reply(client, "HEAD")
        assert (head.status, head.header("content-length")) == (200, "5")
        client.send(request("/v1/props"))
        assert (await read_reply(client)).body == b"12345"


BIG = bytes(range(256)) * 16_000


@pytest.mark.parametrize(
    "script",
    [
        answering(BIG),
        streaming(*(BIG[start : start + 70_001] for start in range(0, len(BIG), 70_001))),
        streaming(*(BIG[start : start + 9_999] for start in range(0, len(BIG), 9_999))),
        sending(http1.response_head(200, []) + BIG, close=True),
    ],
    ids=["with a length", "in large chunks", "in small chunks", "up to the close"],
)
@in_a_loop
async def test_a_big_answer_comes_whole(house: Gatehouse, script: Script) -> None:
    house.backend.script = script
    async with house.open():
        assert (await house.ask(PATH, CHAT)).body == BIG


@in_a_loop
async def test_a_slow_reader_slows_down_its_own_engine_and_gets_everything(house: Gatehouse) -> None:
    event = b"data: " + b"x" * 65_000 + b"\n\n"
    events = 400
    sent = 0

    async def script(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(STREAM_HEAD)
        for _ in range(events):
            writer.write(http1.chunk(event))
            await writer.drain()
            sent += 1
        writer.write(http1.LAST_CHUNK)

    house.backend.script = script
    async with house.open():
        client = await house.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(request(PATH, CHAT | {"stream": True}))
        await eventually(lambda: sent > 0, "the stream has begun")
        before = -1
        while sent != before:  # until every buffer on the way is full
            before = sent
            for _ in range(20):
                await asyncio.sleep(0.005)
        assert sent < events
        # Meanwhile another is served as if nothing were.
        assert (await house.ask("/v1/models")).status == 200
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await read_reply(client)).body == event * events


# Clients that leave ------------------------------------------------------------------------------


async def leaves(client: RawClient) -> None:
    client.close()
    await turns()


@in_a_loop
async def test_a_client_that_leaves_before_its_answer_frees_its_slot_and_the_engine(house: Gatehouse) -> None:
    house.backend.script = silence
    async with house.open():
        client = await house.connect()
        client.send(request(PATH, CHAT))
        await eventually(lambda: house.backend.seen, "the engine has the request")
        await leaves(client)
        await eventually(lambda: house.backend.clients_gone == 1, "the engine's connection is closed")
        [line] = await house.logged()
    assert (line[3], line[4], line[9]) == ("499", "demo", "client_gone")
    assert house.counted("router_requests_total", model="demo", status="cancelled") == 1


@in_a_loop
async def test_a_client_that_leaves_a_stream_stops_it_and_can_be_seen_in_the_log(house: Gatehouse) -> None:
    house.backend.script = sending(STREAM_HEAD, http1.chunk(EVENTS[0]))
    async with house.open():
        client = await house.connect()
        client.send(request(PATH, CHAT | {"stream": True}))
        await client.until(EVENTS[0])
        await leaves(client)
        await eventually(lambda: house.backend.clients_gone == 1, "the engine's connection is closed")
        [line] = await house.logged()
    assert (line[3], line[9]) == ("200", "client_gone")
    assert house.counted("router_requests_total", model="demo", status="cancelled") == 1
    assert house.counted("router_time_to_first_token_seconds", model="demo") == 1


@in_a_loop
async def test_a_client_that_leaves_while_its_model_loads_leaves_the_queue(house: Gatehouse) -> None:
    async with house.open():
        house.engines.loads_at_once = False
        client = await house.connect()
        client.send(request(PATH, CHAT))
        await eventually(lambda: house.fleet.queue_depth("demo") == 1, "the request waits")
        await leaves(client)
        await eventually(lambda: house.fleet.queue_depth("demo") == 0, "the queue is empty")
        [line] = await house.logged()
        assert (line[3], line[9]) == ("499", "client_gone")
        assert house.fleet.state("demo") is ModelState.LOADING
    assert not house.backend.seen


@in_a_loop
async def test_a_wait_for_a_load_is_told_to_the_client_and_counted(house: Gatehouse) -> None:
    async with house.open():
        house.engines.loads_at_once = False
        asked = asyncio.ensure_future(house.ask(PATH, CHAT))
        await eventually(lambda: house.fleet.queue_depth("demo") == 1, "the request waits")
        await asyncio.sleep(0.01)
        house.engines.of("demo").answers()
        reply = await asked
        assert int(reply.header("x-queue-wait-ms") or 0) >= 10
        assert house.counted("router_queue_wait_seconds", model="demo", priority="normal") == 1


@in_a_loop
async def test_a_model_that_dies_loading_is_503_with_its_last_words(house: Gatehouse) -> None:
    async with house.open():
        house.engines.loads_at_once = False
        asked = asyncio.ensure_future(house.ask(PATH, CHAT))
        await eventually(lambda: house.fleet.queue_depth("demo") == 1, "the request waits")
        house.engines.of("demo").ends("exit code 1")
        reply = await asked
        [line] = await house.logged()
    assert (reply.status, reply.error["code"]) == (503, "model_failed")
    assert "exit code 1 | loading | no such tensor" in reply.error["message"]
    # Whoever is told when to come back is not told to stay away.
    assert reply.header("retry-after") in ("1", "2")
    assert reply.header("x-should-retry") is None
    assert (line[3], line[9]) == ("503", "model_failed")
    assert house.counted("router_requests_total", model="demo", status="rejected") == 1
    assert house.counted("router_rejections_total", reason="model_failed", key_id="alice") == 1


@in_a_loop
async def test_a_request_whose_engine_dies_unanswered_is_sent_once_more_and_only_once(
    house: Gatehouse,
) -> None:
    died = []

    async def dies(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        died.append(house.engines.of("demo"))
        house.engines.of("demo").ends("killed by SIGSEGV")
        writer.close()

    async with house.open():
        house.backend.script = dies
        asked = asyncio.ensure_future(house.ask(PATH, CHAT))
        await eventually(lambda: house.fleet.state("demo") is ModelState.BACKOFF, "the engine has died")
        # Not kept: a kept connection that closes unanswered is tried anew by the client already.
        house.backend.script = answering(b"second", 200, (b"Connection", b"close"))
        house.fleet.tick(clock.monotonic() + 2)
        assert (await asked).body == b"second"
        assert len(died) == 1
        [line] = await house.logged()
        assert (line[3], line[9]) == ("200", "-")

        house.backend.script = dies
        asked = asyncio.ensure_future(house.ask(PATH, CHAT))
        await eventually(lambda: len(died) == 2, "the engine has died again")
        await eventually(lambda: house.fleet.queue_depth("demo") == 1, "the request waits for another")
        house.fleet.tick(clock.monotonic() + 3)
        reply = await asked
    assert len(died) == 3
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert "will not be given it again" in reply.error["message"]
    assert reply.header("x-should-retry") == "false"


@in_a_loop
async def test_once_the_fleet_is_closed_everybody_is_told_to_come_back_later(house: Gatehouse) -> None:
    async with house.open():
        house.fleet.refuse_waiting()
        reply = await house.ask(PATH, CHAT)
    assert (reply.status, reply.error["code"]) == (503, "shutting_down")
    assert (reply.header("retry-after"), reply.header("retry-after-ms")) == ("5", "5000")


@in_a_loop
async def test_the_gates_own_share_of_the_time_leaves_out_the_clients_and_the_engines(
    house: Gatehouse,
) -> None:
    async def slowly(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        await answering()(seen, writer)

    house.backend.script = slowly
    async with house.open():
        client = await house.connect()
        whole = request(PATH, CHAT)
        client.send(whole[:-5])
        await eventually(lambda: house.server.busy, "the head is here")
        await asyncio.sleep(0.2)
        client.send(whole[-5:])
        assert (await read_reply(client)).status == 200
        await house.logged()
        [line] = house.scraped("router_overhead_seconds_sum")
    assert float(line.split()[1]) < 0.2
