"""Stands where the gate will be until it is built: probes are answered, and whoever else comes waits for it.

Cards and models take a while to be looked at, seconds with a driver that sleeps. A platform that probes the
gateway's own port must learn meanwhile that it is starting; a client need not learn of it at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from corral.drivers.http_server import Exchange
from corral.formats.status import StatusDocument
from corral.handlers import status
from corral.handlers.call import Call
from corral.handlers.record import Recorder


class Vestibule:
    def __init__(
        self, health_check_path: str, document: Callable[[], StatusDocument], recorder: Recorder
    ) -> None:
        self.status = document
        self._probes = status.PROBES | {health_check_path: status.ping}
        self._recorder = recorder
        self._handle: Callable[[Exchange], Coroutine[Any, Any, None]]
        self._opened = asyncio.Event()

    async def handle(self, exchange: Exchange) -> None:
        probe = self._probes.get(exchange.head.path)
        if probe is None or exchange.head.method not in ("GET", "HEAD"):
            await self._opened.wait()
            await self._handle(exchange)
            return
        call = Call(exchange)
        try:
            await probe(self, call)
        finally:
            self._recorder.finished(call)

    def open(self, handle: Callable[[Exchange], Coroutine[Any, Any, None]]) -> None:
        """The gate is there: `handle` takes those who have waited for it."""
        self._handle = handle
        self._opened.set()
