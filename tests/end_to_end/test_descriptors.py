"""A gateway that may open few files only, and more clients than that: engines are reached all the same."""

from __future__ import annotations

import re
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

from corral.drivers.descriptors import OWN
from tests.conftest import StartCorral
from tests.end_to_end.talk import CHAT, Wire, chat, request, wire
from tests.support import GATEWAY, ask, ping
from tests.waiting import wait_until

FILES_MAX = 200
# Half of them are for connections, of which half again are told that they are too many.
SERVED, HELD = 48, 97
# A limit under which slots count: without them in the sum there would be 288 clients.
FILES_FOR_SLOTS, SLOTS = 800, 300


def with_limit(folder: Path, files: int) -> Path:
    """The gateway, as a program that may open no more files than that."""
    program = folder / f"gateway-{files}"
    command = shlex.join([sys.executable, str(GATEWAY)])
    program.write_text(f"#!/bin/sh\nulimit -n {files}\nexec {command}\n")
    program.chmod(0o755)
    return program


def test_silent_connections_leave_descriptors_for_engines_and_for_whoever_was_there_before(
    start_corral: StartCorral, stand_in: Path, tmp_path: Path
) -> None:
    # Silence is not what ends the flood: it lasts for as long as the test does.
    corral = start_corral(
        engine=stand_in,
        program=with_limit(tmp_path, FILES_MAX),
        environment={"CLIENT_HEADER_TIMEOUT": "100"},
    )
    assert f"no more than {FILES_MAX} files: it takes {SERVED} connections" in corral.log_text
    with ExitStack() as flood:
        clients = [flood.enter_context(wire(corral)) for _ in range(2 * HELD)]
        assert clients[SERVED].at_end(), "the first that was too many has made way"
        clients[0].say(request(corral, chat()))
        assert clients[0].hear().status == 200
        refused = corral.ask(CHAT, chat())
        assert (refused.status, refused.json()["error"]["code"]) == (503, "too_many_connections")
        # What platforms ask before they kill, and what they ask before they send somebody.
        codes = [ask(corral.url + path).status for path in ("/live", "/healthz", "/ping", "/ready")]
        assert codes == [200, 200, 200, 503]
    wait_until(lambda: ping(corral.url) == 200, "there is room again")
    assert "Too many open files" not in corral.log_text


def status(client: Wire) -> int:
    """Of an answer that begins."""
    return int(client.socket.recv(len("HTTP/1.1 200"))[-3:])


def test_as_many_requests_as_there_are_slots_find_descriptors_under_a_flood(
    start_corral: StartCorral, stand_in: Path, tmp_path: Path
) -> None:
    flags = ["--parallel", str(SLOTS), "--stand-in", '{"tokens": 1000, "token_delay_s": 1}']
    corral = start_corral(
        engine=stand_in,
        program=with_limit(tmp_path, FILES_FOR_SLOTS),
        environment={"CLIENT_HEADER_TIMEOUT": "100"},
        config={
            "system": {"max_concurrent_models": 1},
            "models": {"demo": {"model_path": "demo.gguf", "flags": flags}},
        },
    )
    [served] = map(int, re.findall(r"it takes (\d+) connections", corral.log_text))
    assert served < SLOTS
    with ExitStack() as all_of_them:
        busy = [all_of_them.enter_context(wire(corral)) for _ in range(served)]
        busy[0].say(request(corral, chat(stream=True)))
        assert status(busy[0]) == 200
        for _ in range(served):
            all_of_them.enter_context(wire(corral))
        for each in busy[1:]:
            each.say(request(corral, chat(stream=True)))
        assert {status(each) for each in busy[1:]} == {200}
        assert "Too many open files" not in corral.log_text
        assert len(list(Path(f"/proc/{corral.pid}/fd").iterdir())) < FILES_FOR_SLOTS - OWN // 2
