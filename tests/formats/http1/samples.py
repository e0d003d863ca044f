"""Messages as they come over the wire: good requests and good answers, each under a name."""

from __future__ import annotations

REQUESTS: dict[str, bytes] = {
    "get": b"GET /v1/models HTTP/1.1\r\nHost: localhost:8000\r\n\r\n",
    "query": b"GET /upstream/a%2Fb/x?model=a|b&c={d}&e=[f] HTTP/1.1\r\nHost: h\r\n\r\n",
    "white space around a value": (
        b"GET / HTTP/1.1\r\nHost:h\r\nX-A: \t a b \t \r\nX-Empty:\r\nX-Blank:   \r\n\r\n"
    ),
    "bytes above ASCII in a value": "GET / HTTP/1.1\r\nHost: h\r\nX-Name: Jürgen\r\n\r\n".encode(),
    "length body": (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        b'Content-Length: 13\r\n\r\n{"model":"a"}'
    ),
    "empty body": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
    "chunked": (
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n1\r\n,\r\nA\r\n world\r\n\r\n\r\n0\r\n\r\n"
    ),
    "chunked with extensions and trailers": (
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b'05;a=b\r\nhello\r\n1 ; c="d"\r\n!\r\n3\r\nend\r\n000;last\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n'
    ),
    "no chunks but the last": b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "body that looks like a request": (
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n"
    ),
    "expects 100-continue": (
        b"PUT /x HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\nok"
    ),
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "HTTP/1.0 keep-alive": b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
    "close": b"GET / HTTP/1.1\r\nHost: h\r\nConnection: TE, Close\r\n\r\n",
    "absolute form": b"GET http://example.org:80/a/b?c=d HTTP/1.1\r\nHost: other\r\n\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
    "empty lines first": b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "unknown method": b"BREW /pot HTTP/1.1\r\nHost: h\r\n\r\n",
    "repeated header": b"GET / HTTP/1.1\r\nHost: h\r\nAccept: a\r\nX: 1\r\naccept: b\r\n\r\n",
    "IPv6 host": b"GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n",
}

PIPELINED = b"".join(REQUESTS.values())

# Name: (method of the request, bytes of the answer, whether the end of input belongs to it).
ANSWERS: dict[str, tuple[str, bytes, bool]] = {
    "length body": ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", False),
    "empty body": ("POST", b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n", False),
    "chunked": (
        "POST",
        b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: text/event-stream\r\n\r\n"
        b"0a\r\ndata: {}\n\n\r\nE\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
        False,
    ),
    "chunked with extensions and trailers": (
        "POST",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\none\r\n3;x\r\ntwo\r\n5\r\nthree\r\n4\r\nfour\r\n0\r\nX-Sum: 1\r\n\r\n",
        False,
    ),
    "until close": ("GET", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nas long as it lasts", True),
    "until close, empty": ("GET", b"HTTP/1.0 200 OK\r\n\r\n", True),
    "HTTP/1.0": ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False),
    "HTTP/1.0 keep-alive": (
        "GET",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        False,
    ),
    "HEAD": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", False),
    "HEAD, chunked": ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", False),
    "204": ("POST", b"HTTP/1.1 204 No Content\r\n\r\n", False),
    "304": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", False),
    "interim answers": (
        "POST",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok",
        False,
    ),
    "no phrase": ("GET", b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", False),
    "no phrase and no space": ("GET", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", False),
    "repeated header": (
        "GET",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n",
        False,
    ),
}
