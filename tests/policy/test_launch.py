"""The command line of a llama-server: all that it needs, nothing twice, and the user's flags last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corral.catalogue import Model
from corral.policy import launch
from tests.models import a_model


def command(model: Model, default_parallel: int = 1, **options: Any) -> tuple[str, ...]:
    return launch.command(
        model,
        llama_server="/app/llama-server",
        host="127.0.0.1",
        port=8085,
        default_parallel=default_parallel,
        **options,
    )


def value_of(argv: tuple[str, ...], *spellings: str) -> list[str]:
    """The values of an option, in all its spellings, wherever it stands."""
    return [argv[index + 1] for index, word in enumerate(argv) if word in spellings]


def test_a_plain_model_gets_exactly_this_command_line() -> None:
    assert command(a_model("tiny")) == (
        *("/app/llama-server", "--model", "/models/tiny.gguf", "--alias", "tiny"),
        *("--host", "127.0.0.1", "--port", "8085", "-c", "4096", "-ngl", "99", "--parallel", "1"),
        *("--cache-ram", "0", "--metrics", "-fit", "off"),
    )


def test_with_a_socket_beside_its_port_it_has_two_addresses() -> None:
    argv = command(a_model(), socket_path="/run/corral/engines/8085.sock")
    assert value_of(argv, "--host") == ["127.0.0.1,/run/corral/engines/8085.sock"]
    assert value_of(argv, "--port") == ["8085"]


def test_the_herds_defaults_are_passed_on() -> None:
    argv = command(a_model(), default_parallel=4, threads=6, flash_attention="on")
    assert value_of(argv, "--parallel") == ["4"]
    assert value_of(argv, "--threads") == ["6"]
    assert value_of(argv, "--flash-attn") == ["on"]


def test_cache_types_are_named_only_if_they_are_not_the_default() -> None:
    argv = command(a_model(type_k="q8_0", type_v="f16"))
    assert value_of(argv, "--cache-type-k") == ["q8_0"]
    assert "--cache-type-v" not in argv


@pytest.mark.parametrize(
    ("flags", "spellings", "value"),
    [
        (("-c", "8192"), ("-c", "--ctx-size"), "8192"),
        (("--ctx-size", "8192"), ("-c", "--ctx-size"), "8192"),
        (("--ctx_size", "8192"), ("-c", "--ctx-size", "--ctx_size"), "8192"),
        (("-ngl", "20"), ("-ngl", "--gpu-layers", "--n-gpu-layers"), "20"),
        (("--n-gpu-layers", "20"), ("-ngl", "--gpu-layers", "--n-gpu-layers"), "20"),
        (("--parallel", "2"), ("-np", "--parallel"), "2"),
        (("-np", "2"), ("-np", "--parallel"), "2"),
        (("-t", "3"), ("-t", "--threads"), "3"),
        (("-fa", "off"), ("-fa", "--flash-attn"), "off"),
        (("-ctk", "q4_0"), ("-ctk", "--cache-type-k"), "q4_0"),
        (("--cache-type-v", "q4_0"), ("-ctv", "--cache-type-v"), "q4_0"),
        (("--fit", "on"), ("-fit", "--fit"), "on"),
        (("-mm", "/other.gguf"), ("-mm", "--mmproj"), "/other.gguf"),
        (("--mmproj_url", "http://x"), ("--mmproj", "--mmproj_url"), "http://x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_a_flag_sets_is_set_once_and_the_flag_wins(
    flags: tuple[str, ...], spellings: tuple[str, ...], value: str
) -> None:
    model = a_model(flags=flags, mmproj=Path("/models/mmproj.gguf"))
    argv = command(model, threads=6, flash_attention="on")
    assert value_of(argv, *spellings) == [value]
    assert argv[-len(flags) :] == flags


def test_flags_that_are_not_ours_stand_unchanged_at_the_end() -> None:
    flags = ("--temp", "0.7", "--no-warmup", "--metrics", "--jinja")
    argv = command(a_model(flags=flags))
    assert argv[-5:] == flags
    assert argv.count("--metrics") == 1


def test_a_placement_may_lower_the_layers_on_the_gpu() -> None:
    assert value_of(command(a_model(), gpu_layers=12), "-ngl") == ["12"]
    assert value_of(command(a_model(), gpu_layers=0), "-ngl") == ["0"]
    assert value_of(command(a_model(flags=("-ngl", "30")), gpu_layers=12), "-ngl") == ["30"]


def test_the_projector_goes_along_unless_flags_say_otherwise() -> None:
    projector = Path("/models/mmproj.gguf")
    assert value_of(command(a_model(mmproj=projector)), "--mmproj") == ["/models/mmproj.gguf"]
    assert "--mmproj" not in command(a_model(mmproj=projector, flags=("--no-mmproj",)))
    assert "--mmproj" not in command(a_model())


@pytest.mark.parametrize(
    ("n_ctx", "expected"), [(100_000, "100000"), (0, "0")], ids=["beyond-training", "as-trained"]
)
def test_a_model_that_writes_gets_the_context_that_was_asked_for(n_ctx: int, expected: str) -> None:
    assert value_of(command(a_model(n_ctx=n_ctx, context_length=2048)), "-c") == [expected]


def embedder(**facts: Any) -> Model:
    defaults: dict[str, Any] = {"embedding": True, "pooling": "mean", "architecture": "bert"}
    return a_model(**defaults | facts)


@pytest.mark.parametrize(
    ("facts", "parallel", "tokens"),
    [
        ({"context_length": 512}, 1, 512),
        ({"context_length": 512}, 4, 2048),
        ({"context_length": 512, "n_ctx": 256}, 1, 256),
        ({"context_length": 512, "n_ctx": 0}, 4, 512),
        ({"context_length": None}, 1, 4096),
        ({"context_length": 512, "flags": ("-c", "8192")}, 1, 8192),
    ],
    ids=["trained", "trained-times-slots", "less-asked", "none-asked", "unknown", "flags-win"],
)
def test_an_embedding_model_gets_no_more_context_than_it_can_use(
    facts: dict[str, Any], parallel: int, tokens: int
) -> None:
    model = embedder(**facts)
    assert launch.context_tokens(model, parallel) == tokens
    assert value_of(command(model, parallel), "-c") == [str(tokens)]


ONE_BATCH = ("--batch-size", "512", "--ubatch-size", "512")
EMBEDDERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "mean": ({}, ("--embedding", *ONE_BATCH)),
    "last": ({"pooling": "last"}, ("--embedding",)),
    "no pooling": ({"pooling": None}, ("--embedding", "--pooling", "mean", *ONE_BATCH)),
    "no pooling but by flag": (
        {"pooling": None, "flags": ("--pooling", "cls")},
        ("--embedding", *ONE_BATCH),
    ),
    "asked for by flag": ({"flags": ("--embeddings",)}, ONE_BATCH),
    "asked for by flag, no pooling": (
        {"pooling": None, "flags": ("--embedding",)},
        ("--pooling", "mean", *ONE_BATCH),
    ),
    "reranker": ({"pooling": "rank"}, ("--rerank", *ONE_BATCH)),
    "reranker by flag": ({"pooling": "rank", "flags": ("--reranking",)}, ONE_BATCH),
    "batch by flag": ({"flags": ("-ub", "4096")}, ("--embedding",)),
}


@pytest.mark.parametrize(("facts", "words"), EMBEDDERS.values(), ids=EMBEDDERS.keys())
def test_an_embedding_model_is_started_as_one(facts: dict[str, Any], words: tuple[str, ...]) -> None:
    argv = command(embedder(context_length=512, **facts))
    assert argv[argv.index("--parallel") + 2 : argv.index("--cache-ram")] == words


def test_the_batch_of_an_embedding_model_holds_the_context_of_one_slot() -> None:
    argv = command(embedder(context_length=2048), default_parallel=2)
    assert value_of(argv, "-c") == ["4096"]
    assert value_of(argv, "--ubatch-size") == ["2048"]


def test_slots_come_from_the_model_before_the_herd() -> None:
    assert launch.slots(a_model(), 3) == 3
    assert launch.slots(a_model(flags=("-np", "2")), 3) == 2
    assert launch.slots(a_model(flags=("--parallel", "7", "--parallel", "8")), 3) == 8


@pytest.mark.parametrize(
    ("named", "models_max", "expected"),
    [((), 3, 6), ((4,), 3, 8), ((4, None, 16, 8), 3, 28), ((4, 1, 16), 1, 16), ((1,), 1, 1)],
    ids=["none named", "others too", "the largest", "one at a time", "the only one"],
)
def test_all_engines_together_work_on_as_many_as_the_largest_models_do(
    named: tuple[int | None, ...], models_max: int, expected: int
) -> None:
    models = [a_model("m", parallel=parallel) for parallel in named]
    assert launch.slots_at_most(models, default_parallel=2, models_max=models_max) == expected


def test_a_placement_says_how_many_layers_go_where() -> None:
    argv = command(a_model(), gpu_layers=7, tensor_split=(3, 1))
    assert argv[argv.index("-ngl") + 1] == "7"
    assert argv[argv.index("--tensor-split") + 1] == "3,1"


def test_a_split_of_the_users_own_stands() -> None:
    argv = command(a_model(flags=("-ts", "1,1")), tensor_split=(3, 1))
    assert "--tensor-split" not in argv


def test_a_prompt_cache_is_the_users_to_ask_for() -> None:
    argv = command(a_model(flags=("--cache-ram", "512")))
    assert argv.count("--cache-ram") == 1
