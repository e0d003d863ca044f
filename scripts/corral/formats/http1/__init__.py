"""HTTP/1.1 as values: one sans-IO implementation for both roles.

The theory. A connection is a row of messages, and a message is a head and perhaps a body. The head is
text: a first line (what is asked, or how it went) and header fields, each line ended by CRLF, all of it
ended by an empty line. The body is bytes, and it is the head that says where they end:

    Content-Length: 42             after so many bytes
    Transfer-Encoding: chunked     after a chunk of size 0; each chunk is led by its size
    neither                        a request has no body; an answer goes on until the connection closes
    HEAD, 204, 304                 no body, whatever the head says

Nothing else marks where a message ends. Two programs in a row that count differently see different
messages in the same bytes, and whoever knows how they differ can put a request of his own inside the
body of another (request smuggling). A gate stands exactly where that matters. So this one keeps to the
letter of RFC 9112 where the count depends on it, repairs nothing, refuses what two readers might take
in two ways, and reads nothing more from a connection once it has refused.

Sans-IO: a reader is fed whatever bytes arrived, in whatever pieces, and hands out events; a writer
returns bytes. Neither knows a socket, a clock or a task. Who holds them decides when to read, how
long to wait, and how large a body may be; that makes every rule here testable with values, and the
same rules serve the server's side and the client's.

What is read and written:

    server   RequestReader.feed(bytes)   ->  RequestHead, Data…, END     response_head, chunk, LAST_CHUNK
    client   ResponseReader.feed(bytes)  ->  ResponseHead, Data | Chunks…, END     request_head, chunk

`Chunks` is the one shortcut. A backend that streams tokens sends each as one small chunk, and a proxy
would take the frame off only to put the same frame on again; whole plain chunks are therefore given
out as they stand, most often as the very object that was fed.

The files, in the order of reading:

    grammar    the RFC's grammar as patterns that take linear time
    states     where a reader stands, as a table
    events     what comes out, and the limits
    faults     what exactly is wrong with a head
    target     where a request is meant to go
    framing    what the fields say about the body and the connection
    head       a head's bytes become a value
    known_heads    heads that were read before
    chunked    the chunked coding, as far as it needs no memory
    reader     what both readers share: the buffer, the way through the states, the body
    request_reader, response_reader     what is particular to each role
    writer     heads and chunks as bytes; which headers go on
"""

from __future__ import annotations

from corral.formats.http1.events import (
    END,
    Chunks,
    Data,
    End,
    Event,
    Headers,
    Limits,
    RequestHead,
    ResponseHead,
    Version,
)
from corral.formats.http1.request_reader import RequestReader
from corral.formats.http1.response_reader import ResponseReader
from corral.formats.http1.states import IllegalMove, State
from corral.formats.http1.writer import (
    CONTINUE,
    LAST_CHUNK,
    chunk,
    end_to_end,
    header_lines,
    request_head,
    response_head,
)

__all__ = [
    "CONTINUE",
    "END",
    "LAST_CHUNK",
    "Chunks",
    "Data",
    "End",
    "Event",
    "Headers",
    "IllegalMove",
    "Limits",
    "RequestHead",
    "RequestReader",
    "ResponseHead",
    "ResponseReader",
    "State",
    "Version",
    "chunk",
    "end_to_end",
    "header_lines",
    "request_head",
    "response_head",
]
