"""What a request asks of the queue, by its headers; test_inference_queueing sees the rest from outside."""

from __future__ import annotations

import pytest

from corral import errors
from corral.handlers.wishes import read_timeout


@pytest.mark.parametrize(("text", "seconds"), [(None, None), ("5", 5.0), (" 0.25 ", 0.25), ("1e3", 1000.0)])
def test_a_time_limit_is_a_number_of_seconds(text: str | None, seconds: float | None) -> None:
    assert read_timeout(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "1,5", "5s"])
def test_anything_else_is_refused_and_says_what_would_be_right(text: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="X-Request-Timeout must be a number of seconds"):
        read_timeout(text)
