"""The demo models in the real llama-server, started by our own command line, do what they were made for."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from corral.catalogue import Model
from corral.drivers import model_store
from corral.formats.demo_models import PARAGRAPH, SCRIPT
from corral.policy import launch
from corral.settings import load
from tests.models import a_model
from tests.support import ask, free_port
from tests.waiting import wait_until

Ask = Callable[..., Any]


@contextmanager
def running(engine: Path, model: Model, directory: Path) -> Iterator[Ask]:
    """A llama-server for `model` while it is needed; what is yielded posts a body and returns the answer."""
    port, log = free_port(), directory / f"{model.name}.log"
    url = f"http://127.0.0.1:{port}"
    options: dict[str, Any] = {"host": "127.0.0.1", "port": port, "default_parallel": 1, "threads": 1}
    argv = launch.command(model, llama_server=str(engine), **options)

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return ask(f"{url}/health").status == 200
        except OSError:
            return False

    def post(path: str, **body: Any) -> Any:
        answer = ask(url + path, body)
        assert answer.status == 200, answer.body
        return answer.json()

    with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output) as process:
        try:
            wait_until(is_ready, "llama-server is ready")
            yield post
        finally:
            process.kill()


@pytest.fixture(scope="module")
def models(demo_files: Path) -> dict[str, Model]:
    """The models as the gateway would know them."""
    environ = {"DATA_DIR": str(demo_files), "BASE_MODELS_PATH": str(demo_files), "PATH": ""}
    return dict(model_store.catalogue(load(environ, cwd=demo_files)).models)


@pytest.fixture(scope="module")
def demo(
    llama_server: Path, models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ask]:
    with running(llama_server, models["demo"], tmp_path_factory.mktemp("engine")) as post:
        yield post


@pytest.fixture(scope="module")
def embedder(
    llama_server: Path, models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ask]:
    with running(llama_server, models["demo-embed"], tmp_path_factory.mktemp("engine")) as post:
        yield post


def chat(post: Ask, **options: Any) -> Any:
    return post("/v1/chat/completions", messages=[{"role": "user", "content": "Who are you?"}], **options)


@pytest.mark.parametrize("temperature", [0, 1, 2, 100])
def test_demo_recites_its_script_at_any_temperature_and_stops(demo: Ask, temperature: float) -> None:
    answer = chat(demo, temperature=temperature, top_k=0, top_p=1, min_p=0)
    [choice] = answer["choices"]
    assert choice["message"]["content"] == SCRIPT
    assert choice["finish_reason"] == "stop"
    assert answer["model"] == "demo"


def test_demo_begins_again_when_it_may_not_stop(demo: Ask) -> None:
    [choice] = chat(demo, ignore_eos=True, max_tokens=1000)["choices"]
    text = choice["message"]["content"]
    assert text == ((SCRIPT + PARAGRAPH) * 20)[: len(text)]
    assert text.count(SCRIPT) >= 15
    assert choice["finish_reason"] == "length"


def test_demo_completes_any_prompt_with_its_script(demo: Ask) -> None:
    answer = demo("/v1/completions", prompt="Once upon a time, in Züri,")
    assert answer["choices"][0]["text"] == SCRIPT


def embed(post: Ask, *texts: str) -> list[list[float]]:
    return [item["embedding"] for item in post("/v1/embeddings", input=list(texts))["data"]]


def similarity(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


QUESTION = "How do I reset my password?"
SAME_BUT_FOR_CASE = "how do I reset my PASSWORD?"
RELATED = ("how can i reset the password", "I forgot my password, how do I reset it?")
UNRELATED = ("What is the capital of France?", "Bananas are rich in potassium.", "The weather is fine today.")


def test_demo_embed_gives_unit_vectors_of_64_numbers(embedder: Ask) -> None:
    for vector in embed(embedder, QUESTION, *UNRELATED):
        assert len(vector) == 64
        assert similarity(vector, vector) == pytest.approx(1.0, abs=1e-5)


def test_demo_embed_gives_equal_texts_equal_vectors(embedder: Ask) -> None:
    first, again, other_case = embed(embedder, QUESTION, QUESTION, SAME_BUT_FOR_CASE)
    assert similarity(first, again) == pytest.approx(1.0, abs=1e-5)
    assert similarity(first, other_case) == pytest.approx(1.0, abs=1e-5)


def test_demo_embed_puts_related_texts_closer_than_unrelated_ones(embedder: Ask) -> None:
    question, *others = embed(embedder, QUESTION, *RELATED, *UNRELATED)
    closeness = [similarity(question, other) for other in others]
    assert min(closeness[: len(RELATED)]) > max(closeness[len(RELATED) :]) + 0.15


def test_demo_embed_takes_a_text_as_long_as_its_context(embedder: Ask) -> None:
    # A byte is a token to it. By default an engine refuses to pool over more than 512.
    [vector] = embed(embedder, "corral " * 570)
    assert len(vector) == 64


def test_a_chat_model_that_is_told_to_embed_gives_one_vector_for_a_text(
    llama_server: Path, models: dict[str, Model], tmp_path: Path
) -> None:
    model = a_model("chatty", embedding=True, path=models["demo"].path, context_length=131_072)
    with running(llama_server, model, tmp_path) as post:
        first, second = embed(post, "one", "two")
    assert len(first) == len(second) == 64


def test_the_pinned_engine_knows_every_option_that_we_may_pass(llama_server: Path) -> None:
    help_text = subprocess.run([llama_server, "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_text))
    everything: dict[str, Any] = {
        "type_k": "q8_0",
        "type_v": "q8_0",
        "mmproj": Path("/p.gguf"),
        "embedding": True,
    }
    passed = {
        word
        for pooling in (None, "rank")
        for word in launch.command(
            a_model(pooling=pooling, **everything),
            llama_server="llama-server",
            host="127.0.0.1",
            port=1,
            default_parallel=1,
            threads=1,
            flash_attention="on",
        )
        if word.startswith("-")
    }
    assert {"--model", "--rerank", "--pooling", "-fit", "--mmproj", "--threads"} <= passed
    assert passed - known == set()
