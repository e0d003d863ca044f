"""The gate: everything a handler may use, and the questions that a request is asked.

One object instead of globals, so that a test builds a gate from parts of its own choice. The questions
(who are you, not too often, which model) are answered by policy; the gate holds the state that those
answers need: the key ring, a window per key, the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from corral import errors
from corral.catalogue import Catalogue, Model
from corral.drivers import clock
from corral.drivers.http_client import HttpClient
from corral.drivers.http_server import Exchange
from corral.fleet import Fleet
from corral.formats.status import StatusDocument
from corral.handlers import visitor
from corral.handlers.call import Call
from corral.handlers.passage import Passage
from corral.handlers.record import Recorder
from corral.handlers.visitor import Visitor
from corral.metrics import Metrics
from corral.policy import authentication, rate_limit
from corral.policy.authentication import KeyRing, Principal
from corral.policy.rate_limit import RateLimiter
from corral.settings import Settings

# A name that is sent back in an error: as long as any name of a model would be, and no longer.
NAME_CHARS_SHOWN = 200
RECOGNISED_MAX = 1024


@dataclass
class Gate:
    version: str
    settings: Settings
    catalogue: Catalogue
    fleet: Fleet
    client: HttpClient
    metrics: Metrics
    keys: KeyRing
    recorder: Recorder
    # What the status file says, from the same source: two ports can't disagree.
    status: Callable[[], StatusDocument]
    open_connections: Callable[[], int]
    dropped_log_lines: Callable[[], int]
    limiter: RateLimiter = field(default_factory=RateLimiter)
    started_at: float = field(default_factory=clock.monotonic)
    # Requests for tokens whose bodies are still on their way: somebody is at it, but no model knows yet.
    arriving: int = 0
    passage: Passage = field(init=False)
    # Visitors by the words of a request's head, and the ring by which they were found.
    _recognised: dict[bytes, Visitor] = field(default_factory=dict)
    _recognised_by: KeyRing | None = None

    def __post_init__(self) -> None:
        origins = self.settings.server.cors_origins
        self.passage = Passage(varies_by_origin=bool(origins) and "*" not in origins)

    def authenticate(self, call: Call, *, key_in_query: bool = False) -> Principal:
        """Who is asking. Raises InvalidApiKey.

        A browser's EventSource can't send headers, so a stream may be asked for with `?api_key=`. Nothing
        else may: a URL ends up in histories and in the logs of proxies.
        """
        principal = self._identify(call, key_in_query)
        call.key_id = principal.key_id
        return principal

    def recognise(self, call: Call) -> Visitor:
        """Who is asking, and how. Raises InvalidApiKey."""
        head = call.exchange.head
        known = self._recognised.get(head.words)
        if known is not None and self._recognised_by is self.keys:
            call.key_id = known.principal.key_id
            return known
        found = visitor.read(head, self.authenticate(call))
        # The same words mean the same key, and the same ring knows the same principal, unless it expires.
        if head.words and found.principal.expires is None and found.fault is None:
            if self._recognised_by is not self.keys:
                self._recognised, self._recognised_by = {}, self.keys
            if len(self._recognised) >= RECOGNISED_MAX:
                del self._recognised[next(iter(self._recognised))]
            self._recognised[head.words] = found
        return found

    def _identify(self, call: Call, key_in_query: bool) -> Principal:
        access = self.settings.access
        head = call.exchange.head
        if not access.enabled:
            return authentication.anonymous(access.requests_per_minute, admin=access.admin_without_auth)
        api_key = head.header(b"x-api-key") or (call.query("api_key") if key_in_query else None)
        return authentication.authenticate(self.keys, head.header(b"authorization"), api_key, clock.today())

    def admit(self, call: Call, principal: Principal) -> None:
        """Count one request against the key's window. Raises RateLimitExceeded."""
        admission = self.limiter.admit(principal, call.exchange.client, call.exchange.received_at)
        call.lines += rate_limit.lines(admission)
        if not admission.allowed:
            raise rate_limit.refusal(admission)

    async def receive(self, exchange: Exchange) -> bytes:
        """The body of a request for tokens that is not here yet."""
        self.arriving += 1
        try:
            return await exchange.body()
        finally:
            self.arriving -= 1

    def choose_model(self, name: str | None, principal: Principal) -> Model:
        """The model that a request means, if the principal may use it."""
        wanted = self._meant(name)
        model = self.catalogue.find(wanted)
        if model is None:
            raise self._not_found(wanted, principal)
        if not authentication.permits(principal, model.name):
            raise errors.ModelNotAllowed(
                f"This key may not use the model {model.name!r}. GET /v1/models lists those it may use."
            )
        return model

    def _meant(self, name: str | None) -> str:
        """The name of the model that a request means by this one, or by none."""
        models = self.catalogue.models
        if self.settings.single_model is not None:
            return next(iter(models))
        if name is not None:
            return name
        if self.settings.default_model is not None:
            return self.settings.default_model
        if len(models) == 1:
            return next(iter(models))
        raise errors.InvalidRequest(
            "The request names no model. Set 'model' to one that GET /v1/models lists.", param="model"
        )

    def _not_found(self, name: str, principal: Principal) -> errors.ModelNotFound:
        names = [model.name for model in self.permitted(principal)]
        return errors.ModelNotFound(
            f"There is no model {name[:NAME_CHARS_SHOWN]!r}. "
            f"There is: {', '.join(names) or 'none that this key may use'}.",
            param="model",
        )

    def permitted(self, principal: Principal) -> list[Model]:
        """The models that a principal may know of."""
        return [
            model for model in self.catalogue.models.values() if authentication.permits(principal, model.name)
        ]
