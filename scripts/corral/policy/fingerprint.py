"""When two starts take the same memory: the same files, with flags that differ in nothing that counts.

What a load has really taken is kept under these two texts. Files are known by name, size and time of
change, since reading tens of gigabytes to tell two versions apart would take longer than loading them.
Of the flags, all count but those that are known not to: a flag that nobody here has heard of may well
change the memory, and to measure once more costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

# Where it listens, what it is called, how it logs, how it chooses its words. Those that take a value:
_VALUED = (
    "-m --model -a --alias --host --port --api-prefix --api-key --api-key-file --ssl-key-file --ssl-cert-file"
    " -to --timeout --sse-ping-interval --log-file -lv --verbosity --log-verbosity"
    " --chat-template --chat-template-file --chat-template-kwargs --reasoning-format --reasoning-budget"
    " -s --seed --temp --temperature --top-k --top-p --min-p"
    " --repeat-penalty --presence-penalty --frequency-penalty"
)
_VALUED_FLAGS = frozenset(_VALUED.split())
# And those that take none:
_SWITCHES = (
    "--metrics --props --slots --no-slots --jinja --no-jinja --ui --no-ui --webui --no-webui"
    " --log-disable --log-prefix --no-log-prefix --log-timestamps --no-log-timestamps"
    " -v --verbose --log-verbose"
)
_SWITCH_FLAGS = frozenset(_SWITCHES.split())


class FileFacts(NamedTuple):
    """What a file is known by. Its name is without the folder, so that a model may be moved."""

    name: str
    size_bytes: int
    modified_ns: int


def fingerprint(files: Iterable[FileFacts]) -> str:
    """One text for these files, in whatever order and wherever they lie."""
    return _digest(sorted(files))


def flags_key(argv: Sequence[str]) -> str:
    """One text for a llama-server's command line, without what does not change its memory."""
    return _digest(list(_counting(argv[1:])))


def _counting(words: Iterable[str]) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        # llama-server reads --ctx_size as --ctx-size.
        flag = word.replace("_", "-") if word.startswith("--") else word
        if flag in _VALUED_FLAGS:
            next(rest, None)
        elif flag not in _SWITCH_FLAGS:
            yield flag


def _digest(value: object) -> str:
    # JSON, because it keeps apart what joining would run together, and has a word for every odd character.
    return sha256(json.dumps(value).encode("ascii")).hexdigest()
