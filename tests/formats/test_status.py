"""The status document by value: its codes, its public body, its events, and what it refuses to read."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from corral.formats import status
from corral.formats.status import ModelState, ModelStatus, Phase, ServerState, StatusDocument, View

SERVING = StatusDocument(
    instance="box-1",
    pid=4242,
    pid_started=123456,
    written_at=1_800_000_000.25,
    phase=Phase.SERVING,
    preload_settled=True,
    single_model_failed=False,
    models={
        "qwen-7b": ModelStatus(ModelState.READY, port=8085, vram_mb=4096),
        "llama-3b": ModelStatus(ModelState.OFF),
    },
)


def with_fields(**fields: Any) -> bytes:
    """The JSON of SERVING with some fields set to raw JSON values, or left out where given as `...`."""
    raw = json.loads(status.to_json(SERVING))
    raw.update(fields)
    return json.dumps({key: value for key, value in raw.items() if value is not ...}).encode()


def with_model(**fields: Any) -> bytes:
    return with_fields(models={"m": fields})


@pytest.mark.parametrize(
    ("phase", "settled", "failed", "word", "code"),
    [
        pytest.param(Phase.STARTING, False, False, "starting", 204, id="starting"),
        pytest.param(Phase.STARTING, True, False, "starting", 204, id="starting-nothing-to-preload"),
        pytest.param(Phase.SERVING, False, False, "starting", 204, id="listening-preload-not-settled"),
        pytest.param(Phase.SERVING, True, False, "ready", 200, id="listening-and-settled"),
        pytest.param(Phase.SERVING, True, True, "failed", 503, id="single-model-failed"),
        pytest.param(Phase.SERVING, False, True, "failed", 503, id="single-model-failed-before-settling"),
        pytest.param(Phase.STARTING, False, True, "failed", 503, id="single-model-failed-at-start"),
        pytest.param(Phase.DRAINING, True, False, "draining", 503, id="draining"),
        pytest.param(Phase.DRAINING, False, True, "draining", 503, id="draining-outranks-failed"),
    ],
)
def test_every_phase_has_its_word_and_its_ping_code(
    phase: Phase, settled: bool, failed: bool, word: str, code: int
) -> None:
    document = dataclasses.replace(SERVING, phase=phase, preload_settled=settled, single_model_failed=failed)
    assert status.server_state(document).value == word
    assert status.ping_code(document) == code
    assert status.ready(document) is (code == 200)


@pytest.mark.parametrize("state", list(ModelState), ids=lambda state: state.value)
def test_a_models_state_alone_never_changes_the_ping_code(state: ModelState) -> None:
    document = dataclasses.replace(SERVING, models={"m": ModelStatus(state)})
    assert status.ping_code(document) == 200


def test_a_server_without_models_is_ready() -> None:
    assert status.ping_code(dataclasses.replace(SERVING, models={})) == 200


def test_every_server_state_has_a_ping_code() -> None:
    assert set(status.PING_CODES) == set(ServerState)


def test_the_body_is_exactly_the_promised_sample() -> None:
    assert json.dumps(status.body(SERVING), separators=(",", ":")) == (
        '{"server":{"status":"ready"},'
        '"models":{"qwen-7b":{"status":"ready","port":8085,"vram_mb":4096},"llama-3b":{"status":"off"}},'
        '"summary":{"ready":1,"off":1}}'
    )


def test_a_model_may_carry_more_keys_but_not_forge_its_own() -> None:
    model = ModelStatus(ModelState.READY, port=8085, extra={"slots": 4})
    assert status.model_entry(model) == {"status": "ready", "port": 8085, "slots": 4}
    with pytest.raises(ValueError, match="extra keys"):
        ModelStatus(ModelState.OFF, extra={"status": "ready"})


READY = ModelStatus(ModelState.READY, port=8085)
OFF = ModelStatus(ModelState.OFF)
BEFORE = View(ServerState.READY, {"a": READY, "b": OFF})


@pytest.mark.parametrize(
    ("after", "events"),
    [
        pytest.param(BEFORE, [], id="nothing"),
        pytest.param(
            View(ServerState.READY, {"a": dataclasses.replace(READY, vram_mb=9), "b": OFF}),
            [],
            id="a-number-but-no-word",
        ),
        pytest.param(
            View(ServerState.READY, {"a": READY, "b": ModelStatus(ModelState.LOADING, port=8086)}),
            [("model_update", {"alias": "b", "status": "loading", "port": 8086})],
            id="a-models-word",
        ),
        pytest.param(
            View(ServerState.READY, {"a": READY, "b": OFF, "c": OFF}),
            [("model_update", {"alias": "c", "status": "off"})],
            id="a-new-model",
        ),
        pytest.param(
            View(ServerState.READY, {"b": OFF}),
            [("full_status", status.view_body(View(ServerState.READY, {"b": OFF})))],
            id="a-model-has-left",
        ),
        pytest.param(
            View(ServerState.DRAINING, {"a": OFF, "b": OFF}),
            [
                ("full_status", status.view_body(View(ServerState.DRAINING, {"a": OFF, "b": OFF}))),
                ("model_update", {"alias": "a", "status": "off"}),
            ],
            id="the-servers-word-and-a-models",
        ),
    ],
)
def test_a_stream_says_what_has_changed(after: View, events: list[tuple[str, Any]]) -> None:
    assert list(status.view_events(BEFORE, after)) == events


def test_a_stream_begins_with_everything() -> None:
    view = View(ServerState.READY, SERVING.models)
    assert list(status.view_events(None, view)) == [("full_status", status.body(SERVING))]


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(SERVING, id="serving"),
        pytest.param(dataclasses.replace(SERVING, pid_started=None, models={}), id="bare"),
        pytest.param(
            dataclasses.replace(
                SERVING,
                instance='Grüße "\\\n',
                models={
                    "a/b:c": ModelStatus(ModelState.FAILED, extra={"detail": "exit 1\n", "log": ["x", 1.5]})
                },
            ),
            id="odd-characters",
        ),
    ],
)
def test_what_is_written_is_read_back(document: StatusDocument) -> None:
    assert status.from_json(status.to_json(document)) == document


def test_every_cut_of_a_document_is_refused() -> None:
    payload = status.to_json(SERVING)
    for length in range(len(payload)):
        with pytest.raises(ValueError, match=r".+"):
            status.from_json(payload[:length])
    status.from_json(payload)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe\x00", id="not-text"),
        pytest.param(b"[]", id="not-an-object"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[" * 100_000, id="nested-too-deeply"),
        pytest.param(b" " * (status.DOCUMENT_BYTES_MAX + 1), id="too-large"),
        pytest.param(with_fields(instance=...), id="instance-missing"),
        pytest.param(with_fields(pid=...), id="pid-missing"),
        pytest.param(with_fields(pid="1"), id="pid-text"),
        pytest.param(with_fields(pid=True), id="pid-boolean"),
        pytest.param(with_fields(pid=0), id="pid-zero"),
        pytest.param(with_fields(pid=2**31), id="pid-beyond-any"),
        pytest.param(with_fields(pid_started=-1), id="pid-started-negative"),
        pytest.param(with_fields(pid_started=1.5), id="pid-started-fraction"),
        pytest.param(with_fields(written_at="now"), id="written-at-text"),
        pytest.param(with_fields(written_at=float("inf")), id="written-at-infinite"),
        pytest.param(
            status.to_json(SERVING).replace(b"1800000000.25", b"1e999"), id="written-at-infinite-in-disguise"
        ),
        pytest.param(with_fields(written_at=float("nan")), id="written-at-nan"),
        pytest.param(with_fields(phase="dancing"), id="phase-unknown"),
        pytest.param(with_fields(preload_settled=1), id="settled-a-number"),
        pytest.param(with_fields(single_model_failed=None), id="failed-null"),
        pytest.param(with_fields(models=[]), id="models-a-list"),
        pytest.param(with_fields(surprise=1), id="unknown-key"),
        pytest.param(with_fields(models={"m": "ready"}), id="model-not-an-object"),
        pytest.param(with_model(status="asleep"), id="model-state-unknown"),
        pytest.param(with_model(port=8085), id="model-state-missing"),
        pytest.param(with_model(status="ready", port="8085"), id="model-port-text"),
        pytest.param(with_model(status="ready", port=-1), id="model-port-negative"),
        pytest.param(with_model(status="ready", vram_mb=False), id="model-vram-boolean"),
    ],
)
def test_anything_else_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        status.from_json(payload)


def test_an_infinite_extra_value_is_not_written() -> None:
    model = ModelStatus(ModelState.READY, extra={"load": float("inf")})
    with pytest.raises(ValueError, match="JSON"):
        status.to_json(dataclasses.replace(SERVING, models={"m": model}))
