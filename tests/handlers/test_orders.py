"""Orders to the gate itself: a body that it has to understand as a whole is small, or refused."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from corral.formats.json_outline import LARGE_BYTES
from tests.handlers.gatehouse import KEY, read_reply
from tests.handlers.yard import Yard, with_yard

PATHS = ["/v1/models/load", "/v1/models/eject", "/v1/models/plan"]
TAKES_ORDERS = pytest.mark.parametrize("path", PATHS)


@pytest.fixture
def yard(tmp_path: Path) -> Callable[..., Yard]:
    return functools.partial(Yard, tmp_path)


def order(size_bytes: int) -> bytes:
    """For a model that there is not, in so many bytes."""
    bare = json.dumps({"model": "nobody", "padding": ""}).encode()
    return bare[:-2] + b"x" * (size_bytes - len(bare)) + bare[-2:]


@TAKES_ORDERS
@with_yard()
async def test_an_order_as_large_as_may_be_is_read(yard: Yard, path: str) -> None:
    answer = await yard.ask(path, order(LARGE_BYTES))
    assert (answer.status, answer.json()["error"]["code"]) == (404, "model_not_found")


@TAKES_ORDERS
@with_yard()
async def test_a_larger_one_is_refused_and_so_is_what_need_not_be_read_to_know(yard: Yard, path: str) -> None:
    answer = await yard.ask(path, order(LARGE_BYTES + 1))
    assert (answer.status, answer.error["code"]) == (413, "payload_too_large")
    assert answer.error["message"] == f"The request body is larger than {LARGE_BYTES} bytes. Send less."
    announced = await yard.send(path, b"", headers={"content-length": "10000000"})
    assert (await read_reply(announced)).status == 413
    assert not yard.engines.started


@TAKES_ORDERS
@with_yard()
async def test_one_that_does_not_tell_its_length_is_refused_when_it_is_too_long(
    yard: Yard, path: str
) -> None:
    client = await yard.connect()
    fields = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = order(LARGE_BYTES + 1)
    client.send(f"POST {path} HTTP/1.1\r\n{fields}".encode() + b"%x\r\n%b\r\n" % (len(body), body))
    assert (await read_reply(client)).status == 413


@TAKES_ORDERS
@with_yard()
async def test_where_less_is_allowed_to_all_less_is_allowed_here(yard: Yard, path: str) -> None:
    yard.server.limits = dataclasses.replace(yard.server.limits, body_max_bytes=100)
    answer = await yard.ask(path, order(101))
    assert answer.status == 413
    assert "larger than 100 bytes. Send less, or raise MAX_REQUEST_BODY_SIZE." in answer.error["message"]


@with_yard()
async def test_a_plan_for_all_needs_no_body_and_another_order_does(yard: Yard) -> None:
    assert (await yard.ask("/v1/models/load", method="POST")).status == 400
    answer = await yard.ask("/v1/models/plan", method="POST")
    assert answer.status != 400
