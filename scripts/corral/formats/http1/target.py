"""Where a request is meant to go: the request target and the Host field (RFC 9112 3.2).

Of the four forms, an origin server is sent the first three:

    origin-form     /path?query              the usual one
    absolute-form   http://host/path?query   MUST be accepted; its host replaces the Host field
    asterisk-form   *                        OPTIONS only
    authority-form  host:port                CONNECT only, which is for proxies
"""

from __future__ import annotations

from corral.errors import InvalidRequest, NotImplementedHere
from corral.formats.http1 import grammar
from corral.formats.http1.events import Headers, Version
from corral.formats.http1.framing import HTTP_1_1


def split_target(method: str, target: str) -> tuple[str, str, bytes | None]:
    """Path, query, and the authority where the target names one."""
    if method == "CONNECT":
        # RFC 9110 9.1: 501 for a method that is not implemented at all, 405 for one that is
        # implemented but not allowed for this target.
        raise NotImplementedHere("CONNECT is for proxies; this server tunnels nothing")
    if target.startswith("/"):
        path, _, query = target.partition("?")
        return path, query, None
    if target == "*":
        if method != "OPTIONS":
            raise InvalidRequest(f"The request target * is only for OPTIONS, not for {method}")
        return "*", "", None
    absolute = grammar.ABSOLUTE_FORM.fullmatch(target)
    if absolute is None:
        raise InvalidRequest("The request target must begin with / (or be a whole http:// URL)")
    authority = absolute[1].encode("ascii")
    # RFC 9110 4.2.1: an http URI with an empty host is invalid.
    if not grammar.HOST.fullmatch(authority) or authority[:1] in (b"", b":"):
        raise InvalidRequest("The request target is a URL without a valid host")
    return absolute[2] or "/", absolute[3] or "", authority


def check_host(fields: dict[bytes, bytes], headers: Headers, version: Version) -> None:
    """RFC 9112 3.2: 400 for a missing, repeated or invalid Host. HTTP/1.0 may leave it out."""
    host = fields.get(b"host")
    if host is None:
        if version == HTTP_1_1:
            raise InvalidRequest("The Host header is missing, which HTTP/1.1 requires")
    elif not grammar.HOST.fullmatch(host):
        # Joined values hold a space, so a repeated Host never matches.
        if sum(name == b"host" for name, _ in headers) > 1:
            raise InvalidRequest("The Host header is given more than once")
        raise InvalidRequest("The Host header is not a valid host name with an optional port")


def replace_host(authority: bytes, fields: dict[bytes, bytes], headers: Headers) -> None:
    """RFC 9112 3.2.2: the target's own host takes the place of the Host field, in both views."""
    headers[:] = [(b"host", authority), *((name, value) for name, value in headers if name != b"host")]
    fields[b"host"] = authority
