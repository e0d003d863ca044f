"""The OpenAI dialect by value: what a body asks for, and what errors and lists look like."""

from __future__ import annotations

import json
import random

import pytest

from corral import errors
from corral.formats import openai
from corral.formats.openai import Intent, ModelCard


def refusal(body: bytes, form_type: str | None = None) -> errors.InvalidRequest:
    with pytest.raises(errors.InvalidRequest) as caught:
        openai.read_intent(body, form_type)
    return caught.value


# What a request wants ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "intent"),
    [
        (b"{}", Intent(None, False)),
        (b'{"model": "a"}', Intent("a", False)),
        (b'{"model": "org/\\u00fc:q8", "stream": true}', Intent("org/ü:q8", True)),
        (b'{"stream": false}', Intent(None, False)),
        (b'{"stream": null}', Intent(None, False)),
        (b'\xef\xbb\xbf{"model": "a"}', Intent("a", False)),
        (b'{"model": "a", "model": "b"}', Intent("b", False)),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "a"}', Intent("a", False)),
    ],
    ids=["nothing", "model", "both", "no stream", "null stream", "byte order mark", "twice", "more"],
)
def test_an_intent_is_read_from_json_whatever_its_declared_type(body: bytes, intent: Intent) -> None:
    assert openai.read_intent(body) == intent


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b"", "The request has no body. Send a JSON object.", None),
        (b"[]", "The request body must be a JSON object, not an array.", None),
        (b'"x"', "The request body must be a JSON object, not a string.", None),
        (b'""', "The request body must be a JSON object, not an empty string.", None),
        (b"null", "The request body must be a JSON object, not null.", None),
        (b"7", "The request body must be a JSON object, not a number.", None),
        (b"7.5", "The request body must be a JSON object, not a number.", None),
        (b"true", "The request body must be a JSON object, not a boolean.", None),
        (b'{"model": null}', "'model' must be the name of a model, not null.", "model"),
        (b'{"model": ""}', "'model' must be the name of a model, not an empty string.", "model"),
        (b'{"model": 7}', "'model' must be the name of a model, not a number.", "model"),
        (b'{"model": ["a"]}', "'model' must be the name of a model, not an array.", "model"),
        (b'{"model": {}}', "'model' must be the name of a model, not an object.", "model"),
        (b'{"stream": "true"}', "'stream' must be true or false.", "stream"),
        (b'{"stream": 1}', "'stream' must be true or false.", "stream"),
    ],
    ids=lambda value: value.decode() or "empty" if isinstance(value, bytes) else "",
)
def test_what_can_be_no_intent_is_refused_with_its_place(
    body: bytes, message: str, param: str | None
) -> None:
    error = refusal(body)
    assert (error.status, error.code, error.message, error.param) == (400, "invalid_request", message, param)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{'model': 'a'}",
        b'{"model": "a"} {}',
        b"\xff\xfe\xfd",
        b"\x00",
        b"[" * 200_000,
        b'{"a": ' * 100_000,
        b"1" * 10_000,
    ],
    ids=["cut", "quotes", "two", "no text", "nul", "deep arrays", "deep objects", "long number"],
)
def test_what_is_no_json_is_refused_without_being_repeated(body: bytes) -> None:
    error = refusal(body)
    assert error.message.startswith("The request body is not valid JSON: ")
    assert len(error.message) < 200


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data; boundary=B", 'Multipart/Form-Data; charset=x; Boundary="B"'],
)
def test_a_form_names_its_model_in_a_field(content_type: str) -> None:
    part = '--B\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'.format
    form = (part("file", "RIFF") + part("model", "whisper") + part("stream", "true") + "--B--\r\n").encode()
    assert openai.read_intent(form, content_type) == Intent("whisper", True)
    bare = (part("file", "RIFF") + "--B--\r\n").encode()
    assert openai.read_intent(bare, content_type) == Intent(None, False)
    empty = (part("model", "") + "--B--\r\n").encode()
    assert refusal(empty, content_type).param == "model"


