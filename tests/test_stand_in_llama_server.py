"""The stand-in behaves as the real llama-server was seen to, and as badly as a test orders."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from corral.formats.engine_log import lost_its_port, refused_its_socket
from tests.stand_in_launcher import read_events, write_launcher
from tests.stand_in_nvml import NvmlWorld
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
TIMEOUT_S = 15


class StandIn:
    """One running stand-in, and how to talk to it."""

    def __init__(self, directory: Path, flags: list[str], faults: dict[str, Any]) -> None:
        self._events = directory / "events"
        options = ["--alias", "org/m", "--port", "0", "--stand-in", json.dumps(faults)]
        env = {"STAND_IN_LOG": str(self._events), "CUDA_VISIBLE_DEVICES": "GPU-1", "SECRET": "s3cret"}
        argv = [str(write_launcher(directory)), *options, *flags]
        self.process = subprocess.Popen(argv, env=env, stderr=subprocess.PIPE)

    def events(self, event: str) -> list[dict[str, Any]]:
        mine = read_events(self._events, event)
        return [each for each in mine if each["pid"] == self.process.pid]

    @property
    def port(self) -> int:
        wait_until(lambda: self.events("start"), "it listens")
        port: int = self.events("start")[0]["port"]
        return port

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def ask_json(self, method: str, path: str, body: Any = None) -> Any:
        status, text = self.ask(method, path, body)
        assert status == 200
        return json.loads(text)

    def open(self, path: str, body: Any) -> socket.socket:
        """Send a request and leave the answer to the caller."""
        data = json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        return connection

    def until_busy(self, slots: int) -> None:
        def busy() -> bool:
            return len([slot for slot in self.ask_json("GET", "/slots") if slot["is_processing"]]) == slots

        wait_until(busy, f"{slots} slots are busy")


Start = Callable[..., StandIn]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[StandIn] = []

    def start_one(*flags: str, listens: bool = True, **faults: Any) -> StandIn:
        stand_in = StandIn(tmp_path, list(flags), faults)
        started.append(stand_in)
        if listens and not faults.get("never_ready"):
            wait_until(lambda: stand_in.ask("GET", "/health")[0] == 200, "it is ready")
        return stand_in

    yield start_one
    for stand_in in started:
        stand_in.process.kill()
        stand_in.process.communicate()


def everything(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65_536):
        data += piece
    return data


def events_of(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_it_records_how_it_was_started_but_no_secret(start: Start) -> None:
    stand_in = start("--unknown-flag", "value", "-np", "3")
    (event,) = stand_in.events("start")
    assert event["pid"] == stand_in.process.pid
    assert event["alias"] == "org/m"
    assert event["port"] == stand_in.port > 0
    assert event["argv"][-4:] == ["--unknown-flag", "value", "-np", "3"]
    assert event["env"]["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert "SECRET" in event["env_names"]
    assert "s3cret" not in json.dumps(event)
    assert len(stand_in.ask_json("GET", "/slots")) == 3


def test_while_it_loads_every_path_answers_503(start: Start) -> None:
    stand_in = start(never_ready=True)
    for path in ("/health", "/v1/models", CHAT):
        status, text = stand_in.ask("GET", path)
        assert status == 503
        assert json.loads(text)["error"] == {
            "message": "Loading model",
            "type": "unavailable_error",
            "code": 503,
        }


def test_a_whole_chat_has_its_text_and_usage(start: Start) -> None:
    body = {"messages": [{"role": "user", "content": "a b c"}], "max_tokens": 2}
    answer = start().ask_json("POST", CHAT, body)
    assert answer["model"] == "org/m"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "token0 token1 "}
    assert answer["choices"][0]["finish_reason"] == "length"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 2
    assert usage["total_tokens"] == usage["prompt_tokens"] + 2


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_chat_stream_ends_as_the_real_one_does(include_usage: bool, start: Start) -> None:
    body = {"stream": True, "stream_options": {"include_usage": include_usage}, "stand_in": {"tokens": 3}}
    events = events_of(start().ask("POST", CHAT, body)[1])
    deltas = [event["choices"][0]["delta"] for event in events if event != "[DONE]" and event["choices"]]
    assert deltas[0] == {"role": "assistant", "content": None}
    assert [delta.get("content") for delta in deltas[1:]] == ["token0 ", "token1 ", "token2 ", None]
    assert events[-1] == "[DONE]"
    assert events[-2]["timings"]["predicted_n"] == 3
    assert ("usage" in events[-2]) == include_usage
    assert events[-2]["choices"] == [] or not include_usage


def test_the_older_paths_have_their_own_shapes(start: Start) -> None:
    stand_in = start()
    ask = {"prompt": "a", "stand_in": {"tokens": 1}}
    assert stand_in.ask_json("POST", "/v1/completions", ask)["choices"][0]["text"] == "token0 "
    assert stand_in.ask_json("POST", "/completion", ask)["content"] == "token0 "
    streams = [
        events_of(stand_in.ask("POST", path, ask | {"stream": True})[1])
        for path in ("/v1/completions", "/completion")
    ]
    assert streams[0][-1] == "[DONE]"
    assert streams[1][-1]["stop"] is True


def test_embeddings_need_their_flag_and_depend_on_the_text_alone(start: Start) -> None:
    assert start().ask("POST", "/v1/embeddings", {"input": "a"})[0] == 501
    answer = start("--embedding").ask_json("POST", "/v1/embeddings", {"input": ["a", "b", "a"]})
    first, second, third = (entry["embedding"] for entry in answer["data"])
    assert first == third != second
    assert sum(value * value for value in first) == pytest.approx(1)


def test_any_other_path_is_echoed(start: Start) -> None:
    answer = start().ask_json("PUT", "/infill?x=1", {"a": 1})
    assert (answer["method"], answer["path"], answer["body"]) == ("PUT", "/infill?x=1", '{"a": 1}')


def test_a_chunked_body_is_understood_and_a_connection_kept(start: Start) -> None:
    stand_in = start()
    with closing(http.client.HTTPConnection("127.0.0.1", stand_in.port, timeout=TIMEOUT_S)) as connection:
        for body in (b"one", b"two"):
            connection.request(
                "POST",
                "/echo",
                iter([body, b"!"]),
                encode_chunked=True,
                headers={"Transfer-Encoding": "chunked"},
            )
            assert json.loads(connection.getresponse().read())["body"] == body.decode() + "!"


def test_with_all_slots_busy_the_next_head_waits(start: Start) -> None:
    stand_in = start("--parallel", "1")
    with stand_in.open(CHAT, {"stream": True, "stand_in": {"hang_after": 1}}) as first:
        assert first.recv(15).startswith(b"HTTP/1.1 200 ")
        stand_in.until_busy(1)
        with stand_in.open(CHAT, {"stream": True}) as second:
            wait_until(lambda: len(stand_in.events("request")) >= 2, "the second has arrived")
            second.settimeout(0.1)
            with pytest.raises(TimeoutError):
                second.recv(1)
            first.close()
            second.settimeout(TIMEOUT_S)
            assert second.recv(15).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_goes_away_is_noticed_and_its_slot_freed(start: Start) -> None:
    stand_in = start()
    with stand_in.open(CHAT, {"stand_in": {"tokens": 10_000, "token_delay_s": 0.01}}):
        stand_in.until_busy(1)
    wait_until(lambda: stand_in.events("client_gone"), "it notices")
    stand_in.until_busy(0)
    assert stand_in.events("client_gone")[0]["tokens"] < 10_000
    assert stand_in.events("answered") == []


def test_a_deaf_one_works_on_for_a_client_that_is_gone(start: Start) -> None:
    stand_in = start()
    with stand_in.open(CHAT, {"stand_in": {"deaf": True, "tokens": 20, "token_delay_s": 0.005}}):
        stand_in.until_busy(1)
    wait_until(lambda: stand_in.events("answered"), "it finishes all the same")
    assert stand_in.events("answered")[0]["tokens"] == 20


@pytest.mark.parametrize(
    ("fault", "starts_with", "tokens"),
    [
        pytest.param({"die_after": 0}, b"", 0, id="dies before the first byte"),
        pytest.param({"die_after": 2}, b"HTTP/1.1 200 ", 2, id="dies in mid-stream"),
        pytest.param({"close_after": 2}, b"HTTP/1.1 200 ", 2, id="closes in mid-stream"),
        pytest.param({"garbage": True}, b"\x00\xffthis is not HTTP", 0, id="garbage"),
    ],
)
def test_a_spoilt_answer_ends_where_it_was_ordered_to(
    fault: dict[str, Any], starts_with: bytes, tokens: int, start: Start
) -> None:
    stand_in = start()
    with stand_in.open(CHAT, {"stream": True, "stand_in": fault}) as connection:
        data = everything(connection)
    assert data.startswith(starts_with)
    assert data.count(b"token") == tokens
    assert b"[DONE]" not in data
    if "die_after" in fault:
        assert stand_in.process.wait(TIMEOUT_S) == -signal.SIGKILL
    else:
        assert stand_in.ask("GET", "/health")[0] == 200


def test_a_body_ends_where_it_was_ordered_to(start: Start) -> None:
    stand_in = start()
    with stand_in.open(CHAT, {"stand_in": {"body_bytes": 10}}) as connection:
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    assert body == b'{"choices"'
    assert b"Content-Length: 10\r\n" not in head


def test_a_huge_head_and_an_error_status_come_as_ordered(start: Start) -> None:
    stand_in = start()
    with stand_in.open(CHAT, {"stand_in": {"head_bytes": 100_000}}) as connection:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65_536)
    assert len(data) > 100_000
    status, text = stand_in.ask("POST", CHAT, {"stand_in": {"status": 400}})
    assert status == 400
    assert json.loads(text)["error"]["type"] == "stand_in_error"


def test_sigterm_lets_it_finish_and_a_second_one_does_not(start: Start) -> None:
    stand_in = start()
    with stand_in.open(CHAT, {"stand_in": {"tokens": 20, "token_delay_s": 0.005}}) as connection:
        stand_in.until_busy(1)
        stand_in.process.terminate()
        assert connection.recv(15).startswith(b"HTTP/1.1 200 ")
    assert stand_in.process.wait(TIMEOUT_S) == 0

    stand_in = start()
    with stand_in.open(CHAT, {"stand_in": {"hang_after": 0}}):
        stand_in.until_busy(1)
        stand_in.process.terminate()
        wait_until(lambda: stand_in.events("sigterm"), "the first signal has arrived")
        stand_in.process.terminate()
        assert stand_in.process.wait(TIMEOUT_S) == 1


def test_it_dies_at_its_start_as_ordered_and_only_as_often(start: Start) -> None:
    out_of_memory = start(listens=False, out_of_memory=True, faulty_starts=2)
    _, said = out_of_memory.process.communicate(timeout=TIMEOUT_S)
    assert out_of_memory.process.returncode == 1
    assert b"cudaMalloc failed: out of memory" in said
    told = start(listens=False, exit_code=3, stderr_text="no such tensor", faulty_starts=2)
    _, said = told.process.communicate(timeout=TIMEOUT_S)
    assert told.process.returncode == 3
    assert said.endswith(b"no such tensor\n")
    assert start(exit_code=3, faulty_starts=2).ask("GET", "/health")[0] == 200


def test_faults_come_from_the_environment_too(tmp_path: Path) -> None:
    launcher = write_launcher(tmp_path)
    env = {"STAND_IN_EXIT_CODE": "5", "STAND_IN_STDERR_TEXT": "3 words here", "STAND_IN_LOAD_S": "0.01"}
    done = subprocess.run(
        [str(launcher), "--port", "0"], env=env, capture_output=True, check=False, timeout=TIMEOUT_S
    )
    assert done.returncode == 5
    assert done.stderr.endswith(b"3 words here\n")


def test_it_takes_its_part_of_each_gpu_that_it_may_see_and_dies_if_one_has_less(tmp_path: Path) -> None:
    world = NvmlWorld(tmp_path)
    for uuid, mib in (("GPU-a", 1000), ("GPU-b", 500), ("GPU-c", 9000)):
        world.gpu(uuid, total_mib=mib)
    world.gpu("GPU-b", total_mib=500, foreign_mib=100)
    env = {"STAND_IN_NVML": str(tmp_path), "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    argv = [str(write_launcher(tmp_path)), "--port", "0", "--tensor-split", "3,1", "--stand-in"]
    faults = json.dumps({"vram_mib": 1000})
    with subprocess.Popen([*argv, faults], env=env, stderr=subprocess.PIPE) as first:
        use = tmp_path / "use" / str(first.pid)
        wait_until(lambda: use.exists() and use.read_text() == "GPU-a 750\nGPU-b 250\n", "it holds its parts")
        second = subprocess.run([*argv, faults], env=env, capture_output=True, timeout=TIMEOUT_S)
        assert (second.returncode, b"cudaMalloc failed: out of memory" in second.stderr) == (1, True)
        first.kill()
    with subprocess.Popen([*argv, faults], env=env, stderr=subprocess.PIPE) as third:
        use = tmp_path / "use" / str(third.pid)
        wait_until(lambda: use.exists() and "750" in use.read_text(), "what the dead held is free")
        third.kill()


def test_it_listens_at_a_socket_too_if_its_host_names_one(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "near.sock")
    stand_in = start("--host", f"127.0.0.1,{path}")
    assert stand_in.ask("GET", "/health")[0] == 200
    with socket.socket(socket.AF_UNIX) as near:
        near.connect(path)
        near.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert near.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("faults", [{"one_host": True}, {}], ids=["an older one", "stale"])
def test_a_socket_that_cannot_be_had_is_its_end(start: Start, tmp_path: Path, faults: dict[str, Any]) -> None:
    path = str(tmp_path / "near.sock")
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(path)
    stand_in = start("--host", f"127.0.0.1,{path}", listens=False, **faults)
    _, words = stand_in.process.communicate(timeout=TIMEOUT_S)
    assert (stand_in.process.returncode, refused_its_socket(words.decode().splitlines())) == (1, True)


def test_a_port_that_is_taken_is_its_end(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as owner:
        stand_in = start("--port", str(owner.getsockname()[1]), listens=False)
        _, words = stand_in.process.communicate(timeout=TIMEOUT_S)
    assert (stand_in.process.returncode, lost_its_port(words.decode().splitlines())) == (1, True)
