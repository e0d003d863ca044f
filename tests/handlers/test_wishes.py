"""What a request asks of the queue; test_inference_queueing sees the rest from outside."""

from __future__ import annotations

import pytest

from corral.formats.key_file import Role
from corral.formats.openai import Intent
from corral.formats.priority import Priority
from corral.handlers.visitor import Visitor
from corral.handlers.wishes import PROMPT_TOKENS_MAX, read_wish
from corral.policy.authentication import Principal
from corral.policy.scheduler import Wish
from tests.handlers.gatehouse import request
from tests.handlers.unwired import call_for

KEY = Principal("alice", Role.USER, 0, max_parallel=2, max_waiting=3)


def test_everything_that_was_said_stands_in_its_place() -> None:
    call, _ = call_for(request("/x", headers={"x-request-id": "mine"}))
    call.model = "demo"
    visitor = Visitor(KEY, Priority.HIGH, 5.0, may_load=True, content_type="")
    wish = read_wish(call, visitor, Intent("demo", stream=True, max_tokens=7), 401)
    assert wish == Wish(
        model="demo",
        request_id="mine",
        key_id="alice",
        priority=Priority.HIGH,
        max_parallel=2,
        max_waiting=3,
        prompt_tokens=101,
        max_tokens=7,
        timeout_s=5.0,
    )
    assert (call.wants_stream, call.priority) == (True, Priority.HIGH)


@pytest.mark.parametrize(("body_bytes", "tokens"), [(0, 0), (1, 1), (4, 1), (10**7, PROMPT_TOKENS_MAX)])
def test_a_prompt_is_estimated_by_its_bytes_and_a_picture_by_less(body_bytes: int, tokens: int) -> None:
    call, _ = call_for(request("/x"))
    visitor = Visitor(KEY, Priority.NORMAL, None, may_load=True, content_type="")
    assert read_wish(call, visitor, Intent("demo", stream=False), body_bytes).prompt_tokens == tokens


def test_without_keys_the_share_is_the_address_s() -> None:
    call, _ = call_for(request("/x"))
    nobody = Principal("anonymous", Role.USER, 0, by_address=True)
    visitor = Visitor(nobody, Priority.NORMAL, None, may_load=True, content_type="")
    assert read_wish(call, visitor, Intent("demo", stream=False), 4).key_id == call.exchange.client
