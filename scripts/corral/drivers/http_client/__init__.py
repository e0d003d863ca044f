"""The HTTP client: kept-alive connections to the llama-servers, one answer at a time on each.

    answer       one answer: its head is here, its body is on its way
    connection   one socket to one backend
    client       all of them

`send` writes a request and returns once the head of its answer is here. The caller then reads the body
whole, or pours it into a sink as it comes.

An answer that is let go before its end closes its connection at once: for llama-server that is the one
signal to stop generating. A kept connection may turn out closed when it is used again; llama-server
closes one after 5 s of idleness and after 100 requests (measured). If not a byte of an answer came, the
request is sent once more on a new connection (RFC 9110, 9.2.2).
"""

from corral.drivers.http_client.answer import Answer
from corral.drivers.http_client.client import HttpClient
from corral.drivers.http_client.connection import Address, BackendGone

__all__ = ["Address", "Answer", "BackendGone", "HttpClient"]
