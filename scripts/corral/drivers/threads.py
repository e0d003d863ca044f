"""Work that blocks, on a thread that nobody waits for at the end.

What asyncio lends out (`to_thread`) is joined when the program ends, however long that takes: a driver that
hangs, or a file on a volume that has gone, would then keep a gateway from ending that was told to. These
are daemon threads. One costs a tenth of a millisecond (measured), so they are for what takes longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")


def in_thread(act: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Begin to do it; the future is what comes of it. Called off, it is done all the same."""
    loop = asyncio.get_running_loop()
    promise: asyncio.Future[T] = loop.create_future()

    def settle(tell: Callable[[], None]) -> None:
        if not promise.done():
            tell()

    def run() -> None:
        try:
            tell = partial(promise.set_result, act())
        except BaseException as error:
            tell = partial(promise.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: it came too late for anybody
            loop.call_soon_threadsafe(settle, tell)

    threading.Thread(target=run, name=name, daemon=True).start()
    return promise
