"""What a model's own llama-server arguments decide, and which of them the gateway keeps to itself.

Arguments pass through untouched, yet the gateway must know some of them: how long the context is, how
many slots there are, what lies on the GPU. A flag given twice counts the last time, and llama-server
reads `--ctx_size` as `--ctx-size`; so do we. A value that can't be understood here is left for
llama-server to judge, which says better what it wants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from corral.settings import declarations
from corral.settings.kinds import Kind, Misfit, Whole

# Where it listens, what it serves, under which name, and who may ask it: changed by a flag, a
# llama-server could no longer be reached, or could be reached by others. The second name is the
# environment variable that says the same; the image of llama.cpp sets LLAMA_ARG_HOST, for one.
_MANAGED = {
    "--model": "LLAMA_ARG_MODEL",
    "-m": "LLAMA_ARG_MODEL",
    "--alias": "LLAMA_ARG_ALIAS",
    "-a": "LLAMA_ARG_ALIAS",
    "--host": "LLAMA_ARG_HOST",
    "--port": "LLAMA_ARG_PORT",
    "--api-prefix": "LLAMA_ARG_API_PREFIX",
    "--api-key": "LLAMA_API_KEY",
    "--api-key-file": "LLAMA_ARG_API_KEY_FILE",
    "--ssl-key-file": "LLAMA_ARG_SSL_KEY_FILE",
    "--ssl-cert-file": "LLAMA_ARG_SSL_CERT_FILE",
}
MANAGED_VARIABLES = frozenset(_MANAGED.values())

_SWITCHES = {"--embedding": "embedding", "--embeddings": "embedding"}
_VALUED = {
    "-c": "n_ctx",
    "--ctx-size": "n_ctx",
    "-ngl": "n_gpu_layers",
    "--gpu-layers": "n_gpu_layers",
    "--n-gpu-layers": "n_gpu_layers",
    "-ctk": "type_k",
    "--cache-type-k": "type_k",
    "-ctv": "type_v",
    "--cache-type-v": "type_v",
    "-np": "parallel",
    "--parallel": "parallel",
    "-t": "cpu_threads",
    "--threads": "cpu_threads",
    "-fa": "flash_attention",
    "--flash-attn": "flash_attention",
}
_KINDS: Mapping[str, Kind] = {
    "n_ctx": declarations.CONTEXT,
    "n_gpu_layers": declarations.LAYERS,
    "type_k": declarations.CACHE_TYPE,
    "type_v": declarations.CACHE_TYPE,
    "parallel": Whole(1, 1_000_000),
}


def managed_flag(flags: Iterable[str]) -> str | None:
    """The first flag that the gateway sets itself, as it was written, or None."""
    for flag in flags:
        # llama-server has no --flag=value, but people write it.
        if _normal(flag).partition("=")[0] in _MANAGED:
            return flag.partition("=")[0]
    return None


def set_by_flags(flags: Sequence[str]) -> tuple[frozenset[str], dict[str, Any]]:
    """Which fields the flags set, and those values among them that could be understood."""
    fields: set[str] = set()
    values: dict[str, Any] = {}
    words = iter(flags)
    for flag in map(_normal, words):
        if flag in _SWITCHES:
            fields.add(_SWITCHES[flag])
            values[_SWITCHES[flag]] = True
        elif flag in _VALUED:
            field = _VALUED[flag]
            fields.add(field)
            values.pop(field, None)
            values |= _understood(field, next(words, ""))
    return frozenset(fields), values


def _understood(field: str, text: str) -> dict[str, Any]:
    if field == "n_gpu_layers" and (text in ("auto", "all") or text.startswith("-")):
        # To llama-server both words, and their old forms -1 and -2, mean as many layers as there are.
        return {field: declarations.LAYERS.high}
    if field not in _KINDS:
        return {}
    try:
        return {field: _KINDS[field].from_text(text)}
    except Misfit:
        return {}


def _normal(flag: str) -> str:
    return flag.replace("_", "-") if flag.startswith("--") else flag
