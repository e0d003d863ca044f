"""Coroutine functions as tests: each on an event loop of its own, within a deadline."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")
DEADLINE_S = 20.0


def in_a_loop(scenario: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @functools.wraps(scenario)
    def test(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(scenario(*args, **kwargs), DEADLINE_S))

    return test


async def turns(count: int = 3) -> None:
    """Let the loop go round: enough for whoever was rung to run."""
    for _ in range(count):
        await asyncio.sleep(0)
