"""What the header fields say about the body and the connection (RFC 9112 6 and 9.3).

Two readers of one message who disagree here can be made to disagree about where the next one begins.
So every doubt is refused, also where the RFC would let a recipient repair it: a Content-Length given
twice, even with the same value; both ways of framing at once; any coding but a single `chunked`.
Refusals show the value: these fields hold no secrets.
"""

from __future__ import annotations

from corral.errors import ExpectationFailed, InvalidRequest, NotImplementedHere
from corral.formats.http1.events import Version

HTTP_1_0 = (1, 0)
HTTP_1_1 = (1, 1)
CONTENT_LENGTH_DIGITS_MAX = 18  # stays below 2**63


def body_framing(fields: dict[bytes, bytes], version: Version) -> tuple[int | None, bool]:
    """The declared length, and whether the body is chunked."""
    coding = fields.get(b"transfer-encoding")
    length = fields.get(b"content-length")
    if coding is None:
        return (None if length is None else _content_length(length)), False
    if length is not None:
        # RFC 9112 6.3, rule 3: "ought to be handled as an error".
        raise InvalidRequest("Content-Length and Transfer-Encoding are both given; send only one of them")
    if version == HTTP_1_0:
        # RFC 9112 6.1: an HTTP/1.0 message with Transfer-Encoding has faulty framing.
        raise InvalidRequest("Transfer-Encoding is given in HTTP/1.0, which has none; use HTTP/1.1")
    if coding.lower() != b"chunked":
        raise _coding_fault(coding)
    return None, True


def _content_length(value: bytes) -> int:
    # RFC 9110 8.6: Content-Length = 1*DIGIT. Of bytes, isdigit() takes the ten ASCII digits only.
    if value.isdigit() and len(value) <= CONTENT_LENGTH_DIGITS_MAX:
        return int(value)
    if b"," in value:
        # Repeated fields arrive here joined by commas. RFC 9112 6.3, rule 5, would let a recipient
        # accept equal values; who sends two is not worth the risk.
        raise InvalidRequest(f"Content-Length is given more than once: {_shown(value)}")
    if value.isdigit():
        raise InvalidRequest(f"Content-Length is too large: {_shown(value)}")
    raise InvalidRequest(f"Content-Length is not a whole number: {_shown(value)}")


def _coding_fault(value: bytes) -> InvalidRequest:
    codings = [coding.strip().lower() for coding in value.split(b",")]
    if codings[-1] != b"chunked":
        # RFC 9112 6.3, rule 4: the length can't be known, so the answer is 400, not 501.
        return InvalidRequest(f"The last transfer coding is not chunked: {_shown(value)}")
    if codings.count(b"chunked") > 1:
        return InvalidRequest(f"The transfer coding chunked is given more than once: {_shown(value)}")
    if b"" in codings:
        return InvalidRequest(f"Transfer-Encoding has an empty element: {_shown(value)}")
    return NotImplementedHere(f"Only the transfer coding chunked is understood, not {_shown(value)}")


def keeps_alive(fields: dict[bytes, bytes], version: Version) -> bool:
    """Whether the connection outlives this message (RFC 9112 9.3)."""
    connection = fields.get(b"connection")
    if connection is None:
        return version == HTTP_1_1
    connection = connection.lower()
    if version == HTTP_1_1 and b"close" not in connection:  # the usual case needs no list
        return True
    options = [option.strip() for option in connection.split(b",")]
    if b"close" in options:
        return False
    return version == HTTP_1_1 or b"keep-alive" in options


def expects_continue(fields: dict[bytes, bytes], version: Version) -> bool:
    """Whether the client waits for 100 Continue (RFC 9110 10.1.1; in HTTP/1.0 it can't)."""
    expectation = fields.get(b"expect")
    if expectation is None or version == HTTP_1_0:
        return False
    if expectation.lower() != b"100-continue":
        raise ExpectationFailed(
            f"The only expectation that can be met is 100-continue, not {_shown(expectation)}"
        )
    return True


def _shown(value: bytes) -> str:
    text = value[:40].decode("latin-1")
    return ascii(text if len(value) <= 40 else text + "…")
