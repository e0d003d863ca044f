"""The HTTP server: sockets and deadlines on one side, one straight coroutine per request on the other.

    exchange     one request and its answer, as a handler sees them
    connection   one client: requests in order, one handler at a time, deadlines, a dignified close
    body_room    what large bodies may take together
    limits       what a server takes of its clients
    server       the listener

Nothing here knows of keys, models or JSON: limits come from the caller, and so does the wording of
an error.
"""

from corral.drivers.http_server.connection import ClientGone
from corral.drivers.http_server.exchange import Exchange, Source
from corral.drivers.http_server.limits import BODIES_MAX_BYTES, ServerLimits
from corral.drivers.http_server.server import HttpServer

__all__ = ["BODIES_MAX_BYTES", "ClientGone", "Exchange", "HttpServer", "ServerLimits", "Source"]
