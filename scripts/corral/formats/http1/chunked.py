"""The chunked transfer coding (RFC 9112 7.1), as far as it needs no memory.

    chunk = chunk-size [ chunk-ext ] CRLF chunk-data CRLF

A backend's stream comes as one small plain chunk per token, and most often one read brings exactly
one of them. `plain_run` finds where such whole chunks end, so that they can be passed on as they are.
Everything else (a chunk in pieces, one with an extension, the last one) goes through the reader's
states.
"""

from __future__ import annotations

from corral.errors import InvalidRequest
from corral.formats.http1 import grammar

# Extensions mean nothing to us and cost a peer nothing; beyond this much in one body they are an attack.
EXTENSIONS_MAX_BYTES = 16384

# How long the chunks are that begin like this. Tokens come in chunks of two or three digits, and in few of
# those lengths: what is looked up is not worked out. A beginning has a whole head in it, so it can't lie.
_BEGINNING_BYTES = len(b"104\r\n")
_LENGTHS_MAX = 4096  # more than there are heads of three digits
_lengths: dict[bytes, int] = {}


def is_plain(data: bytes) -> bool:
    """Whether these bytes are whole plain chunks and nothing else, as nearly every token is."""
    if _lengths.get(data[:_BEGINNING_BYTES]) == len(data) and data.endswith(b"\r\n"):
        return True
    head = grammar.PLAIN_CHUNK_HEAD.match(data)
    if head and _BEGINNING_BYTES - 1 <= head.end() <= _BEGINNING_BYTES and (size := int(head[1], 16)):
        if len(_lengths) >= _LENGTHS_MAX:
            _lengths.clear()
        _lengths[data[:_BEGINNING_BYTES]] = head.end() + size + len(b"\r\n")
    return plain_run(data, 0) == len(data)


def plain_run(buffer: bytes, position: int) -> int:
    """Where the whole plain chunks that begin at `position` end. The last chunk is not one of them."""
    head_at = grammar.PLAIN_CHUNK_HEAD.match
    length = len(buffer)
    while position < length and (head := head_at(buffer, position)):
        size = int(head[1], 16)
        end = head.end() + size
        if size == 0 or not buffer.startswith(b"\r\n", end):
            break
        position = end + 2
    return position


def strip_framing(run: bytes) -> bytes:
    """The bytes within a run of whole plain chunks."""
    payloads = []
    position = 0
    while head := grammar.PLAIN_CHUNK_HEAD.match(run, position):
        start = head.end()
        end = start + int(head[1], 16)
        payloads.append(run[start:end])
        position = end + 2
    return b"".join(payloads)


def chunk_head_fault(line: bytes) -> InvalidRequest:
    """What is wrong with the beginning of a chunk that can't become a chunk's head."""
    digits = line[: grammar.CHUNK_DIGITS_MAX + 1]
    size = len(digits) - len(digits.lstrip(b"0123456789abcdefABCDEF"))
    if size == 0:
        return InvalidRequest(
            f"A chunk of the body begins with the byte 0x{line[0]:02X} and not with its size"
        )
    if size > grammar.CHUNK_DIGITS_MAX:
        return InvalidRequest(f"The size of a chunk has more than {grammar.CHUNK_DIGITS_MAX} digits")
    if grammar.LONG_EXTENSION.match(line, size):
        return InvalidRequest(f"The extension of a chunk is longer than {grammar.EXTENSION_MAX_BYTES} bytes")
    return InvalidRequest("The size of a chunk is not followed by CRLF")
