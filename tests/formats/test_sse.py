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


def test_a_comment_is_one_line_that_readers_skip_and_ends_what_came_before() -> None:
    assert sse.comment("queued position=3") == b": queued position=3\n\n"


def test_what_ends_a_cut_event_is_a_blank_line() -> None:
    assert sse.CUT == b"\n\n"
