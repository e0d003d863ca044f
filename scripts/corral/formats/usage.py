"""How many tokens a request has cost, read from the end of an engine's answer, or from its beginning.

Every dialect says it somewhere: OpenAI's in `usage` (at the end; for embeddings before the vectors),
Anthropic's at both ends of a stream, llama.cpp's own in `timings`. An answer may be megabytes, so it is
not parsed: the numbers are looked for by name. No text can fake one, since in a JSON string the closing
quote of such a name would be escaped.
"""

from __future__ import annotations

import re

# What is looked at from either end: a last event with `usage` and `timings` has some 800 bytes (measured).
WINDOW_BYTES = 4096

# The best name first: `prompt_n` leaves out what was in the engine's cache, and so do others of timings.
_PROMPT = (b'"prompt_tokens"', b'"input_tokens"', b'"tokens_evaluated"', b'"prompt_n"')
_GENERATED = (b'"completion_tokens"', b'"output_tokens"', b'"tokens_predicted"', b'"predicted_n"')
# As llama-server writes it in nearly every answer: both figures in one look.
_USUAL = re.compile(rb'"usage":\{"completion_tokens":(\d{1,12}),"prompt_tokens":(\d{1,12})[,}]')
_NUMBER = re.compile(rb"\s*:\s*(\d{1,12})(?![\d.eE])")


# What an answer says of itself, of its prompt and of what was generated; None for what it does not say.
TokenCounts = tuple[int | None, int | None]

NOTHING_SAID: TokenCounts = (None, None)


def read(first: bytes, last: bytes) -> TokenCounts:
    """The figures in an answer's first and last bytes. The last word counts."""
    end = last[-WINDOW_BYTES:]
    at = end.rfind(b'"usage":{')
    if at >= 0 and (usual := _USUAL.match(end, at)):
        return int(usual[2]), int(usual[1])
    begin = b"" if first is end else first[:WINDOW_BYTES]  # a short answer is both
    return _best(_PROMPT, begin, end), _best(_GENERATED, begin, end)


def _best(names: tuple[bytes, ...], begin: bytes, end: bytes) -> int | None:
    # Each by itself: looking for a word takes a tenth of a microsecond, one expression for all of them 20.
    for name in names:
        for text in (end, begin):
            at = text.rfind(name)
            if at >= 0 and (number := _NUMBER.match(text, at + len(name))):
                return int(number[1])
    return None
