"""Events as they go over the wire."""

from __future__ import annotations

import json

import pytest

from corral.formats import sse


def test_an_event_is_a_name_one_line_of_data_and_a_blank_line() -> None:
    assert sse.event("model_update", {"alias": "m", "status": "off"}) == (
        b'event: model_update\ndata: {"alias":"m","status":"off"}\n\n'
    )


@pytest.mark.parametrize(
    "text", ["a\nb", "a\r\n\r\ndata: b", "a\u2028b", "\x85"], ids=["lf", "crlf", "ls", "nel"]
)
def test_no_text_can_break_out_of_its_line(text: str) -> None:
    payload = sse.event("e", {"text": text})
    lines = payload.decode().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["event", "data", ""]
    assert json.loads(lines[1].removeprefix("data: ")) == {"text": text}
