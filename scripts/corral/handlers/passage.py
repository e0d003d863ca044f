"""Which headers go on, in both directions: the client's to the engine, and the engine's to the client.

What goes on is decided by a head's own words, and those are the same in request after request. So the
lines that were written for one are kept for the next (see formats/http1/known_heads.py), and what is
left to do for each is to put in its id and its length.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar
from urllib.parse import unquote

from corral.drivers.http_client import Address
from corral.formats import http1, sse
from corral.handlers.replies import JSON_TYPE

K = TypeVar("K")
V = TypeVar("V")

# What a client says to the gate and not to the engine: its key, and what we write ourselves.
NOT_FORWARDED = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"host",
        b"expect",
        b"x-request-id",
        b"x-model-load",
        b"x-request-priority",
        b"x-request-timeout",
        b"origin",
    }
)
# What curl's -d calls every body. It is JSON, as we have seen ourselves, and as a form llama-server takes
# no more than 1 MiB of it (measured: 413 without a word).
CURLS_FORM = (b"content-type", b"application/x-www-form-urlencoded")
# What the engine says to the gate: the gate has its own Date, Server and rules for browsers, and whatever
# else it tells a client itself, it tells alone.
NOT_RETURNED = frozenset(
    {
        b"date",
        b"server",
        b"x-request-id",
        b"x-queue-wait-ms",
        b"x-ratelimit-limit-requests",
        b"x-ratelimit-remaining-requests",
        b"x-ratelimit-reset-requests",
    }
)
RULES_FOR_BROWSERS = b"access-control-"
# Without /v1 the engine speaks an older dialect of its own on these paths. /invocations is the one path on
# which SageMaker lets requests in: there it is a chat.
UPSTREAM_PATHS = {path: "/v1" + path for path in ("/chat/completions", "/completions", "/embeddings")}
UPSTREAM_PATHS["/invocations"] = "/v1/chat/completions"
# For each way: more heads than clients and engines have, and little memory.
KEPT_MAX = 256


class Returned(NamedTuple):
    """What of an engine's head goes on to the client."""

    lines: bytes
    is_event_stream: bool


class Passage:
    """Both ways through one gate."""

    __slots__ = ("_not_returned", "_requests", "_returned")

    def __init__(self, *, varies_by_origin: bool) -> None:
        self._not_returned = NOT_RETURNED | {b"vary"} if varies_by_origin else NOT_RETURNED
        self._requests: dict[tuple[bytes, Address], bytes] = {}
        self._returned: dict[bytes, Returned] = {}

    def request_head(self, head: http1.RequestHead, address: Address, id_line: bytes, length: int) -> bytes:
        """A request's head as the engine gets it: the client's own, less what was for the gate."""
        key = (head.words, address)
        kept = self._requests.get(key)
        if kept is None:
            kept = _request_lines(head, address)
            if head.words:
                _keep(self._requests, key, kept)
        if not length and head.method != "POST":
            return b"%b%b\r\n" % (kept, id_line)
        return b"%b%bcontent-length: %d\r\n\r\n" % (kept, id_line, length)

    def returned(self, head: http1.ResponseHead) -> Returned:
        """What an engine's head says to the client."""
        kept = self._returned.get(head.words)
        if kept is None:
            kept = self._read(head)
            if head.words:
                _keep(self._returned, head.words, kept)
        return kept

    def _read(self, head: http1.ResponseHead) -> Returned:
        dropped = self._not_returned
        is_event_stream = head.fields.get(b"content-type", b"").lower().startswith(sse.CONTENT_TYPE)
        if is_event_stream:
            dropped = dropped.union(name for name, _ in sse.UNBUFFERED)
        lines = http1.header_lines(
            pair
            for pair in http1.end_to_end(head.headers)
            if pair[0] not in dropped and not pair[0].startswith(RULES_FOR_BROWSERS)
        )
        if is_event_stream:
            lines += http1.header_lines(sse.UNBUFFERED)
        return Returned(lines, is_event_stream)


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    if len(kept) >= KEPT_MAX:
        del kept[next(iter(kept))]
    kept[key] = value


def _request_lines(head: http1.RequestHead, address: Address) -> bytes:
    """What stands before a request's id and its length."""
    first = http1.request_head(head.method, upstream_target(head), [(b"host", str(address).encode())])
    forwarded = http1.header_lines(
        JSON_TYPE if pair == CURLS_FORM else pair
        for pair in http1.end_to_end(head.headers)
        if pair[0] not in NOT_FORWARDED
    )
    return first.removesuffix(b"\r\n") + forwarded


def upstream_target(head: http1.RequestHead) -> str:
    """The path as the engine knows it, without a key that a query may carry."""
    kept = [pair for pair in head.query.split("&") if pair and unquote(pair.partition("=")[0]) != "api_key"]
    return UPSTREAM_PATHS.get(head.path, head.path) + ("?" + "&".join(kept) if kept else "")
