"""What the tests of the whole say and hear: requests for the demo model, streams of events, raw bytes."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from email.parser import BytesParser
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from corral.formats import prometheus_text
from tests.support import REQUEST_TIMEOUT_S, Answer, Corral, ask, open_request
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
# A stream that the real engine goes on with until its client leaves.
ENDLESS: dict[str, Any] = {"stream": True, "ignore_eos": True, "max_tokens": -1}
LARGE_CONTEXT = ["--ctx-size", "131072"]
DONE = "[DONE]"


def chat(model: str = "demo", **options: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": "Who are you?"}], **options}


def open_chat(corral: Corral, **options: Any) -> AbstractContextManager[http.client.HTTPResponse]:
    """Ask for a chat and read the answer as it comes. Leaving early closes the connection."""
    return open_request(corral.url + CHAT, chat(**options), headers=authorization(corral))


def authorization(corral: Corral) -> dict[str, str]:
    return {"Authorization": f"Bearer {corral.key}"}


def content(answer: Answer) -> str:
    """The text of an answer that is no stream."""
    assert answer.status == 200, answer.body
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


# Streams ----------------------------------------------------------------------------------------


def events(body: bytes) -> list[Any]:
    """The events of a whole stream: parsed, `[DONE]` as it stands. Comments are none."""
    assert body.endswith(b"\n\n"), "the stream ends inside an event"
    lines = (block.removeprefix("data: ") for block in body.decode().split("\n\n") if block)
    return [line if line == DONE else json.loads(line) for line in lines if not line.startswith(":")]


def last_event(body: bytes) -> Any:
    """The last event of a stream that was broken off, perhaps in the middle of the one before."""
    assert body.endswith(b"\n\n"), "the stream ends inside an event"
    return json.loads(body.split(b"\n\n")[-2].removeprefix(b"data: "))


def next_event(stream: http.client.HTTPResponse) -> Any:
    """The next event of a stream that goes on."""
    line = stream.readline()
    assert line.startswith(b"data: "), line
    assert stream.readline() == b"\n"
    text = line.removeprefix(b"data: ").strip()
    return DONE if text == DONE.encode() else json.loads(text)


def streamed_text(parts: list[Any]) -> str:
    """What a chat's events say, put together."""
    choices = [choice for part in parts if part != DONE for choice in part["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


# The herd ---------------------------------------------------------------------------------------


def model_status(corral: Corral, model: str = "demo") -> Any:
    """State, port and pid of a model, as the health server tells them."""
    answer = ask(f"{corral.health_url}/status/{model}")
    assert answer.status == 200, answer.body
    return answer.json()


def is_in_state(corral: Corral, state: str, model: str = "demo") -> bool:
    return bool(model_status(corral, model)["status"] == state)


def busy_slots(corral: Corral, model: str = "demo") -> int:
    """How many slots of a loaded model work just now, as its llama-server tells it."""
    status = model_status(corral, model)
    if status["status"] != "ready":
        return 0
    return sum(slot["is_processing"] for slot in ask(f"http://127.0.0.1:{status['port']}/slots").json())


def engine_log(corral: Corral, model: str = "demo") -> str:
    """What a model's newest llama-server has said, as far as it is written yet."""
    newest = corral.data / "logs" / f"llama-{model}" / "latest.txt"
    return newest.read_text(errors="replace") if newest.exists() else ""


def metric(corral: Corral, name: str, **labels: str) -> float:
    """The sum of a metric over all series with these labels."""
    wanted = labels.items()
    families = prometheus_text.parse(ask(f"{corral.url}/metrics").body)
    assert any(name.startswith(family.name) for family in families), f"/metrics has no {name}"
    samples = (sample for family in families for sample in family.samples if sample.name == name)
    return sum(sample.value for sample in samples if wanted <= dict(sample.labels).items())


def wait_for_queue(corral: Corral, depth: int, model: str = "demo") -> None:
    wait_until(
        lambda: metric(corral, "router_queue_depth", model=model) == depth,
        f"{depth} requests wait for {model}",
    )


# Bytes by hand ----------------------------------------------------------------------------------


class RawAnswer(NamedTuple):
    status: int
    version: str
    headers: Any
    body: bytes

    def error(self) -> Any:
        return json.loads(self.body)["error"]


class Wire:
    """A TCP connection on which a test says exactly what it likes."""

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self._reader = client.makefile("rb")

    def say(self, *pieces: bytes | str) -> None:
        """Send each piece by itself."""
        for piece in pieces:
            self.socket.sendall(piece.encode() if isinstance(piece, str) else piece)

    def hear(self, method: str = "GET") -> RawAnswer:
        """The next answer, whole. To HEAD there is no body, whatever the head says."""
        version, status, _reason = self._reader.readline().decode("latin-1").split(" ", 2)
        lines = iter(self._reader.readline, b"\r\n")
        headers = BytesParser().parsebytes(b"".join(lines))
        return RawAnswer(int(status), version, headers, self._body(method, int(status), headers))

    def _body(self, method: str, status: int, headers: Any) -> bytes:
        if method == "HEAD" or status < 200 or status in (204, 304):
            return b""
        if headers["transfer-encoding"] == "chunked":
            return b"".join(self._chunks())
        if headers["content-length"] is None:
            return self._reader.read()
        return self._reader.read(int(headers["content-length"]))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self._reader.readline(), 16):
            yield self._reader.read(size)
            assert self._reader.readline() == b"\r\n"
        assert self._reader.readline() == b"\r\n"

    def peek(self) -> bytes:
        """What has come so far and was not heard yet; it stays there to be heard."""
        try:
            return self.socket.recv(65_536, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def at_end(self) -> bool:
        """Whether the other side says no more; waits until it says something or closes."""
        return self._reader.read(1) == b""

    def close(self) -> None:
        self._reader.close()
        self.socket.close()


@contextmanager
def wire(corral: Corral) -> Iterator[Wire]:
    address = urlsplit(corral.url)
    connection = Wire(socket.create_connection((address.hostname, address.port), REQUEST_TIMEOUT_S))
    try:
        yield connection
    finally:
        connection.close()


def request(
    corral: Corral, document: object, path: str = CHAT, *more: str, framing: str | None = None
) -> bytes:
    """A POST of a JSON document, with the key, as bytes."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: corral.test",
        f"Authorization: Bearer {corral.key}",
        framing or f"Content-Length: {len(body)}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if framing else body)
