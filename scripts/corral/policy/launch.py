"""The command line that a model's llama-server is started with.

The model's own flags come last and untouched, and whatever they set is not set before them: a user
who names an option means it. What remains is chosen so that a llama-server does what was promised and
nothing behind anyone's back: a context that doesn't fit is an error, not a smaller context.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from corral.catalogue import Model
from corral.settings import ModelSettings

# llama-server's spellings of the options that are set here and that settings know nothing of.
_FIT = {"-fit", "--fit"}
_METRICS = {"--metrics"}
_PROJECTOR = {"-mm", "--mmproj", "-mmu", "--mmproj-url", "--no-mmproj", "--no-mmproj-auto"}
_RERANK = {"--rerank", "--reranking"}
_POOLING = {"--pooling"}
_SPLIT = {"-ts", "--tensor-split"}
_PROMPT_CACHE = {"-cram", "--cache-ram"}
_BATCH = {"-b", "--batch-size", "-ub", "--ubatch-size"}

DEFAULT_CACHE_TYPE = "f16"


def command(
    model: Model,
    *,
    llama_server: str,
    host: str,
    port: int,
    socket_path: str = "",
    default_parallel: int,
    threads: int | None = None,
    flash_attention: str | None = None,
    gpu_layers: int | None = None,
    tensor_split: Sequence[int] = (),
) -> tuple[str, ...]:
    """The argv of a llama-server for `model`, on as many layers and divided as a placement says."""
    argv = [llama_server, "--model", str(model.path), "--alias", model.name]
    argv += ["--host", f"{host},{socket_path}" if socket_path else host, "--port", str(port)]
    layers = model.n_gpu_layers if gpu_layers is None else gpu_layers
    settled = {
        "n_ctx": ("-c", str(context_tokens(model, default_parallel))),
        "n_gpu_layers": ("-ngl", str(layers)),
        "parallel": ("--parallel", str(slots(model, default_parallel))),
        "cpu_threads": ("--threads", str(threads)) if threads is not None else (),
        "flash_attention": ("--flash-attn", flash_attention) if flash_attention is not None else (),
        "type_k": ("--cache-type-k", model.type_k) if model.type_k != DEFAULT_CACHE_TYPE else (),
        "type_v": ("--cache-type-v", model.type_v) if model.type_v != DEFAULT_CACHE_TYPE else (),
    }
    for field, words in settled.items():
        if field not in model.in_flags:
            argv += words
    # llama-server takes --ctx_size for --ctx-size.
    said = {word.replace("_", "-") for word in model.flags}
    if model.embedding:
        argv += _embedding(model, default_parallel, said)
    if model.mmproj is not None and not said & _PROJECTOR:
        argv += ["--mmproj", str(model.mmproj)]
    if tensor_split and not said & _SPLIT:
        argv += ["--tensor-split", ",".join(map(str, tensor_split))]
    if not said & _PROMPT_CACHE:
        # The engine's default is up to 8 GiB of main memory for prompts that were used before: far too
        # much to be taken behind the guard's back.
        argv += ["--cache-ram", "0"]
    argv += [] if said & _METRICS else ["--metrics"]
    argv += [] if said & _FIT else ["-fit", "off"]
    return (*argv, *model.flags)


def slots(model: ModelSettings, default_parallel: int) -> int:
    """How many requests it works on at a time."""
    return model.parallel or default_parallel


def slots_at_most(models: Iterable[ModelSettings], default_parallel: int, models_max: int) -> int:
    """How many requests all engines together work on at a time, whichever models are loaded.

    Models that the settings do not name have as many slots as the settings say for all.
    """
    named = sorted((slots(model, default_parallel) for model in models), reverse=True)
    return sum([*named, *[default_parallel] * models_max][:models_max])


def context_tokens(model: Model, default_parallel: int) -> int:
    """The context of all its slots together, which share it evenly; 0 is what it was trained with.

    More than it was trained with is the user's to ask of a model that writes, but to one that embeds
    it is of no use: positions beyond the last one it has learnt mean nothing.
    """
    if model.embedding and model.context_length and "n_ctx" not in model.in_flags:
        return min(model.n_ctx or model.context_length, model.context_length * slots(model, default_parallel))
    return model.n_ctx


def _embedding(model: Model, default_parallel: int, said: set[str]) -> list[str]:
    argv: list[str] = []
    if model.pooling == "rank" and not said & _RERANK:
        argv += ["--rerank"]
    elif not said & _RERANK:
        argv += [] if "embedding" in model.in_flags else ["--embedding"]
        # /v1/embeddings is refused without pooling, and a vector for each text is what was asked for.
        argv += ["--pooling", "mean"] if model.pooling is None and not said & _POOLING else []
    # Whoever pools over a whole text must see it in one physical batch, or else refuses it (measured:
    # 500 beyond 512 tokens by default). Only the last token's vector can be had piece by piece.
    tokens = context_tokens(model, default_parallel) or model.context_length or 0
    share = tokens // slots(model, default_parallel)
    if share and model.pooling != "last" and not said & _BATCH:
        argv += ["--batch-size", str(share), "--ubatch-size", str(share)]
    return argv
