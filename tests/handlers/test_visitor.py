"""What the words of a head say to the gate."""

from __future__ import annotations

import pytest

from corral import errors
from corral.formats.key_file import Role
from corral.formats.priority import Priority
from corral.handlers import visitor
from corral.handlers.visitor import Visitor
from corral.policy.authentication import Principal
from tests.handlers.gatehouse import request
from tests.handlers.unwired import call_for

ALICE = Principal("alice", Role.USER, 0)


def visit(**headers: str) -> Visitor:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    call, _ = call_for(request("/x", headers=named))
    return visitor.read(call.exchange.head, ALICE)


def test_who_says_nothing_waits_as_usual_and_may_have_a_model_loaded() -> None:
    assert visit(content_type="application/json") == Visitor(
        ALICE, Priority.NORMAL, None, may_load=True, content_type="application/json"
    )


def test_what_is_said_is_understood() -> None:
    said = visit(x_request_priority="low", x_model_load="Never", x_request_timeout="5", content_type="a/b")
    assert said == Visitor(ALICE, Priority.LOW, 5.0, may_load=False, content_type="a/b")


@pytest.mark.parametrize(("text", "seconds"), [("5", 5.0), (" 0.25 ", 0.25), ("1e3", 1000.0)])
def test_a_time_limit_is_a_number_of_seconds(text: str, seconds: float) -> None:
    assert visit(x_request_timeout=text).timeout_s == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "1,5", "5s"])
def test_anything_else_is_a_fault_that_says_what_would_be_right(text: str) -> None:
    fault = visit(x_request_timeout=text).fault
    assert isinstance(fault, errors.InvalidRequest)
    assert "X-Request-Timeout must be a number of seconds" in fault.message
