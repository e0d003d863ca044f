#!/usr/bin/env -S python3 -IS
"""A stand-in llama-server: the real one's command line, paths and answers, with faults to order.

Standard library only, a thread per connection, up within 40 ms. It answers without a model: token i of
every answer is `token<i>`. Flags that it does not know are ignored, and so are their values.

Each event is one JSON line in the file that STAND_IN_LOG names: start (argv, env, pid), request,
answered, client_gone, sigterm. With STAND_IN_NVML it takes memory of the GPUs of tests/stand_in_nvml.

Faults come from the environment (STAND_IN_LOAD_S=2), from the flag `--stand-in '{"load_s": 2}'`, and,
for a single request, from its body (`"stand_in": {"tokens": 9}`); the later beats the earlier.

    load_s            answer 503 "Loading model" for so long        never_ready      for ever
    exit_code         exit with it once loaded, after printing stderr_text
    out_of_memory     die once loaded, as on a full card
    faulty_starts     only the first so many starts of this alias (by STAND_IN_LOG) have those two faults
    vram_mib          taken in steps while it loads, of the GPUs that it may see, by --tensor-split;
                      it dies as with out_of_memory if they have less
    ignore_sigterm    ignore it
    one_host          take --host for one address, as older versions do
    tokens            length of an answer (5)                       token_delay_s    before each token
    headers_delay_s   before the head                               head_bytes       a head of that size
    status            answer with this error status                 garbage          answer no HTTP
    deaf              do not notice that a client has gone
    die_after         SIGKILL itself after so many tokens (0: before the first byte)
    close_after       close the socket then                         hang_after       send nothing more then
    body_bytes        close it after so many bytes of a body that is no stream
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, BinaryIO

HEAD_LINE_BYTES_MAX = 65_536
LOAD_STEPS = 4
LOGGED_ENVIRONMENT = ("CUDA_", "NVIDIA_", "HIP_", "GGML_", "LLAMA_", "STAND_IN_", "LD_")
FLAGS = {"-a": "--alias", "-np": "--parallel", "-m": "--model", "--embeddings": "--embedding"}
DEFAULTS = {"--alias": "stand-in", "--port": "8080", "--host": "127.0.0.1", "--parallel": "4"}
DEFAULTS |= {"--model": "", "--stand-in": "{}", "--tensor-split": "1"}
# Variables that are none of the faults.
PLACES = ("STAND_IN_LOG", "STAND_IN_NVML")
# Which paths generate, and the shape of their answers.
GENERATING = {
    "/v1/chat/completions": "chat",
    "/chat/completions": "chat",
    "/v1/completions": "text",
    "/completions": "text",
    "/completion": "llama",
}
LOADING = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
NO_EMBEDDING = "This server does not support embeddings. Start it with `--embeddings`"
OUT_OF_MEMORY = """\
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 8192.00 MiB on device 0: \
cudaMalloc failed: out of memory
alloc_tensor_range: failed to allocate CUDA0 buffer of size 8589934592
llama_model_load: error loading model: unable to allocate CUDA0 buffer
srv    load_model: failed to load model
srv  llama_server: exiting due to model loading error"""

Json = dict[str, Any]


class ClientGoneError(Exception):
    """The other side has closed its socket."""


class CloseNowError(Exception):
    """The connection ends here, without a goodbye."""


def main(argv: list[str]) -> None:
    options = read_options(argv)
    faults = read_faults(options)
    journal = Journal(os.environ.get("STAND_IN_LOG"), options["--alias"])
    is_faulty = journal.starts() < faults.get("faulty_starts", sys.maxsize)
    if faults.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = Server(options, faults, journal)
    logged = {name: value for name, value in os.environ.items() if name.startswith(LOGGED_ENVIRONMENT)}
    journal.write("start", argv=argv, port=server.port, env=logged, env_names=sorted(os.environ))
    say(f"srv    load_model: loading model '{options['--model']}'")
    threading.Thread(target=server.load, args=(is_faulty,), daemon=True).start()
    server.serve()


def read_options(argv: list[str]) -> dict[str, str]:
    options = dict(DEFAULTS)
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        name = FLAGS.get(flag, flag)
        if name in options or name == "--embedding":
            options[name] = value
    return options


def read_faults(options: dict[str, str]) -> Json:
    faults: Json = {}
    for variable, text in os.environ.items():
        if variable.startswith("STAND_IN_") and variable not in PLACES:
            name = variable.removeprefix("STAND_IN_").lower()
            faults[name] = text if name == "stderr_text" else json.loads(text)
    faults.update(json.loads(options["--stand-in"]))
    return faults


def say(text: str) -> None:
    os.write(2, f"{text}\n".encode())


class Journal:
    """The file of events. One write each, so that many processes may share it."""

    def __init__(self, path: str | None, alias: str) -> None:
        self._path = path
        self._alias = alias

    def write(self, event: str, **facts: Any) -> None:
        if self._path:
            line = {"event": event, "time": time.time(), "pid": os.getpid(), "alias": self._alias, **facts}
            with open(self._path, "ab", buffering=0) as file:
                file.write(json.dumps(line).encode() + b"\n")

    def starts(self) -> int:
        """How often this alias was started before."""
        if not self._path or not os.path.exists(self._path):
            return 0
        with open(self._path, "rb") as file:
            # A line that another process is just writing has no end yet.
            events = [json.loads(line) for line in file if line.endswith(b"\n")]
        return sum(event["event"] == "start" and event["alias"] == self._alias for event in events)


class Slots:
    """As many answers at once as --parallel says. The others wait, without a byte, as at the real one."""

    def __init__(self, count: int) -> None:
        # Per slot how many tokens it has generated; None if it is free.
        self.decoded: list[int | None] = [None] * count
        self._changed = threading.Condition()

    def take(self, check_client: Callable[[], None]) -> int:
        with self._changed:
            while None not in self.decoded:
                self._changed.wait(0.02)
                check_client()
            slot = self.decoded.index(None)
            self.decoded[slot] = 0
            return slot

    def free(self, slot: int) -> None:
        with self._changed:
            self.decoded[slot] = None
            self._changed.notify()

    @property
    def busy(self) -> int:
        return sum(count is not None for count in self.decoded)

    def describe(self) -> list[Json]:
        return [
            {"id": slot, "n_ctx": 4096, "speculative": False, "is_processing": count is not None}
            | ({} if count is None else {"next_token": [{"has_next_token": True, "n_decoded": count}]})
            for slot, count in enumerate(self.decoded)
        ]


class GpuMemory:
    """Its part of each GPU that it may see. What it holds goes with it: the world looks who is alive."""

    def __init__(self, tensor_split: str, size_mib: int) -> None:
        self._folder = os.environ.get("STAND_IN_NVML", "")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if self._folder else ""
        uuids = [uuid for uuid in visible.split(",") if uuid]
        shares = [float(share) for share in tensor_split.split(",")]
        self._wanted = {
            uuid: size_mib * share / sum(shares) for uuid, share in zip(uuids, shares, strict=False)
        }

    def take(self, part: float) -> bool:
        """Hold this part of what it wants; False if some GPU has less."""
        mine = {uuid: round(size * part) for uuid, size in self._wanted.items()}
        if any(mib > self._free(uuid) for uuid, mib in mine.items()):
            return False
        if mine:
            path = f"{self._folder}/use/{os.getpid()}"
            with open(f"{path}.new", "w") as file:
                file.writelines(f"{uuid} {mib}\n" for uuid, mib in mine.items())
            os.replace(f"{path}.new", path)
        return True

    def _free(self, uuid: str) -> int:
        """What nobody else holds. Of the dead nobody knows here how long they go on holding theirs."""
        (total, foreign) = next(rest[:2] for name, *rest in self._rows("gpus") if name == uuid)
        others = [pid for pid in os.listdir(f"{self._folder}/use") if pid.isdigit() and is_running(pid)]
        held = [row for pid in others if int(pid) != os.getpid() for row in self._rows(f"use/{pid}")]
        return int(total) - int(foreign) - sum(int(mib) for name, mib in held if name == uuid)

    def _rows(self, name: str) -> list[list[str]]:
        with open(f"{self._folder}/{name}") as file:
            return [words for line in file if (words := line.split())]


def is_running(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def listen(host: str, port: int) -> socket.socket:
    """At an address, or at a socket in the file system if that is what it ends like."""
    try:
        if not host.endswith(".sock"):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=512)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(host)
        listener.listen(512)
        return listener
    except OSError:
        say(f"srv  start: couldn't bind HTTP server socket, hostname: {host}, port: {port}")
        say("srv  llama_server: exiting due to HTTP server error")
        sys.exit(1)


class Server:
    """What all connections share."""

    def __init__(self, options: dict[str, str], faults: Json, journal: Journal) -> None:
        self.alias = options["--alias"]
        self.model = options["--model"]
        self.embeds = "--embedding" in options
        self.faults = faults
        self.journal = journal
        self.slots = Slots(int(options["--parallel"]))
        self.is_ready = False
        self.predicted = 0
        self._is_leaving = False
        self._gpus = GpuMemory(options["--tensor-split"], faults.get("vram_mib", 0))
        hosts = [options["--host"]] if faults.get("one_host") else options["--host"].split(",")
        self._host = hosts[0]
        self._listeners = [listen(host, int(options["--port"])) for host in hosts]
        # With --port 0 the kernel has chosen.
        self.port: int = self._listeners[0].getsockname()[1]

    def load(self, is_faulty: bool) -> None:
        for step in range(1, LOAD_STEPS + 1):
            time.sleep(self.faults.get("load_s", 0) / LOAD_STEPS)
            if not self._gpus.take(step / LOAD_STEPS):
                self._die_of_want()
        if is_faulty and self.faults.get("out_of_memory"):
            self._die_of_want()
        if is_faulty and "exit_code" in self.faults:
            say(self.faults.get("stderr_text", "srv    load_model: failed to load model"))
            os._exit(self.faults["exit_code"])
        if not self.faults.get("never_ready"):
            self.is_ready = True
            say("srv  llama_server: model loaded")
            say(f"srv  llama_server: listening on http://{self._host}:{self.port}")
            for listener in self._listeners[1:]:
                say(f"srv  llama_server: listening on unix://{listener.getsockname()}")

    def _die_of_want(self) -> None:
        self.journal.write("out_of_memory")
        say(OUT_OF_MEMORY)
        os._exit(1)

    def serve(self) -> None:
        if not self.faults.get("ignore_sigterm"):
            signal.signal(signal.SIGTERM, self._on_sigterm)
        for listener in self._listeners[1:]:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        self._accept(self._listeners[0])

    def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _address = listener.accept()
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=Connection(self, client).run, daemon=True).start()

    def _on_sigterm(self, _number: int, _frame: object) -> None:
        """While loading it kills at once; later the answers are finished; a second one ends that."""
        self.journal.write("sigterm", busy=self.slots.busy)
        if not self.is_ready:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._is_leaving:
            os._exit(1)
        else:
            self._is_leaving = True
            threading.Thread(target=self._leave, daemon=True).start()

    def _leave(self) -> None:
        while self.slots.busy:
            time.sleep(0.005)
        os._exit(0)


class Request:
    """One request, read whole."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        try:
            parsed = json.loads(body)
        except ValueError:
            parsed = None
        self.json: Json = parsed if isinstance(parsed, dict) else {}


