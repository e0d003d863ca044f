"""Stands where the gate will be until it is built: probes are answered, and whoever else comes waits for it.

Cards and models take a while to be looked at, seconds with a driver that sleeps. A platform that probes the
gateway's own port must learn meanwhile that it is starting; a client need not learn of it at all, unless
the start is given up: then it is told to go elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from corral import errors
from corral.drivers.http_server import ClientGone, Exchange
from corral.fleet import shutting_down
from corral.formats import http1
from corral.formats.status import StatusDocument
from corral.handlers import replies, status
from corral.handlers.call import Call
from corral.handlers.record import Recorder
from corral.settings import Server

Handle = Callable[[Exchange], Coroutine[Any, Any, None]]


class Vestibule:
    def __init__(self, own: Server, document: Callable[[], StatusDocument], recorder: Recorder) -> None:
        self.status = document
        self._probes = status.PROBES | {own.health_check_path: status.ping}
        self._cors = own.cors_origins
        self._recorder = recorder
        self._gate: Handle | None = None
        self._settled = asyncio.Event()

    async def handle(self, exchange: Exchange) -> None:
        gate = await self._receive(exchange)
        if gate is not None:
            await gate(exchange)

    async def _receive(self, exchange: Exchange) -> Handle | None:
        """Answer it here, or say who does."""
        call = Call(exchange)
        call.lines += http1.header_lines(replies.cors_headers(exchange, self._cors))
        gate = None
        try:
            probe = self._probes.get(exchange.head.path)
            if probe is not None and exchange.head.method in ("GET", "HEAD"):
                await probe(self, call)
            else:
                gate = await self._opened()
        except errors.ShuttingDown as error:
            replies.send_error(call, error)
        except ClientGone:
            call.gone = True
            raise
        finally:
            if gate is None:
                self._recorder.finished(call)
        return gate

    async def _opened(self) -> Handle:
        """Wait for the gate. Raises ShuttingDown if there will be none."""
        await self._settled.wait()
        if self._gate is None:
            raise shutting_down()
        return self._gate

    def open(self, gate: Handle) -> None:
        """The gate is there, and takes those who have waited for it."""
        self._gate = gate
        self._settled.set()

    def shut(self) -> bool:
        """If there is no gate by now there will be none. Whether it is so."""
        self._settled.set()
        return self._gate is None
