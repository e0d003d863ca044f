"""The queue before the real llama-server: a greedy key among others; two models that don't fit together."""

from __future__ import annotations

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.end_to_end.talk import CHAT, chat, metric, model_status
from tests.support import KEY, KEYS_FILE, Answer, Corral, ask, running_corral
from tests.waiting import wait_until

ALTERED_GATEWAY = Path(__file__).with_name("altered_gateway.py")
GREEDY, MODEST = "sk-greedy-0123456789", "sk-modest-0123456789"
KEYS = f"{KEYS_FILE}greedy:{GREEDY}:rpm=0\nmodest:{MODEST}:rpm=0\n"
GREEDY_REQUESTS = 500


class Timed(NamedTuple):
    answer: Answer
    asked_at: float
    over_at: float

    @property
    def wait_s(self) -> float:
        """How long it waited in the queue, as it was told."""
        return int(self.answer.headers["x-queue-wait-ms"]) / 1000


def timed(corral: Corral, key: str, body: dict[str, Any]) -> Timed:
    asked_at = time.monotonic()
    answer = ask(corral.url + CHAT, body, headers={"Authorization": f"Bearer {key}"})
    return Timed(answer, asked_at, time.monotonic())


def test_a_key_with_five_hundred_requests_does_not_bury_a_key_with_one(
    tmp_path: Path, llama_server: Path, demo_files: Path
) -> None:
    body = chat(max_tokens=40, ignore_eos=True)
    with running_corral(tmp_path, llama_server, demo_files, keys=KEYS) as corral:
        assert corral.ask("/v1/models/load", {"model": "demo"}).status == 200
        pid = model_status(corral)["pid"]
        with ThreadPoolExecutor(GREEDY_REQUESTS) as pool:
            # It answers hundreds in a second, on a busy machine before so many threads have asked.
            os.kill(pid, signal.SIGSTOP)
            try:
                flood = [pool.submit(timed, corral, GREEDY, body) for _ in range(GREEDY_REQUESTS)]
                wait_until(
                    lambda: queued(corral) >= 400, "four hundred requests of the greedy key wait", 20.0
                )
            finally:
                os.kill(pid, signal.SIGCONT)
            modest = timed(corral, MODEST, body)
            greedy = [future.result() for future in flood]
        assert modest.answer.status == 200, modest.answer.body
        assert {each.answer.status for each in greedy} == {200}
        # Whoever ran when it came, and at most one more whose turn it was.
        before_it = sum(modest.asked_at < each.over_at < modest.over_at for each in greedy)
        assert before_it <= 3
        after_it = sum(each.over_at > modest.over_at for each in greedy)
        assert after_it >= 250
        tokens = metric(corral, "router_tokens_total", key_id="greedy", kind="completion")
        assert tokens == GREEDY_REQUESTS * 40


def queued(corral: Corral) -> int:
    figures: dict[str, int] = corral.ask("/v1/queue/stats").json()["summary"]
    return figures["total_queued"]


# Two models, one place -----------------------------------------------------------------------------

LOAD_S = 1.0
REQUESTS = 40
UNTIL_S = 6.0


@pytest.fixture
def slow_engine(tmp_path: Path, llama_server: Path) -> Path:
    """The real one, which takes its time to start: a model that loads for a second would have gigabytes."""
    script = tmp_path / "slow-llama-server"
    script.write_text(f'#!/bin/sh\nsleep {LOAD_S}\nexec {llama_server} "$@"\n')
    script.chmod(0o755)
    return script


class Run(NamedTuple):
    switches: int
    waits: list[float]
    service_s: float


def mixed_load(directory: Path, engine: Path, demo_files: Path, environment: dict[str, str]) -> Run:
    """Requests for two models in turns that chance decides, the same ones every time."""
    chance = random.Random(7)
    trace = sorted((chance.uniform(0, UNTIL_S), chance.choice(("one", "two"))) for _ in range(REQUESTS))
    demo = str(demo_files / "demo.gguf")
    config = {
        "system": {"max_concurrent_models": 1},
        "models": {name: {"model_path": demo} for name in ("one", "two")},
    }
    directory.mkdir()
    options: dict[str, Any] = {"config": config, "environment": environment, "program": ALTERED_GATEWAY}
    with running_corral(directory, engine, demo_files, **options) as corral:
        began_at = time.monotonic()

        def asked(at: float, model: str) -> Timed:
            time.sleep(max(0.0, began_at + at - time.monotonic()))  # a client that comes at its time
            return timed(corral, KEY, chat(model, max_tokens=200, ignore_eos=True))

        with ThreadPoolExecutor(REQUESTS) as pool:
            answers = list(pool.map(lambda when: asked(*when), trace))
        assert {each.answer.status for each in answers} == {200}
        switches = int(metric(corral, "router_model_evictions_total", reason="room"))
    waits = sorted(each.wait_s for each in answers)
    service_s = max(each.over_at - each.asked_at - each.wait_s for each in answers)
    return Run(switches, waits, service_s)


def test_two_models_that_do_not_fit_together_take_turns_seldom(
    tmp_path: Path, slow_engine: Path, demo_files: Path
) -> None:
    ours = mixed_load(tmp_path / "ours", slow_engine, demo_files, {})
    fifo = mixed_load(tmp_path / "fifo", slow_engine, demo_files, {"FIFO": "1"})
    print(f"\nours {ours.switches} switches, longest wait {ours.waits[-1]:.1f} s; ", end="")
    print(f"fifo {fifo.switches} switches, longest wait {fifo.waits[-1]:.1f} s")
    assert 3 * ours.switches <= fifo.switches
    # Four prices of patience (as loads were measured), the request that runs, the load; then its own queue.
    price_s = 2 * (LOAD_S + 1.0)
    assert ours.waits[-1] <= 4 * price_s + LOAD_S + 1.0 + REQUESTS * ours.service_s
    assert ours.waits[int(0.95 * REQUESTS)] <= fifo.waits[int(0.95 * REQUESTS)]
