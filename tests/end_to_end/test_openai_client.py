"""The official `openai` package talks to Corral as it does to its own service, errors included."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from corral.formats.demo_models import SCRIPT
from tests.support import KEY, KEYS_FILE, Corral, running_corral

SLOW_KEY = "sk-slow-0123456789abcdef"
NARROW_KEY = "sk-narrow-0123456789abcdef"
KEYS = f"{KEYS_FILE}slow:{SLOW_KEY}:rpm=2\nnarrow:{NARROW_KEY}:rpm=0,models=demo-embed\n"
ASKED: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def corral(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, demo_files: Path
) -> Iterator[Corral]:
    with running_corral(tmp_path_factory.mktemp("openai"), llama_server, demo_files, keys=KEYS) as instance:
        yield instance


def client_with(corral: Corral, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{corral.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def client(corral: Corral) -> Iterator[openai.OpenAI]:
    with client_with(corral, KEY) as ours:
        yield ours


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model="demo", messages=ASKED)
    [choice] = completion.choices
    assert choice.message.content == SCRIPT
    assert choice.finish_reason == "stop"
    assert completion.model == "demo"
    assert completion.usage is not None
    assert (
        completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    )


def test_a_chat_is_streamed_token_by_token(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="demo", messages=ASKED, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == SCRIPT
    assert len(pieces) > 20
    assert {chunk.model for chunk in chunks} == {"demo"}
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens > 20


def test_many_chats_at_once_through_the_asynchronous_client(corral: Corral) -> None:
    async def one(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model="demo", messages=ASKED, stream=True)
        async with stream:
            parts = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
        return "".join(parts)

    async def all_of_them() -> list[str]:
        base_url = f"{corral.url}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*(one(client) for _ in range(10)))

    assert asyncio.run(all_of_them()) == [SCRIPT] * 10


def test_a_text_is_completed(client: openai.OpenAI) -> None:
    completion = client.completions.create(model="demo", prompt="Once upon a time", max_tokens=500)
    assert completion.choices[0].text == SCRIPT
    assert completion.object == "text_completion"


def test_texts_are_embedded(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="demo-embed", input=["a corral", "a herd"])
    assert [len(item.embedding) for item in answer.data] == [64, 64]
    assert [item.index for item in answer.data] == [0, 1]
    assert answer.model == "demo-embed"


def test_models_are_listed_and_shown(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo", "demo-embed"]
    model = client.models.retrieve("demo-embed")
    assert (model.id, model.object, model.owned_by) == ("demo-embed", "model", "corral")
    assert model.created > 1_700_000_000


def test_a_client_sees_the_id_of_its_request(client: openai.OpenAI) -> None:
    raw = client.models.with_raw_response.list(extra_headers={"X-Request-ID": "my-own-id-1"})
    assert raw.headers["x-request-id"] == "my-own-id-1"
    assert client.chat.completions.create(model="demo", messages=ASKED, max_tokens=1)._request_id


def test_a_wrong_key_is_an_authentication_error(corral: Corral) -> None:
    with (
        client_with(corral, "sk-not-a-key-of-this-place") as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.type == "authentication_error"
    assert "sk-not-a-key" not in str(caught.value)


def test_an_unknown_model_is_not_found_and_the_others_are_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=ASKED)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "demo, demo-embed" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_a_model_that_the_key_may_not_use_is_permission_denied(corral: Corral) -> None:
    with client_with(corral, NARROW_KEY) as client:
        assert [model.id for model in client.models.list()] == ["demo-embed"]
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.chat.completions.create(model="demo", messages=ASKED)
        assert (caught.value.code, caught.value.type) == ("model_not_allowed", "permission_error")
        with pytest.raises(openai.NotFoundError, match=r"There is: demo-embed\."):
            client.models.retrieve("gpt-4o")


def test_a_model_that_cannot_do_it_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="demo", input="text")
    assert (caught.value.code, caught.value.param) == ("invalid_request", "model")


def test_a_prompt_beyond_the_context_is_a_bad_request_with_its_figures(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="demo", prompt="too long " * 5000)
    assert caught.value.code == "context_length_exceeded"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["n_ctx"] == 4096
    assert caught.value.body["n_prompt_tokens"] > 4096


def test_what_the_engine_refuses_is_a_bad_request_in_its_words(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="messages") as caught:
        client.post("/chat/completions", body={"model": "demo"}, cast_to=object)
    assert (caught.value.code, caught.value.type) == ("invalid_request", "invalid_request_error")


def test_too_many_requests_are_a_rate_limit_error_that_says_how_long_to_wait(corral: Corral) -> None:
    with client_with(corral, SLOW_KEY) as client:
        left = [
            client.models.with_raw_response.list().headers["x-ratelimit-remaining-requests"] for _ in "12"
        ]
        with pytest.raises(openai.RateLimitError) as caught:
            client.models.list()
    assert left == ["1", "0"]
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    headers = caught.value.response.headers
    # The client sleeps for so long before its next try, if it is allowed one.
    assert 55 <= int(headers["retry-after"]) <= 60
    assert 0 <= int(headers["retry-after"]) * 1000 - int(headers["retry-after-ms"]) < 1000
