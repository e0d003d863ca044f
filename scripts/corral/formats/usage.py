"""How many tokens a request has cost, read from the end of an engine's answer, or from its beginning.

Every dialect says it somewhere: OpenAI's in `usage` (at the end; for embeddings before the vectors),
Anthropic's at both ends of a stream, llama.cpp's own in `timings`. An answer may be megabytes, so it is
not parsed: the numbers are looked for by name. No text can fake one, since in a JSON string the closing
quote of such a name would be escaped.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# What is looked at from either end: a last event with `usage` and `timings` has some 800 bytes (measured).
WINDOW_BYTES = 4096

_NUMBER = re.compile(
    rb'"(prompt_tokens|input_tokens|tokens_evaluated|prompt_n|completion_tokens|output_tokens|'
    rb'tokens_predicted|predicted_n)"\s*:\s*(\d{1,12})(?![\d.eE])'
)
# The best name first: `prompt_n` leaves out what was in the engine's cache, and so do others of timings.
_PROMPT = (b"prompt_tokens", b"input_tokens", b"tokens_evaluated", b"prompt_n")
_GENERATED = (b"completion_tokens", b"output_tokens", b"tokens_predicted", b"predicted_n")


class TokenCounts(NamedTuple):
    """What an answer says of itself; None for what it does not say."""

    prompt: int | None
    generated: int | None


def read(first: bytes, last: bytes) -> TokenCounts:
    """The figures in an answer's first and last bytes. The last word counts."""
    text = first[:WINDOW_BYTES] + b" " + last[-WINDOW_BYTES:]
    found = {match[1]: int(match[2]) for match in _NUMBER.finditer(text)}
    return TokenCounts(_best(found, _PROMPT), _best(found, _GENERATED))


def _best(found: dict[bytes, int], names: tuple[bytes, ...]) -> int | None:
    return next((found[name] for name in names if name in found), None)
