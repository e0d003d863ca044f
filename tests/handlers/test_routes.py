"""What is where, and the frame around every request: methods, unknown paths, browsers, our own failures."""

from __future__ import annotations

from typing import Any

import pytest

from corral.drivers.http_client import Answer
from corral.drivers.http_server import Exchange
from corral.handlers import inference, management, models, queue, status
from corral.handlers.routes import Handler, Routes, find
from tests.handlers.gatehouse import CHAT, KEY, Gatehouse, answering, request
from tests.in_a_loop import in_a_loop
from tests.models import a_model

ORIGIN = {"origin": "https://page.example"}


@pytest.mark.parametrize(
    ("path", "handler", "methods"),
    [
        ("/", status.root, "GET, HEAD"),
        ("/ping", status.ping, "GET, HEAD"),
        ("/v1/chat/completions", inference.infer, "POST"),
        ("/chat/completions", inference.infer, "POST"),
        ("/embeddings", inference.infer, "POST"),
        ("/v1/models", models.list_models, "GET, HEAD"),
        ("/models", models.list_models, "GET, HEAD"),
        ("/v1/models/demo", models.show_model, "GET, HEAD"),
        ("/models/demo", models.show_model, "GET, HEAD"),
        ("/v1/models/load", management.load, "POST"),
        ("/v1/queue/stats", queue.stats, "GET, HEAD"),
        ("/v1/models/org/phi/status", management.model_status, "GET, HEAD"),
        ("/v1/models/org/phi/reset", management.reset, "POST"),
        ("/v1/models/odd/status", models.show_model, "GET, HEAD"),
        ("/v1/models/odd/status/status", management.model_status, "GET, HEAD"),
        ("/v1/messages", inference.infer, "GET, HEAD, POST"),
        ("/v1/", inference.infer, "GET, HEAD, POST"),
    ],
)
def test_each_path_has_its_place(house: Gatehouse, path: str, handler: Handler, methods: str) -> None:
    house.models = [a_model("org/phi"), a_model("odd/status")]
    gate = house.build()
    route = find(path, Routes(gate)._paths, gate.catalogue)
    assert route.handler is handler
    assert ", ".join(route.methods) == methods


@pytest.mark.parametrize(
    "path", ["/v1", "/v2/models", "/chat", "/v1x", "//", "/PING", "/completions/", "/..", "/%76%31/"]
)
@in_a_loop
async def test_a_path_without_a_place_is_404(house: Gatehouse, path: str) -> None:
    async with house.open():
        reply = await house.ask(path)
        [line] = await house.logged()
    assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert reply.error["message"] == f"There is nothing at {path}. The README lists what is where."
    assert line[2:4] == [f"GET {path}", "404"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST, OPTIONS"),
        ("DELETE", "/v1/models", "GET, HEAD, OPTIONS"),
        ("POST", "/ping", "GET, HEAD, OPTIONS"),
        ("PUT", "/v1/anything", "GET, HEAD, POST, OPTIONS"),
        ("BREW", "/", "GET, HEAD, OPTIONS"),
    ],
)
@in_a_loop
async def test_a_method_out_of_place_is_405_and_told_the_right_ones(
    house: Gatehouse, method: str, path: str, allow: str
) -> None:
    async with house.open():
        reply = await house.ask(path, method=method, key=None)
        [line] = await house.logged()
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
    assert reply.header("allow") == allow
    assert reply.error["message"] == f"{path} takes {allow}, not {method}."
    assert (line[3], line[9]) == ("405", "method_not_allowed")


@in_a_loop
async def test_an_error_to_head_has_its_head_and_no_body(house: Gatehouse) -> None:
    async with house.open():
        client = await house.connect()
        client.send(request("/v1/chat/completions", method="HEAD"))
        head = await client.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405 ")
        client.send(request("/ping"))
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


# Browsers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "allow"), [("*", "GET, HEAD, OPTIONS"), ("/v1/embeddings", "POST, OPTIONS")]
)
@in_a_loop
async def test_options_needs_no_key_and_tells_the_methods(house: Gatehouse, path: str, allow: str) -> None:
    async with house.open():
        reply = await house.ask(path, method="OPTIONS", key=None, headers=ORIGIN)
    assert (reply.status, reply.header("allow"), reply.body) == (204, allow, b"")
    assert reply.header("access-control-allow-origin") is None
    assert reply.header("content-length") is None