@pytest.mark.parametrize(
    ("body", "most"),
    [
        (b"{}", None),
        (b'{"max_tokens": 7}', 7),
        (b'{"max_completion_tokens": 8}', 8),
        (b'{"max_output_tokens": 6}', 6),
        (b'{"n_predict": 9}', 9),
        (b'{"max_tokens": 7, "max_completion_tokens": 8, "n_predict": 9}', 8),
        (b'{"max_tokens": 0}', 0),
        (b'{"n_predict": -1}', None),
        (b'{"max_completion_tokens": null, "max_tokens": 7}', 7),
        (b'{"max_tokens": "7"}', None),
        (b'{"max_tokens": 7.5}', None),
        (b'{"max_tokens": true}', None),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
def test_how_much_may_be_generated_is_read_where_it_makes_sense(body: bytes, most: int | None) -> None:
    assert openai.read_intent(body).max_tokens == most


# Errors ------------------------------------------------------------------------------------------


def test_an_error_is_the_envelope_with_its_four_fields() -> None:
    error = errors.ModelNotFound("There is no model 'ü'.", param="model")
    assert (
        openai.error_body(error)
        == (
            '{"error": {"message": "There is no model \'ü\'.", "type": "invalid_request_error", '
            '"param": "model", "code": "model_not_found"}}'
        ).encode()
    )
    assert openai.error_object(error) == json.loads(openai.error_body(error))


def test_an_error_in_a_stream_is_one_event_that_begins_on_a_line_of_its_own() -> None:
    error = errors.UpstreamError("two\nlines")
    event = openai.error_event(error)
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == "two\nlines"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        pytest.param(
            400,
            {"error": {"code": 400, "message": "bad grammar", "type": "invalid_request_error"}},
            {"message": "bad grammar", "type": "invalid_request_error", "code": "invalid_request"},
            id="the engine's own",
        ),
        pytest.param(
            400,
            {
                "error": {
                    "code": 400,
                    "message": "too long",
                    "type": "exceed_context_size_error",
                    "n_prompt_tokens": 9000,
                    "n_ctx": 4096,
                }
            },
            {
                "message": "too long",
                "type": "invalid_request_error",
                "code": "context_length_exceeded",
                "n_prompt_tokens": 9000,
                "n_ctx": 4096,
            },
            id="a prompt too long, with its figures",
        ),
        pytest.param(
            501,
            {"error": {"code": 501, "message": "no embeddings", "type": "not_supported_error"}},
            {"message": "no embeddings", "type": "server_error", "code": "upstream_error"},
            id="not supported",
        ),
        pytest.param(
            500,
            {"error": "in a word"},
            {"message": "in a word", "type": "server_error", "code": "upstream_error"},
            id="a word",
        ),
        pytest.param(
            422,
            {"error": {"message": "x", "kind": "k", "status": 1, "param": "p", "deep": {"a": [1]}}},
            {
                "message": "x",
                "type": "invalid_request_error",
                "code": "invalid_request",
                "kind": "k",
                "status": 1,
            },
            id="names that we use ourselves",
        ),
    ],
)
def test_an_engines_error_comes_in_our_envelope(
    status: int, body: dict[str, object], expected: dict[str, object]
) -> None:
    answer = json.loads(openai.upstream_error_body(status, json.dumps(body).encode()))
    assert answer == {"error": {"param": None, **expected}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The engine gave no reason."),
        (b"  \n", "The engine gave no reason."),
        (b"File not found", "File not found"),
        (b"\xffgarbage", "\ufffdgarbage"),
        (b"x" * 10_000, "x" * 500),
        (b'{"error": {}}', '{"error": {}}'),
        (b'{"error": null}', '{"error": null}'),
        (b'{"detail": "no"}', '{"detail": "no"}'),
        (b"[1]", "[1]"),
        (b"null", "null"),
        (b'{"error": {"message": ""}}', '{"error": {"message": ""}}'),
        (b"[" * 1000, "[" * 500),
        (b'{"error": "\\ud800"}', "?"),
        (b'{"error": {"message": "m", "size": NaN}}', "m"),
    ],
    ids=lambda value: "",
)
def test_an_engines_error_of_any_shape_is_told_as_far_as_it_can_be(body: bytes, message: str) -> None:
    answer = json.loads(openai.upstream_error_body(500, body), parse_constant=pytest.fail)
    expected = {"message": message, "type": "server_error", "param": None, "code": "upstream_error"}
    assert answer == {"error": expected}


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(400, "invalid_request", errors.InvalidRequest), (500, "upstream_error", errors.UpstreamError)],
)
def test_an_engines_error_can_be_raised_as_our_own(
    status: int, code: str, kind: type[errors.CorralError]
) -> None:
    error = openai.upstream_error(status, b'{"error": {"code": 1, "message": "no such grammar"}}')
    assert type(error) is kind
    assert (error.message, error.code) == ("no such grammar", code)
    assert kind.code == code, "the class keeps its own"


def test_an_engines_error_that_is_raised_keeps_its_code() -> None:
    body = b'{"error": {"message": "too long", "type": "exceed_context_size_error"}}'
    assert openai.upstream_error(400, body).code == "context_length_exceeded"
    assert errors.InvalidRequest("x").code == "invalid_request"


def test_an_error_in_a_stream_of_responses_is_an_event_with_a_name() -> None:
    event = openai.responses_error_event(errors.QueueTimeout("too\nlong"))
    name, data, *rest = event.decode().split("\n")
    assert (name, rest) == ("event: error", ["", ""])
    assert json.loads(data.removeprefix("data: ")) == {
        "type": "error",
        "code": "queue_timeout",
        "message": "too\nlong",
        "param": None,
    }


def mutated(luck: random.Random, text: bytes) -> bytes:
    """The text with a few bytes changed, left out or repeated."""
    body = bytearray(text)
    for _ in range(luck.randint(0, 4)):
        place = luck.randrange(len(body) + 1)
        body[place : place + luck.randint(0, 3)] = luck.randbytes(luck.randint(0, 3))
    return bytes(body)


@pytest.mark.parametrize("seed", range(10))
def test_whatever_comes_is_an_intent_or_a_clear_refusal_and_an_error_stays_json(seed: int) -> None:
    luck = random.Random(seed)
    sample = b'{"error": {"message": "caf\xc3\xa9 \\ud83d", "n": [1, 2.5e3]}, "model": "m", "stream": true}'
    for _ in range(500):
        body = mutated(luck, sample)
        try:
            intent = openai.read_intent(body)
        except errors.InvalidRequest:
            pass
        else:
            assert intent.model is None or intent.model
        answer = json.loads(openai.upstream_error_body(luck.randint(400, 599), body))
        assert {"message", "type", "param", "code"} <= answer["error"].keys()
        assert answer["error"]["message"]


# Models ------------------------------------------------------------------------------------------


def test_a_list_of_models_is_what_openais_clients_read_and_a_little_more() -> None:
    card = ModelCard("demo", 1_700_000_000, 4096, "ready", ("gpt-4o-mini",), False)
    assert openai.model_list([card], "demo") == {
        "object": "list",
        "data": [
            {
                "id": "demo",
                "object": "model",
                "created": 1_700_000_000,
                "owned_by": "corral",
                "n_ctx": 4096,
                "status": "ready",
                "aliases": ["gpt-4o-mini"],
                "embedding": False,
            }
        ],
        "default_model": "demo",
    }
    assert openai.model_list([], None) == {"object": "list", "data": [], "default_model": None}
