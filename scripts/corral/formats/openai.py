"""The OpenAI dialect: what a request wants, read from its body; answers and errors as its clients expect.

Only what the gate itself must know is read: the model, and whether the answer is a stream. Everything
else in a body is between the client and the engine, and passes as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from corral import errors
from corral.formats import multipart

# The engine's own word for a prompt that does not fit, and OpenAI's for the same thing.
CONTEXT_EXCEEDED = {"exceed_context_size_error": "context_length_exceeded"}


_DECODER = json.JSONDecoder()


class Intent(NamedTuple):
    """What a request asks the gate for."""

    model: str | None
    stream: bool
    max_tokens: int | None = None  # the most that is to be generated, where the request says so


# OpenAI's three names, of which the last is that of /v1/responses, and llama.cpp's own.
MAX_TOKENS_NAMES = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")


def read_intent(body: bytes, form_type: str | None = None) -> Intent:
    """Read a request's body. Raises InvalidRequest that names the place and the remedy.

    `form_type`: the content type, if the body is a form.
    """
    if form_type is not None:
        return _form_intent(body, form_type)
    if not body:
        raise errors.InvalidRequest("The request has no body. Send a JSON object.")
    document = _document(body)
    if not isinstance(document, dict):
        raise errors.InvalidRequest(f"The request body must be a JSON object, not {_json_kind(document)}.")
    get = document.get
    stream = get("stream")
    if stream is not None and stream is not True and stream is not False:
        raise errors.InvalidRequest("'stream' must be true or false.", param="stream")
    name = get("model")
    if not isinstance(name, str) or not name:
        name = _model_name(name) if "model" in document else None
    return Intent(name, stream is True, _max_tokens(document))


def form_type(content_type: str | None) -> str | None:
    """The content type, if it is that of a form."""
    is_form = content_type is not None and content_type[:19].lower() == "multipart/form-data"
    return content_type if is_form else None


def _document(body: bytes) -> object:
    """A body as JSON. The usual one, an object from its first byte to its last, takes the short way."""
    try:
        if body.startswith(b"{") and body.endswith(b"}") and body.isascii():
            text = body.decode("ascii")
            document, end = _DECODER.raw_decode(text)
            if end == len(text):
                return document
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise errors.InvalidRequest(f"The request body is not valid JSON: {error}.") from None


def _max_tokens(document: dict[str, Any]) -> int | None:
    """Anything but a sensible number is the engine's to refuse: here it only helps to estimate."""
    for name in MAX_TOKENS_NAMES:
        value = document.get(name)
        if type(value) is int and value >= 0:
            return value
    return None


def _form_intent(body: bytes, content_type: str) -> Intent:
    model = multipart.field(body, content_type, "model")
    stream = multipart.field(body, content_type, "stream")
    return Intent(None if model is None else _model_name(model), stream == "true")


def _model_name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise errors.InvalidRequest(
            f"'model' must be the name of a model, not {_json_kind(value)}.", param="model"
        )
    return value


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    if value == "":
        return "an empty string"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return kinds.get(type(value), "an object")


# Errors -----------------------------------------------------------------------------------------


def error_body(error: errors.CorralError) -> bytes:
    return encode(error_object(error))


def error_object(error: errors.CorralError) -> dict[str, Any]:
    """The envelope around one of our own errors."""
    return _envelope(error.message, error.type, error.param, error.code)


def _envelope(
    message: str, kind: str, param: str | None, code: str, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {"error": {**(more or {}), "message": message, "type": kind, "param": param, "code": code}}


def encode(document: Mapping[str, Any]) -> bytes:
    """JSON as people can read it. Half a character, which JSON can name and UTF-8 can't, becomes a `?`."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")


def upstream_error(status: int, body: bytes) -> errors.CorralError:
    """An engine's own error, where it can't be passed on as an answer of its own any more."""
    error = json.loads(upstream_error_body(status, body))["error"]
    kind = errors.InvalidRequest if status < 500 else errors.UpstreamError
    found = kind(str(error["message"]))
    found.code = str(error["code"])
    return found


def upstream_error_body(status: int, body: bytes) -> bytes:
    """An engine's own error in the same envelope, with the engine's words and figures kept."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = "invalid_request" if status < 500 else "upstream_error"
    inner = _engine_error(body)
    message = inner.get("message") or body[:500].decode("utf-8", "replace").strip()
    code = CONTEXT_EXCEEDED.get(str(inner.get("type")), code)
    more = {key: value for key, value in inner.items() if isinstance(value, int | str)}
    return encode(_envelope(str(message or "The engine gave no reason."), kind, None, code, more))


def _engine_error(body: bytes) -> dict[str, Any]:
    """What stands under "error" in an engine's answer, as far as anything does."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return {}
    if isinstance(error, dict):
        return error
    return {"message": error} if isinstance(error, str) else {}


def error_event(error: errors.CorralError) -> bytes:
    """An error inside a stream that has begun."""
    return b"data: " + error_body(error) + b"\n\n"


def responses_error_event(error: errors.CorralError) -> bytes:
    """The same in a stream of /v1/responses, whose events have names."""
    event = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
    return b"event: error\ndata: " + encode(event) + b"\n\n"


# Models -----------------------------------------------------------------------------------------


class ModelCard(NamedTuple):
    """What `/v1/models` tells of one model."""

    name: str
    created: int
    n_ctx: int
    state: str
    aliases: tuple[str, ...]
    embedding: bool


def model_object(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "corral",
        "n_ctx": card.n_ctx,
        "status": card.state,
        "aliases": list(card.aliases),
        "embedding": card.embedding,
    }


def model_list(cards: list[ModelCard], default: str | None) -> Mapping[str, Any]:
    return {
        "object": "list",
        "data": [model_object(card) for card in cards],
        "default_model": default,
    }
