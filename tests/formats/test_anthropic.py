from __future__ import annotations

import json

import pytest

from corral import errors
from corral.formats import anthropic


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.UpstreamError("x"), "api_error"),
        (errors.QueueTimeout("x"), "api_error"),
        (errors.RateLimitExceeded("x"), "rate_limit_error"),
        (errors.InvalidRequest("x"), "invalid_request_error"),
        (errors.InvalidApiKey("x"), "authentication_error"),
        (errors.ModelNotAllowed("x"), "permission_error"),
    ],
    ids=lambda value: value.code if isinstance(value, errors.CorralError) else "",
)
def test_an_error_has_the_type_by_which_its_clients_raise(error: errors.CorralError, kind: str) -> None:
    name, data, *rest = anthropic.error_event(error).decode().split("\n")
    assert (name, rest) == ("event: error", ["", ""])
    expected = {"type": "error", "error": {"type": kind, "message": "x"}}
    assert json.loads(data.removeprefix("data: ")) == expected


def test_no_message_can_break_out_of_its_line() -> None:
    event = anthropic.error_event(errors.UpstreamError("a\n\ndata: b"))
    assert event.count(b"\n") == 3
