"""The one table of what is where, and the frame around every request: find, run, answer for, record."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from corral import errors
from corral.catalogue import Catalogue
from corral.drivers.http_server import ClientGone, Exchange
from corral.formats import http1
from corral.handlers import inference, management, models, planning, queue, replies, status
from corral.handlers.call import Call
from corral.handlers.gate import Gate

log = logging.getLogger("corral.routes")

Handler = Callable[[Gate, Call], Coroutine[Any, Any, None]]


class Route(NamedTuple):
    methods: tuple[str, ...]
    handler: Handler


def get(handler: Handler) -> Route:
    return Route(("GET", "HEAD"), handler)


def post(handler: Handler) -> Route:
    return Route(("POST",), handler)


# Whole paths first, then the longest prefix. Open without a key: what `status` answers.
PATHS: dict[str, Route] = {
    "/": get(status.root),
    **{path: get(probe) for path, probe in status.PROBES.items()},
    "/health": get(status.health),
    "/metrics": get(status.metrics),
    "/vram": get(planning.vram),
    "/v1/queue/stats": get(queue.stats),
    "/v1/models": get(models.list_models),
    "/v1/models/load": post(management.load),
    "/v1/models/eject": post(management.eject),
    "/v1/models/plan": post(planning.plan),
    "/v1/models/failed": get(management.failed),
    "/v1/models/status": get(management.all_statuses),
    "/v1/models/status/stream": get(management.status_stream),
    "/v1/chat/completions": post(inference.infer),
    "/v1/completions": post(inference.infer),
    "/v1/embeddings": post(inference.infer),
    "/models": get(models.list_models),
    "/chat/completions": post(inference.infer),
    "/completions": post(inference.infer),
    "/embeddings": post(inference.infer),
    "/invocations": post(inference.infer),
}
# What may follow a model's name. A name may hold slashes, so one that ends like this is a name first.
MODEL_ACTIONS: dict[str, Route] = {
    "/status": get(management.model_status),
    "/reset": post(management.reset),
}
PREFIXES: tuple[tuple[str, Route], ...] = (
    (models.PREFIX, get(models.show_model)),
    ("/models/", get(models.show_model)),
    # Whatever else the engine knows goes to the model that the request names.
    ("/v1/", Route(("GET", "HEAD", "POST"), inference.infer)),
)


def find(path: str, paths: dict[str, Route], catalogue: Catalogue) -> Route:
    route = paths.get(path)
    if route is not None:
        return route
    if path.startswith(models.PREFIX) and catalogue.find(models.name_in(path)) is None:
        for action, route in MODEL_ACTIONS.items():
            if path.endswith(action):
                return route
    for prefix, route in PREFIXES:
        if path.startswith(prefix):
            return route
    raise errors.NotFound(f"There is nothing at {path}. The README lists what is where.")


class Routes:
    """The gate's answer to every request."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._cors = gate.settings.server.cors_origins
        # On both ports the path that the operator chose for probes answers as /ping does, whatever it is.
        self._paths = PATHS | {gate.settings.server.health_check_path: get(status.ping)}

    async def handle(self, exchange: Exchange) -> None:
        call = Call(exchange)
        try:
            if self._cors:
                call.lines += http1.header_lines(replies.cors_headers(exchange, self._cors))
            route = self._paths.get(exchange.head.path) or self._find(exchange.head.path)
            if exchange.head.method in route.methods:
                await route.handler(self._gate, call)
            else:
                without_the_method(call, route)
        except errors.CorralError as error:
            replies.send_error(call, error)
        except ClientGone:
            call.gone = True
            raise
        except Exception:
            head = exchange.head
            log.exception("%s %s failed (request %s)", head.method, head.path, call.request_id)
            replies.send_error(call, errors.CorralError("Corral failed on this request. Its log says why."))
        finally:
            self._gate.recorder.finished(call)

    def _find(self, path: str) -> Route:
        return find(path, self._paths, self._gate.catalogue) if path != "*" else get(status.root)


def without_the_method(call: Call, route: Route) -> None:
    """The answer to OPTIONS, which every path takes, and to a method that this one does not."""
    head = call.exchange.head
    methods = (*route.methods, "OPTIONS")
    if head.method == "OPTIONS":
        replies.send_options(call, methods)
        return
    allow = ", ".join(methods)
    message = f"{head.path} takes {allow}, not {head.method}."
    raise errors.MethodNotAllowed(message, headers=(("allow", allow),))