@in_a_loop
async def test_a_preflight_of_an_allowed_origin_may_send_what_it_asks_for(house: Gatehouse) -> None:
    house.environment = {"CORS_ORIGINS": "https://page.example,https://other.example"}
    wish = {"access-control-request-headers": "authorization, x-request-priority"}
    async with house.open():
        reply = await house.ask("/v1/embeddings", method="OPTIONS", key=None, headers=ORIGIN | wish)
        plain = await house.ask("/v1/embeddings", method="OPTIONS", key=None, headers=ORIGIN)
    assert reply.status == 204
    assert reply.header("access-control-allow-origin") == "https://page.example"
    assert reply.header("access-control-allow-methods") == "POST, OPTIONS"
    assert reply.header("access-control-allow-headers") == "authorization, x-request-priority"
    assert reply.header("access-control-max-age") == "600"
    assert plain.header("access-control-allow-headers") == "authorization, content-type"


@in_a_loop
async def test_a_preflight_of_a_strange_origin_is_let_nothing(house: Gatehouse) -> None:
    house.environment = {"CORS_ORIGINS": "https://other.example"}
    async with house.open():
        reply = await house.ask("/v1/embeddings", method="OPTIONS", key=None, headers=ORIGIN)
    assert not [name for name, _ in reply.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("path", "body", "key", "status"),
    [
        ("/v1/models", None, KEY, 200),
        ("/v1/chat/completions", CHAT, KEY, 200),
        ("/v1/chat/completions", {"model": "broken"}, KEY, 404),
        ("/v1/chat/completions", CHAT, "sk-wrong-wrong", 401),
        ("/nowhere", None, None, 404),
        ("/v1/embeddings", None, None, 405),
    ],
    ids=["list", "answer", "404", "401", "nowhere", "405"],
)
@in_a_loop
async def test_every_answer_can_be_read_by_an_allowed_page_errors_included(
    house: Gatehouse, path: str, body: Any, key: str | None, status: int
) -> None:
    house.environment = {"CORS_ORIGINS": "https://page.example"}
    async with house.open():
        reply = await house.ask(path, body, key=key, headers=ORIGIN)
    assert reply.status == status
    assert reply.header("access-control-allow-origin") == "https://page.example"
    assert reply.header("vary") == "origin"
    exposed = reply.header("access-control-expose-headers") or ""
    assert {"x-request-id", "retry-after"} <= set(exposed.split(", "))


@in_a_loop
async def test_an_engines_error_can_be_read_by_an_allowed_page(house: Gatehouse) -> None:
    house.environment = {"CORS_ORIGINS": "*"}
    house.backend.script = answering(b"no", 500, (b"Access-Control-Allow-Origin", b"https://engine"))
    async with house.open():
        reply = await house.ask("/v1/chat/completions", CHAT, headers=ORIGIN)
    assert (reply.status, reply.header("access-control-allow-origin")) == (500, "*")
    assert reply.header("vary") is None


# Our own failures --------------------------------------------------------------------------------


@in_a_loop
async def test_a_mistake_of_ours_is_500_with_the_requests_id_and_the_reason_in_the_log(
    house: Gatehouse, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise ZeroDivisionError("secret detail")

    async with house.open():
        house.gate.status = broken
        reply = await house.ask("/ping", key=None, headers={"x-request-id": "mine"})
        assert (await house.ask("/healthz", key=None)).status == 200
        line, _ = await house.logged(2)
    assert (reply.status, reply.error["code"]) == (500, "internal_error")
    assert reply.error["message"] == "Corral failed on this request. Its log says why."
    assert reply.header("x-request-id") == "mine"
    assert (line[3], line[9]) == ("500", "internal_error")
    assert "GET /ping failed (request mine)" in caplog.text
    assert "ZeroDivisionError: secret detail" in caplog.text


@in_a_loop
async def test_a_mistake_of_ours_in_the_middle_of_an_answer_breaks_it_off(
    house: Gatehouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_answer: Answer, sink: Exchange) -> None:
        sink.write(b"half")
        raise ZeroDivisionError

    monkeypatch.setattr(Answer, "whole", lambda _answer: None)
    monkeypatch.setattr(Answer, "pour", broken)
    async with house.open():
        client = await house.connect()
        client.send(request("/v1/chat/completions", CHAT))
        assert (await client.rest()).endswith(b"\r\n\r\nhalf")
        [line] = await house.logged()
    assert (line[3], line[9]) == ("200", "internal_error")
    assert "ZeroDivisionError" in caplog.text
