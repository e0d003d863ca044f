"""All connections to all backends: which is used for a request, and which is kept for the next."""

from __future__ import annotations

from corral.drivers.connections import connect
from corral.drivers.http_client.answer import Answer
from corral.drivers.http_client.connection import Address, BackendGone, ClientConnection, OnSilence
from corral.drivers.patrol import Patrol

IDLE_MAX_PER_ADDRESS = 64
CONNECT_TIMEOUT_S = 5.0


class BackendPool:
    """The connections to one backend."""

    __slots__ = ("_patrol", "idle", "open")

    def __init__(self, patrol: Patrol) -> None:
        self._patrol = patrol
        self.open: set[ClientConnection] = set()
        self.idle: list[ClientConnection] = []  # of these; the last one is used first

    def enter(self, connection: ClientConnection) -> None:
        self.open.add(connection)
        self._patrol.join(connection)

    def keep(self, connection: ClientConnection) -> None:
        if len(self.idle) < IDLE_MAX_PER_ADDRESS:
            self.idle.append(connection)
        else:
            connection.abort()

    def forget(self, connection: ClientConnection) -> None:
        self._patrol.leave(connection)
        self.open.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)


class HttpClient:
    """All connections to all backends."""

    def __init__(self, patrol: Patrol) -> None:
        self._patrol = patrol
        self._pools: dict[Address, BackendPool] = {}

    async def send(
        self,
        address: Address,
        method: str,
        head: bytes,
        body: bytes = b"",
        *,
        silence_s: float,
        on_silence: OnSilence | None = None,
    ) -> Answer:
        """Send `head` and `body`, a whole request together, and return its answer once its head is here.

        Raises BackendGone if no connection can be had or it closes unanswered, UpstreamError for an
        answer that is not HTTP. After `silence_s` without a byte, and after as long again each time,
        `on_silence` is asked; without one that is an UpstreamTimeout.
        """
        pool = self._pools.get(address)
        idle = pool.idle if pool is not None else []
        was_kept, was_sent = bool(idle), False
        connection = idle.pop() if idle else await self._connect(address)
        while True:
            try:
                connection.ask(method, head, body, silence_s, on_silence)
                while True:
                    await connection.bell
                    if (answer := connection.answer()) is not None:
                        return answer
            except BaseException as error:
                connection.abort()
                if isinstance(error, BackendGone):
                    # Only a connection that was kept can have been closed before. And who dies over a request
                    # may still be there when it comes again.
                    was_sent = error.was_sent = was_sent or error.was_sent or not was_kept
                if not (was_kept and isinstance(error, BackendGone)):
                    raise
            # It may have been closed long before. Once more, on a new one.
            was_kept = False
            try:
                connection = await self._connect(address)
            except BackendGone as gone:
                gone.was_sent = was_sent
                raise

    async def _connect(self, address: Address) -> ClientConnection:
        pool = self._pools.setdefault(address, BackendPool(self._patrol))
        connection = ClientConnection(pool, address)
        try:
            await connect(
                address.host, address.port, lambda: connection, CONNECT_TIMEOUT_S, address.socket_path
            )
        except OSError as error:
            gone = BackendGone(f"No connection to the backend at {address}: {error}.")
            gone.was_sent = False
            raise gone from error
        return connection

    def held_up(self, address: Address) -> int:
        """How many answers from there wait for a reader that is slow."""
        pool = self._pools.get(address)
        return 0 if pool is None else sum(connection.is_held_up for connection in pool.open)

    def close(self, address: Address) -> None:
        """Cut every connection to a backend, busy ones too: what a llama-server needs before SIGTERM."""
        pool = self._pools.pop(address, None)
        if pool is not None:
            for connection in tuple(pool.open):
                connection.cut()