def read_request(reader: BinaryIO) -> Request | None:
    """The next request of a connection; None at its end."""
    lines: list[str] = []
    while (line := reader.readline(HEAD_LINE_BYTES_MAX)) not in (b"\r\n", b""):
        lines.append(line.decode("latin-1"))
    if not lines:
        return None
    method, path, _version = lines[0].split(" ", 2)
    fields = (line.partition(":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip() for name, _colon, value in fields}
    if headers.get("transfer-encoding") == "chunked":
        body = b"".join(read_chunks(reader))
    else:
        body = reader.read(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


def read_chunks(reader: BinaryIO) -> Iterator[bytes]:
    while size := int(reader.readline(), 16):
        yield reader.read(size)
        reader.readline()
    reader.readline()


class Answer:
    """A generated text, in the shape that its path gives it: chat, text, or llama.cpp's own."""

    def __init__(self, shape: str, alias: str, request: Request, tokens: int) -> None:
        asked = request.json.get("max_tokens", request.json.get("n_predict"))
        self.tokens = min(tokens, asked) if isinstance(asked, int) and asked >= 0 else tokens
        self.finish = "length" if self.tokens < tokens else "stop"
        self.shape = shape
        self.alias = alias
        prompt = request.json.get("messages") or request.json.get("prompt") or ""
        self.prompt_tokens = len(json.dumps(prompt).split())
        self.include_usage = bool((request.json.get("stream_options") or {}).get("include_usage"))

    def opening(self) -> list[Json]:
        first = {"finish_reason": None, "index": 0, "delta": {"role": "assistant", "content": None}}
        return [self._openai([first], "chat.completion.chunk")] if self.shape == "chat" else []

    def part(self, text: str, finish: str | None = None) -> Json:
        if self.shape == "llama":
            return {"index": 0, "content": text, "stop": finish is not None, "model": self.alias}
        choice: Json = {"finish_reason": finish, "index": 0}
        if self.shape == "text":
            return self._openai([choice | {"text": text, "logprobs": None}], "text_completion")
        delta = {"content": text} if text else {}
        return self._openai([choice | {"delta": delta}], "chat.completion.chunk")

    def closing(self) -> list[Json | str]:
        last = self.part("", self.finish)
        if self.shape == "llama":
            # Its streams have no [DONE].
            return [last | self._totals()]
        if self.shape == "text":
            return [last | self._totals(), "[DONE]"]
        if self.include_usage:
            return [last, self._openai([], "chat.completion.chunk") | self._totals(), "[DONE]"]
        return [last | {"timings": self._totals()["timings"]}, "[DONE]"]

    def whole(self) -> Json:
        text = "".join(token(index) for index in range(self.tokens))
        if self.shape != "chat":
            return self.part(text, self.finish) | self._totals()
        message = {"role": "assistant", "content": text}
        choice = {"finish_reason": self.finish, "index": 0, "message": message}
        return self._openai([choice], "chat.completion") | self._totals()

    def _openai(self, choices: list[Json], kind: str) -> Json:
        return {"choices": choices, "created": 1, "id": "chatcmpl-1", "model": self.alias, "object": kind}

    def _totals(self) -> Json:
        prompt, predicted = self.prompt_tokens, self.tokens
        timings = {"cache_n": 0, "prompt_n": prompt, "predicted_n": predicted, "predicted_ms": 1.0}
        if self.shape == "llama":
            return {"tokens_evaluated": prompt, "tokens_predicted": predicted, "timings": timings}
        usage = {"completion_tokens": predicted, "prompt_tokens": prompt, "total_tokens": prompt + predicted}
        return {"usage": usage, "timings": timings}


class Connection:
    """One client's connection: requests, one after the other."""

    def __init__(self, server: Server, client: socket.socket) -> None:
        self.server = server
        self.client = client
        self.tokens_sent = 0
        self.is_deaf = False

    def run(self) -> None:
        with self.client, self.client.makefile("rb") as reader:
            try:
                while (request := read_request(reader)) is not None:
                    self.answer(request)
                    if request.headers.get("connection", "").lower() == "close":
                        return
            except (CloseNowError, ConnectionError, ValueError):
                return

    def answer(self, request: Request) -> None:
        server = self.server
        facts = {"method": request.method, "path": request.path, "headers": request.headers}
        server.journal.write("request", **facts, body_bytes=len(request.body))
        path = request.path.partition("?")[0]
        if not server.is_ready:
            self.send_json(LOADING, 503)
        elif path in GENERATING:
            self.generate(request, GENERATING[path])
        elif path == "/v1/embeddings":
            self.embed(request)
        elif path == "/metrics":
            name = "llamacpp:tokens_predicted_total"
            text = f"# TYPE {name} counter\n{name} {server.predicted}\n"
            self.send(200, "text/plain; version=0.0.4", text.encode())
        else:
            # Each byte as one character, so that a test gets back whatever bytes came.
            echo = facts | {"body": request.body.decode("latin-1")}
            self.send_json(self.fixed_answers().get(path, echo))

    def fixed_answers(self) -> Json:
        server = self.server
        entry = {"id": server.alias, "aliases": [server.alias], "object": "model", "owned_by": "llamacpp"}
        slots = len(server.slots.decoded)
        return {
            "/health": {"status": "ok"},
            "/v1/models": {"object": "list", "data": [entry]},
            "/props": {"total_slots": slots, "model_alias": server.alias, "model_path": server.model},
            "/slots": server.slots.describe(),
        }

    def embed(self, request: Request) -> None:
        if not self.server.embeds:
            error = {"code": 501, "message": NO_EMBEDDING, "type": "not_supported_error"}
            self.send_json({"error": error}, 501)
            return
        given = request.json.get("input", "")
        texts = [str(text) for text in (given if isinstance(given, list) else [given])]
        data = [
            {"object": "embedding", "index": index, "embedding": embedding_of(text)}
            for index, text in enumerate(texts)
        ]
        words = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": words, "total_tokens": words}
        self.send_json({"object": "list", "model": self.server.alias, "usage": usage, "data": data})

    def generate(self, request: Request, shape: str) -> None:
        faults: Json = self.server.faults | request.json.get("stand_in", {})
        answer = Answer(shape, self.server.alias, request, faults.get("tokens", 5))
        self.tokens_sent = 0
        self.is_deaf = bool(faults.get("deaf"))
        try:
            slot = self.server.slots.take(self.pause)
            try:
                self.generate_in(slot, answer, faults, bool(request.json.get("stream")))
            finally:
                self.server.slots.free(slot)
        except (ClientGoneError, ConnectionError) as error:
            self.server.journal.write("client_gone", tokens=self.tokens_sent)
            raise CloseNowError from error

    def generate_in(self, slot: int, answer: Answer, faults: Json, is_stream: bool) -> None:
        self.pause(faults.get("headers_delay_s", 0))
        head_bytes = faults.get("head_bytes", 0)
        if faults.get("garbage"):
            self.client.sendall(b"\x00\xffthis is not HTTP\r\n\r\n" * 4)
            raise CloseNowError
        if "status" in faults:
            error = {"code": faults["status"], "message": "ordered by the test", "type": "stand_in_error"}
            self.send_json({"error": error}, faults["status"])
        elif is_stream:
            self.stream(answer, self.tokens(answer, faults, slot), head_bytes)
        else:
            for _ in self.tokens(answer, faults, slot):
                pass
            self.send_json(answer.whole(), head_bytes=head_bytes, body_bytes=faults.get("body_bytes"))
        self.server.journal.write("answered", tokens=self.tokens_sent)

    def stream(self, answer: Answer, tokens: Iterator[int], head_bytes: int) -> None:
        # As at the real one, the head comes with the first token.
        first = next(tokens, None)
        self.send_head(200, "text/event-stream", "Transfer-Encoding: chunked", head_bytes)
        indexes = () if first is None else chain([first], tokens)
        parts = (answer.part(token(index)) for index in indexes)
        for event in chain(answer.opening(), parts, answer.closing()):
            text = event if isinstance(event, str) else json.dumps(event)
            data = f"data: {text}\n\n".encode()
            self.client.sendall(b"%x\r\n%b\r\n" % (len(data), data))
        self.client.sendall(b"0\r\n\r\n")

    def tokens(self, answer: Answer, faults: Json, slot: int) -> Iterator[int]:
        """Generate: yields the number of each token when its time has come."""
        for index in range(answer.tokens):
            if index == faults.get("die_after"):
                os.kill(os.getpid(), signal.SIGKILL)
            if index == faults.get("close_after"):
                raise CloseNowError
            while index == faults.get("hang_after"):
                self.pause(0.1)
            self.pause(faults.get("token_delay_s", 0))
            yield index
            self.tokens_sent = index + 1
            self.server.slots.decoded[slot] = index + 1
            self.server.predicted += 1

    def pause(self, seconds: float = 0) -> None:
        """Wait, unless the client goes away; a half-close is going away too, as at the real one."""
        if self.is_deaf:
            time.sleep(seconds)
            return
        poll = select.poll()
        poll.register(self.client, select.POLLIN)
        if poll.poll(seconds * 1000):
            if not self.client.recv(1, socket.MSG_PEEK):
                raise ClientGoneError
            time.sleep(seconds)

    def send_json(
        self, value: Any, status: int = 200, head_bytes: int = 0, body_bytes: int | None = None
    ) -> None:
        body = json.dumps(value).encode()
        framing = f"Content-Length: {len(body)}"
        self.send_head(status, "application/json; charset=utf-8", framing, head_bytes, body[:body_bytes])
        if body_bytes is not None:
            raise CloseNowError

    def send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_head(status, content_type, f"Content-Length: {len(body)}", 0, body)

    def send_head(
        self, status: int, content_type: str, framing: str, head_bytes: int, body: bytes = b""
    ) -> None:
        padding = [f"X-Padding: {'x' * head_bytes}"] if head_bytes else []
        lines = [f"HTTP/1.1 {status} Status", "Server: stand-in", f"Content-Type: {content_type}", framing]
        self.client.sendall("\r\n".join([*lines, *padding, "", ""]).encode() + body)


def token(index: int) -> str:
    return f"token{index} "


def embedding_of(text: str) -> list[float]:
    """Eight numbers that depend on the text alone: the same text gets the same ones."""
    values = [1.0] * 8
    for position, byte in enumerate(text.encode()):
        values[position % 8] += byte / 256
    length = sum(value * value for value in values) ** 0.5
    return [value / length for value in values]


if __name__ == "__main__":
    main(sys.argv[1:])
