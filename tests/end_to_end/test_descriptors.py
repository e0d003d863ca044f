"""A gateway that may open few files only, and more clients than that: engines are reached all the same."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.conftest import StartCorral
from tests.end_to_end.talk import CHAT, chat, request, wire
from tests.support import GATEWAY, ask, ping
from tests.waiting import wait_until

FILES_MAX = 200
# Half of them are for connections, of which half again are told that they are too many.
SERVED, HELD = 50, 100


def test_silent_connections_leave_descriptors_for_engines_and_for_whoever_was_there_before(
    start_corral: StartCorral, stand_in: Path, tmp_path: Path
) -> None:
    program = tmp_path / "gateway"
    command = shlex.join([sys.executable, str(GATEWAY)])
    program.write_text(f"#!/bin/sh\nulimit -n {FILES_MAX}\nexec {command}\n")
    program.chmod(0o755)
    # Silence is not what ends the flood: it lasts for as long as the test does.
    corral = start_corral(engine=stand_in, program=program, environment={"CLIENT_HEADER_TIMEOUT": "100"})
    assert f"no more than {FILES_MAX} files: it takes {SERVED} connections" in corral.log_text
    with ExitStack() as flood:
        clients = [flood.enter_context(wire(corral)) for _ in range(2 * HELD)]
        assert clients[SERVED].at_end(), "the first that was too many has made way"
        clients[0].say(request(corral, chat()))
        assert clients[0].hear().status == 200
        refused = corral.ask(CHAT, chat())
        assert (refused.status, refused.json()["error"]["code"]) == (503, "too_many_connections")
        # What a platform asks before it kills, and what it asks before it sends somebody.
        codes = [ask(corral.url + path).status for path in ("/live", "/healthz", "/ping", "/ready")]
        assert codes == [200, 200, 503, 503]
    wait_until(lambda: ping(corral.url) == 200, "there is room again")
    assert "Too many open files" not in corral.log_text
