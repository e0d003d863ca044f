"""A model that dies five times in a row is given up: nobody waits for it any more, and all are told why."""

from __future__ import annotations

from tests.end_to_end.conftest import Hopeless
from tests.end_to_end.talk import CHAT, chat, is_in_state
from tests.support import ask
from tests.waiting import wait_until

# Between five deaths there are pauses of 1, 2, 4 and 8 seconds, each up to a fifth longer.
GIVEN_UP_AFTER_S = 30


def test_five_deaths_in_a_row_are_enough(hopeless: Hopeless) -> None:
    corral = hopeless.herd
    wait_until(lambda: is_in_state(corral, "failed", "doomed"), "it is given up", GIVEN_UP_AFTER_S)
    answer = corral.ask(CHAT, chat("doomed"))
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (503, "model_failed")
    assert "died 5 times in a row and was given up" in error["message"]
    assert "failed to load model" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["retry-after"] is None
    logs = corral.data / "logs" / "llama-doomed"
    wait_until(lambda: len(list(logs.glob("*_server_*.log"))) == 5, "each death has left its log")


def test_the_other_models_are_served_on(hopeless: Hopeless) -> None:
    corral = hopeless.herd
    assert corral.ask(CHAT, chat()).status == 200
    for url in (corral.url, corral.health_url):
        assert [ask(url + path).status for path in ("/ping", "/ready", "/live")] == [200] * 3


def test_in_single_model_mode_the_models_failure_is_the_machines(hopeless: Hopeless) -> None:
    corral = hopeless.single
    wait_until(lambda: is_in_state(corral, "failed", "garbage"), "its model is given up", GIVEN_UP_AFTER_S)
    for url in (corral.url, corral.health_url):
        assert [ask(url + path).status for path in ("/ping", "/ready", "/live")] == [503, 503, 200]
    assert "READY after" not in corral.log_text, "it has never been"
