"""The HTTP server: sockets and deadlines on one side, one straight coroutine per request on the other.

    exchange     one request and its answer, as a handler sees them
    connection   one client: requests in order, one handler at a time, deadlines, a dignified close
    body_room    what large bodies may take together
    server       the listener

Nothing here knows of keys, models or JSON: limits come from the caller, and so does the wording of
an error.
"""

from corral.drivers.http_server.connection import ClientGone, ServerLimits
from corral.drivers.http_server.exchange import Exchange, Source
from corral.drivers.http_server.server import HttpServer

__all__ = ["ClientGone", "Exchange", "HttpServer", "ServerLimits", "Source"]
