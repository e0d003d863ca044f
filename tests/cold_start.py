"""How long a cold start takes: `make cold-start`. From the process to its ports to the first token.

A directory of its own, the tiny demo model, and the real engine, started as a container starts it: by
entrypoint.sh. The preload begins as soon as the gateway listens, while the first client is on its way, so
the time to the first token is no sum. Every figure counts from the start of the process.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from corral import settings
from corral.formats import demo_models
from tests.support import ROOT, Corral, listens, open_request
from tests.waiting import moments

ENTRYPOINT = ROOT / "entrypoint.sh"
ROUNDS = 5
QUESTION = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "Hello!"}]}


class Figures(NamedTuple):
    """Milliseconds since the process was started."""

    health_port: float  # a probe is answered
    listening: float  # connections are taken
    first_token: float


def measure(engine: Path, *, preload: bool) -> Figures:
    """One start in an empty place, with the model's file in the page cache, as after a copy or a pull."""
    with tempfile.TemporaryDirectory(prefix="corral-cold-start-") as name:
        directory = Path(name)
        models = directory / "data" / "models"
        models.mkdir(parents=True)
        (models / "demo.gguf").write_bytes(demo_models.demo())
        config = {"system": {"preload_models": ["demo"] if preload else []}}
        began = time.monotonic()
        corral = Corral(directory, engine, config=config, program=ENTRYPOINT)
        try:
            # Two processes: either may be the first.
            health_port, listening = moments(
                lambda: listens(corral.health_url), lambda: _takes_connections(corral.url)
            )
            headers = {"Authorization": f"Bearer {corral.key}"}
            with open_request(f"{corral.url}/v1/chat/completions", QUESTION, headers=headers) as answer:
                assert answer.status == 200, answer.read()
                answer.read(1)
                first_token = time.monotonic()
        finally:
            corral.stop(signal.SIGTERM)
        return Figures(*((moment - began) * 1000 for moment in (health_port, listening, first_token)))


def _takes_connections(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), 1).close()
    except ConnectionError:
        return False
    return True


def median(engine: Path, rounds: int, *, preload: bool) -> Figures:
    """Of several starts, figure by figure."""
    starts = [measure(engine, preload=preload) for _ in range(rounds)]
    return Figures(*(statistics.median(column) for column in zip(*starts, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"starts per row (default {ROUNDS})")
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args()
    engine = settings.load().paths.llama_server
    if engine is None:
        parser.exit(1, "no llama-server is here: run `make engine`\n")
    rows = {
        name: median(engine, arguments.rounds, preload=preload)
        for name, preload in (("on demand", False), ("preloaded", True))
    }
    if arguments.json:
        print(json.dumps({name: row._asdict() for name, row in rows.items()}))
        return
    print(f"Milliseconds from the start of the process, medians of {arguments.rounds} starts:\n")
    print("MODEL       HEALTH PORT  LISTENING  FIRST TOKEN")
    for name, row in rows.items():
        print(f"{name:<10}{row.health_port:>13.0f}{row.listening:>11.0f}{row.first_token:>13.0f}")


if __name__ == "__main__":
    main()
