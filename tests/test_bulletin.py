"""What the gateway says of itself: when it begins to be ready, and that it writes soon and not too often."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest

from corral.bulletin import Bulletin
from corral.fleet import Fleet
from corral.formats.status import ModelState, ModelStatus, Phase, ping_code
from tests.in_a_loop import in_a_loop, turns
from tests.settings.desk import Desk


class FleetOfOne:
    """As much of a fleet as a bulletin asks, with a model in any state."""

    def __init__(self, state: ModelState, *, preload_settled: bool) -> None:
        self.state = state
        self.preload_settled = preload_settled

    def statuses(self) -> dict[str, ModelStatus]:
        return {"m": ModelStatus(self.state)}


class Gateway:
    def __init__(self, root: Path, *, single: bool = False) -> None:
        environ = {"RUNTIME_DIR": str(root / "run")} | ({"MODEL_PATH": "/m.gguf"} if single else {})
        self.bulletin = Bulletin(Desk(root).load(environ=environ))
        self.file = root / "run" / "status.json"

    def serve(self, state: ModelState, *, preload_settled: bool) -> FleetOfOne:
        fleet = FleetOfOne(state, preload_settled=preload_settled)
        self.bulletin.serve(cast(Fleet, fleet))
        return fleet

    @property
    def ping(self) -> int:
        return ping_code(self.bulletin.document())

    def written(self) -> Any:
        return json.loads(self.file.read_bytes())


def test_before_there_is_a_fleet_it_is_starting(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    gateway.bulletin.changed()
    gateway.bulletin.write()
    assert gateway.ping == 204
    assert (gateway.written()["phase"], gateway.written()["models"]) == ("starting", {})


@pytest.mark.parametrize(
    ("state", "settled", "herd", "single"),
    [
        (ModelState.LOADING, False, 204, 204),
        (ModelState.READY, True, 200, 200),
        (ModelState.BACKOFF, True, 200, 204),  # it has died once, and is tried again
        (ModelState.STARTING, True, 200, 204),
        (ModelState.LOADING, True, 200, 204),
        (ModelState.FAILED, True, 200, 503),
        (ModelState.OFF, True, 200, 200),  # no room for it just now, or sent away
    ],
)
def test_the_one_models_fate_is_the_gateways(
    tmp_path: Path, state: ModelState, settled: bool, herd: int, single: int
) -> None:
    for name, code in (("herd", herd), ("single", single)):
        (tmp_path / name).mkdir()
        gateway = Gateway(tmp_path / name, single=name == "single")
        gateway.serve(state, preload_settled=settled)
        assert gateway.ping == code


@pytest.mark.parametrize("state", [ModelState.BACKOFF, ModelState.STARTING, ModelState.LOADING])
def test_what_has_been_ready_is_not_starting_again(tmp_path: Path, state: ModelState) -> None:
    gateway = Gateway(tmp_path, single=True)
    fleet = gateway.serve(ModelState.READY, preload_settled=True)
    fleet.state, fleet.preload_settled = state, False
    assert gateway.ping == 200
    fleet.state = ModelState.FAILED
    assert gateway.ping == 503


def test_the_log_says_ready_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gateway = Gateway(tmp_path, single=True)
    fleet = gateway.serve(ModelState.BACKOFF, preload_settled=True)
    assert "READY" not in caplog.text
    for fleet.state in (ModelState.READY, ModelState.FAILED, ModelState.READY):
        gateway.bulletin.write()
    assert caplog.text.count("READY after ") == 1


@in_a_loop
async def test_several_changes_of_one_moment_make_one_file(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    fleet = gateway.serve(ModelState.OFF, preload_settled=True)
    before = gateway.file.stat().st_ino
    for fleet.state in (ModelState.STARTING, ModelState.LOADING):
        gateway.bulletin.changed()
    assert gateway.file.stat().st_ino == before, "not within the change itself"
    await turns()
    assert gateway.written()["models"] == {"m": {"status": "loading"}}
    gateway.bulletin.phase = Phase.DRAINING
    gateway.bulletin.changed()
    await turns()
    assert gateway.written()["phase"] == "draining"


def test_a_file_that_cannot_be_written_is_an_error_in_the_log_and_nowhere_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway(tmp_path)
    (tmp_path / "run").write_text("in the way")
    gateway.bulletin.write()
    assert f"the status file {gateway.file} cannot be written" in caplog.text
